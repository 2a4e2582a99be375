use std::io;

use clap::{CommandFactory as _, error::ErrorKind};

use super::*;
use crate::config::{Config, Sources, settings};

/// The settings that `serve` reads from these flags.
fn flags(arguments: &[&str]) -> Result<Vec<(String, String)>, clap::Error> {
    let all = ["siem-relay", "serve"].iter().chain(arguments);
    match Cli::try_parse_from(all)?.command {
        Command::Serve(args) => Ok(args.flags),
        _ => panic!("the subcommand is serve"),
    }
}

#[test]
fn clap_accepts_the_definition_of_the_command_line() {
    Cli::command().debug_assert();
}

#[test]
fn every_setting_is_a_flag() {
    for setting in settings() {
        let flag = format!("--{}=x", setting.name);
        let expected = vec![(setting.name.to_owned(), "x".to_owned())];
        assert_eq!(flags(&[&flag]).unwrap(), expected);
    }
}

#[test]
fn values_stay_text_until_all_are_checked_together() {
    let given = flags(&["--heartbeat-seconds", "-1", "--listen", "nowhere"]).unwrap();
    let error = Config::load(Sources {
        flags: given,
        ..Sources::default()
    })
    .unwrap_err();
    assert_eq!(error.problems.len(), 2, "{error}");
}

#[test]
fn a_switch_needs_no_value() {
    let switch = |value: &str| vec![("insecure".to_owned(), value.to_owned())];
    assert_eq!(flags(&["--insecure"]).unwrap(), switch("true"));
    assert_eq!(flags(&["--insecure=false"]).unwrap(), switch("false"));
    assert_eq!(flags(&[]).unwrap(), []);
}

#[test]
fn a_secret_flag_is_refused_without_printing_its_value() {
    let error = Config::load(Sources {
        flags: flags(&["--external-id-key", "hunter2"]).unwrap(),
        ..Sources::default()
    })
    .unwrap_err()
    .to_string();
    assert!(
        error.contains("set SIEM_RELAY_EXTERNAL_ID_KEY instead"),
        "{error}"
    );
    assert!(!error.contains("hunter2"), "{error}");
    let mut command = Cli::command();
    let serve = command.find_subcommand_mut("serve").unwrap();
    let help = serve.render_long_help().to_string();
    assert!(help.contains("--external-id-key-file "), "{help}");
    assert!(!help.contains("--external-id-key "), "{help}");
}

#[test]
fn wrong_arguments_and_help_have_their_own_exit_codes() {
    for (arguments, kind, code) in [
        (
            &["siem-relay", "--version"][..],
            ErrorKind::DisplayVersion,
            0,
        ),
        (
            &["siem-relay", "serve", "--help"],
            ErrorKind::DisplayHelp,
            0,
        ),
        (
            &["siem-relay", "serve", "--lsten=x"],
            ErrorKind::UnknownArgument,
            64,
        ),
        (&["siem-relay", "sevre"], ErrorKind::InvalidSubcommand, 64),
    ] {
        let error = Cli::try_parse_from(arguments).err().expect("it ends here");
        assert_eq!(error.kind(), kind);
        assert_eq!(exit_code_of(&error), ExitCode::from(code), "{arguments:?}");
    }
}

#[test]
fn an_error_chain_repeats_no_message() {
    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the log")]
    struct Outer(#[source] Inner);
    #[derive(Debug, thiserror::Error)]
    #[error("cannot read: {0}")]
    struct Inner(#[source] io::Error);

    let error = Outer(Inner(io::Error::other("disk on fire")));
    assert_eq!(
        error_chain(&error),
        "cannot open the log: cannot read: disk on fire"
    );
}
