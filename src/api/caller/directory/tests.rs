use super::{
    super::testing::{Files, Signer, entry, subject},
    *,
};

const FILE: &str = "jwks_file = 'keys.json'";
const NOW: i64 = 1_800_000_000;

fn with_token(token: &str) -> Credentials {
    Credentials {
        certificate: None,
        token: Some(token.to_owned().into()),
    }
}

fn problem(denied: Result<Access, Denied>) -> &'static str {
    denied.unwrap_err().problem()
}

/// Waits until the directory was replaced.
async fn changed(directory: &mut watch::Receiver<Arc<Directory>>) -> Arc<Directory> {
    directory.changed().await.unwrap();
    Arc::clone(&directory.borrow_and_update())
}

#[test]
fn a_verified_token_is_kept_until_it_expires() {
    let (signer, other) = (Signer::new("a"), Signer::new("b"));
    let files = Files::new(FILE, &subject("x", "siem.read", "'acme'"));
    files.write_keys(&[&signer]);
    let directory = Callers::open(&files.path()).unwrap().current();
    let kept = || directory.verified.lock().unwrap().len();
    let token = with_token(&signer.token("x", NOW + 60));
    for _ in 0..3 {
        let access = directory.access(&token, NOW).unwrap();
        assert_eq!(&*access.principal, "https://login.example.com#x");
        assert!(access.rights.cover("acme") && !access.rights.cover("beta"));
        assert_eq!(kept(), 1);
    }
    for refused in [
        other.token("x", NOW + 60),
        signer.token("y", NOW + 60),
        "x".to_owned(),
    ] {
        assert!(!directory.has_verified(&with_token(&refused)));
        directory.access(&with_token(&refused), NOW).unwrap_err();
    }
    assert_eq!(kept(), 1, "a refused token is not kept");
    // The tokens of good callers are known, but not trusted, after a change of keys or callers.
    let later = Directory::new(Loaded::read(&files.path()).unwrap(), Some(&directory));
    assert!(later.has_verified(&token));
    later.access(&token, NOW).unwrap();
    assert!(problem(later.access(&token, NOW + 60)).contains("expired"));
    assert!(!later.has_verified(&token), "it failed since");
}

#[test]
fn the_number_of_kept_tokens_is_bounded() {
    let signer = Signer::new("a");
    let files = Files::new(FILE, &subject("x", "siem.read", "'*'"));
    files.write_keys(&[&signer]);
    let directory = Callers::open(&files.path()).unwrap().current();
    for number in 0..MAX_VERIFIED as i64 + 10 {
        let token = with_token(&signer.token("x", NOW + 1 + number));
        directory.access(&token, NOW).unwrap();
    }
    assert_eq!(directory.verified.lock().unwrap().len(), 10);
}

#[test]
fn every_problem_at_the_start_is_named() {
    let files = Files::new(FILE, &entry("dns = 'a*'", "siem.reed", "'a b'"));
    let error = Callers::open(&files.path()).err().unwrap();
    let text = error.to_string();
    assert!(text.contains("callers.toml"), "{text}");
    for path in [
        "callers[0].dns",
        "callers[0].scopes[0]",
        "callers[0].organizations[0]",
    ] {
        assert!(text.contains(path), "{text}");
    }
    files.write_callers(&subject("x", "siem.read", "'*'"));
    let error = error_chain(&Callers::open(&files.path()).err().unwrap());
    assert!(
        error.contains("keys.json") && error.contains("No such file"),
        "{error}"
    );
    std::fs::write(files.path().with_file_name("keys.json"), "{\"keys\":[]}").unwrap();
    let error = Callers::open(&files.path()).err().unwrap().to_string();
    assert!(
        error.contains("issuers[0].jwks_file") && error.contains("no usable key"),
        "{error}"
    );
    assert!(Callers::open(files.path().parent().unwrap()).is_err());
}

#[tokio::test]
async fn files_are_read_again_when_their_content_changes() {
    let (first, second) = (Signer::new("a"), Signer::new("b"));
    let files = Files::new(FILE, &subject("x", "siem.read", "'acme'"));
    files.write_keys(&[&first]);
    let callers = Callers::open(&files.path()).unwrap();
    let mut directory = callers.subscribe();
    let stop = CancellationToken::new();
    let running = tokio::spawn(callers.clone().keep_current(stop.clone()));

    files.write_callers(&subject("x", "siem.read", "'beta'"));
    let reloaded = changed(&mut directory).await;
    let token = with_token(&first.token("x", NOW + 60));
    assert!(reloaded.access(&token, NOW).unwrap().rights.cover("beta"));

    files.write_keys(&[&second]);
    let reloaded = changed(&mut directory).await;
    assert!(problem(reloaded.access(&token, NOW)).contains("kid"));
    let token = with_token(&second.token("x", NOW + 60));
    reloaded.access(&token, NOW).unwrap();

    // Kubernetes swaps a link to a directory.
    let swapped = files.path().with_file_name("new.toml");
    std::fs::copy(files.path(), &swapped).unwrap();
    let text = std::fs::read_to_string(&swapped)
        .unwrap()
        .replace("beta", "gamma");
    std::fs::write(&swapped, text).unwrap();
    let link = files.path().with_file_name("link");
    std::os::unix::fs::symlink(&swapped, &link).unwrap();
    std::fs::rename(&link, files.path()).unwrap();
    let reloaded = changed(&mut directory).await;
    assert!(reloaded.access(&token, NOW).unwrap().rights.cover("gamma"));

    // Bad contents in between change nothing: the next change is the good one.
    for bad in ["", "[[callers]]", "x = "] {
        std::fs::write(files.path(), bad).unwrap();
        sleep(3 * POLL).await;
        assert!(!directory.has_changed().unwrap(), "{bad}");
    }
    files.write_callers(&subject("x", "siem.read", "'delta'"));
    let reloaded = changed(&mut directory).await;
    assert!(reloaded.access(&token, NOW).unwrap().rights.cover("delta"));
    stop.cancel();
    running.await.unwrap();
}

#[test]
fn a_problem_is_logged_at_once_when_it_changes_and_hourly() {
    let mut alarm = Alarm::default();
    let start = Instant::now();
    let minutes = |minutes: u64| start + Duration::from_secs(60 * minutes);
    assert!(!alarm.clear());
    let due: Vec<bool> = [
        ("a", 0),
        ("a", 1),
        ("b", 2),
        ("b", 61),
        ("b", 62),
        ("b", 121),
    ]
    .into_iter()
    .map(|(problem, at)| alarm.is_due(problem, minutes(at)))
    .collect();
    assert_eq!(due, [true, false, true, false, true, false]);
    assert!(alarm.clear());
    assert!(alarm.is_due("b", minutes(122)));
}
