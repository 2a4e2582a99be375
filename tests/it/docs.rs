//! Log lines and errors that `docs/operations.md` quotes, as the source has them, and the tests that
//! `SECURITY.md` names.

use std::{fs, path::Path};

/// Parts of a quote with fewer words are not searched: they would be found anywhere.
const MIN_WORDS: usize = 4;

fn source(directory: &Path, text: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            source(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

/// Sentences in code spans, cut at each `…`. Spans with quotation marks, pipes or options are
/// commands.
fn quotes(page: &str) -> Vec<&str> {
    page.lines()
        .filter(|line| !line.starts_with("```"))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter(|span| !span.contains(['"', '|']) && !span.contains(" -"))
        .flat_map(|span| span.split('…'))
        .map(str::trim)
        .filter(|part| part.split(' ').count() >= MIN_WORDS)
        .collect()
}

#[test]
fn operations_quotes_what_the_service_logs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    source(&root.join("src"), &mut text);
    // A literal over several lines continues after the white space.
    let text = text.replace("\\\n", "");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let page = fs::read_to_string(root.join("docs/operations.md")).unwrap();
    let quotes = quotes(&page);
    assert!(quotes.len() > 20, "{quotes:?}");
    let stale: Vec<_> = quotes
        .into_iter()
        .filter(|quote| !text.contains(quote))
        .collect();
    assert!(stale.is_empty(), "not in src any more: {stale:#?}");
}

#[test]
fn tests_of_the_threats_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    source(&root.join("src"), &mut text);
    source(&root.join("tests"), &mut text);
    let page = fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let tests: Vec<_> = rows
        .filter_map(|row| row.trim_end_matches(" |").rsplit_once(" | "))
        .flat_map(|(_, tests)| tests.split('`').skip(1).step_by(2))
        .filter(|name| !name.starts_with(".ci/run"))
        .collect();
    assert!(tests.len() > 20, "{tests:?}");
    let absent = tests
        .into_iter()
        .filter(|name| !text.contains(&format!("fn {name}(")));
    let absent: Vec<_> = absent.collect();
    assert!(absent.is_empty(), "no such tests: {absent:#?}");
}
