use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use clap::Parser;

use super::{write as write_files, *};

const STREAM: &str = "arn:aws:kinesis:eu-west-1:222222222222:stream/detections";
const EXTERNAL_ID: &str = "0123456789abcdef-never-to-be-seen";

#[derive(Parser)]
struct TestCommand {
    #[command(flatten)]
    args: OnboardingArgs,
}

fn args(more: &[&str]) -> OnboardingArgs {
    let good = [
        "onboarding",
        "--stream",
        STREAM,
        "--role-name",
        "siem-delivery",
        "--principal",
        "111111111111",
    ];
    TestCommand::try_parse_from(good.iter().chain(more))
        .unwrap()
        .args
}

fn task_of(args: OnboardingArgs) -> Result<Task, Vec<Problem>> {
    check(args, None)
}

fn fields(args: OnboardingArgs) -> Vec<&'static str> {
    let problems = task_of(args).err().unwrap_or_default();
    problems.iter().map(|problem| problem.field).collect()
}

fn names(task: &Task) -> Vec<&'static str> {
    task.documents.iter().map(Document::file_name).collect()
}

#[test]
fn only_the_trust_policy_needs_the_external_id() {
    assert_eq!(fields(args(&[])), ["external-id"]);
    assert_eq!(fields(args(&["--format", "trust-policy"])), ["external-id"]);
    for (format, file) in [
        ("permission-policy", "permission-policy.json"),
        ("cloudformation", "siem-relay.cfn.yaml"),
        ("terraform", "siem-relay.tf"),
    ] {
        let task = task_of(args(&["--format", format])).ok().unwrap();
        assert_eq!(names(&task), [file]);
    }
    let task = task_of(args(&["--external-id", EXTERNAL_ID])).ok().unwrap();
    assert_eq!(task.documents.len(), 4);
    assert!(task.generated.is_none());
}

#[test]
fn a_new_external_id_is_in_the_trust_policy() {
    let task = task_of(args(&["--generate-external-id"])).ok().unwrap();
    let generated = task.generated.unwrap();
    assert_eq!(generated.expose().len(), 64);
    let trust = task.onboarding.text(&task.documents[0]);
    assert!(trust.contains(generated.expose()));
}

#[test]
fn the_external_id_is_given_by_one_option_and_checked() {
    let both = args(&["--generate-external-id", "--external-id", EXTERNAL_ID]);
    assert_eq!(fields(both), ["external-id"]);
    let broken = args(&["--external-id", "a b", "--shards", "-1"]);
    let problems = task_of(broken).err().unwrap();
    let fields: Vec<_> = problems.iter().map(|problem| problem.field).collect();
    assert_eq!(fields, ["shards", "external-id"]);
    assert!(!problems[1].message.contains("a b"));
    // It is checked even if no document needs it.
    let unused = args(&["--external-id", "a b", "--format", "terraform"]);
    assert_eq!(task_of(unused).err().unwrap().len(), 1);
}

#[test]
fn the_variable_is_used_if_no_flag_is_given() {
    let with = |more: &[&str], value: &str| check(args(more), Some(value.into()));
    let trust = |task: &Task| task.onboarding.text(&task.documents[0]);
    let task = with(&[], EXTERNAL_ID).ok().unwrap();
    assert!(trust(&task).contains(EXTERNAL_ID));
    let task = with(&["--external-id", "by-a-flag"], EXTERNAL_ID)
        .ok()
        .unwrap();
    assert!(trust(&task).contains("by-a-flag"));
    for value in ["", "a b"] {
        let problems = with(&[], value).err().unwrap();
        let message = problems[0].to_string();
        assert!(message.contains(EXTERNAL_ID_VARIABLE), "{message}");
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn existing_files_are_replaced_only_with_force() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("acme");
    let output = directory.to_str().unwrap();
    let more = ["--external-id", EXTERNAL_ID, "--output", output];
    let task = task_of(args(&more)).ok().unwrap();
    let write = |task: &Task, force| {
        let mut log = Vec::new();
        write_files(task, &directory, force, &mut log).map(|()| log)
    };
    let log = String::from_utf8(write(&task, false).unwrap()).unwrap();
    assert_eq!(log.lines().count(), 4, "{log}");
    let mut found: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    let mut expected = names(&task);
    expected.sort();
    assert_eq!(found, expected);
    for document in &task.documents {
        let path = directory.join(document.file_name());
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, task.onboarding.text(document));
        let is_secret = matches!(document, Document::TrustPolicy(_));
        assert_eq!(text.contains(EXTERNAL_ID), is_secret);
        assert_eq!(mode(&path) & 0o077 == 0, is_secret, "{path:?}");
    }

    // All existing files are reported, and none is changed.
    fs::write(directory.join("siem-relay.tf"), "mine").unwrap();
    assert_eq!(fields(args(&more)), ["output"; 4]);
    assert!(write(&task, false).is_err());
    let one = args(&["--format", "terraform", "--output", output]);
    assert_eq!(fields(one), ["output"]);
    let text = fs::read_to_string(directory.join("siem-relay.tf")).unwrap();
    assert_eq!(text, "mine");

    let forced: Vec<&str> = more.into_iter().chain(["--force"]).collect();
    let task = task_of(args(&forced)).ok().unwrap();
    write(&task, true).unwrap();
    let text = fs::read_to_string(directory.join("siem-relay.tf")).unwrap();
    assert!(text.contains("resource"), "{text}");
}

#[test]
fn force_requires_an_output_directory() {
    let all = ["onboarding", "--force"];
    assert!(TestCommand::try_parse_from(all).is_err());
}
