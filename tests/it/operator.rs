//! The probe of a running service.

use crate::harness::{Metrics, ProcessEnv, run, tool};

#[tokio::test(flavor = "multi_thread")]
async fn the_probe_says_whether_a_service_is_ready() {
    let env = ProcessEnv::new().await;
    let relay = env.start_with(&["--metrics-listen", "0"]).await;
    let address = Metrics::of(&relay).address.to_string();
    let probe = async |arguments: &[&str]| {
        let mut command = tool(&["health"]);
        command.args(arguments);
        run(command).await
    };
    let at = ["--metrics-listen", address.as_str()];
    let ready = probe(&at).await;
    assert_eq!(ready.code, Some(0), "{ready:?}");
    assert_eq!(ready.stdout, "lease: ok\nlog: ok\ndatabase: ok\n");
    let live = probe(&[at[0], at[1], "--live"]).await;
    assert_eq!((live.code, live.stdout.as_str()), (Some(0), "ok\n"));
    // The API's port speaks another protocol.
    let other = relay.address.to_string();
    let foreign = probe(&["--metrics-listen", &other]).await;
    assert_eq!(foreign.code, Some(1), "{foreign:?}");
    let absent = probe(&[]).await;
    assert_eq!(absent.code, Some(1), "{absent:?}");
    assert!(absent.stderr.contains("metrics-listen"), "{absent:?}");
    relay.kill().await;
    let gone = probe(&at).await;
    assert_eq!(gone.code, Some(1), "{gone:?}");
    assert!(gone.stderr.contains("does not answer at"), "{gone:?}");
}
