//! `siem-relay doctor`: checks what the service needs, one line each, and changes nothing.

use std::{
    fmt::Display,
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::timeout;

use super::{report_error, serve};
use crate::{
    api::{Callers, connections_within_limit},
    app,
    config::{Config, EXIT_USAGE},
    domain::{error_chain::error_chain, status::Fault},
    sink::{Examination, Examiner},
    store::{Inspection, KeyError, Keyring, Store},
};

/// Time for each check.
const LIMIT: Duration = Duration::from_secs(10);
/// Time for one call to AWS, which may be made twice.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Time before the end of a certificate from which it is a warning.
const EXPIRES_SOON: i64 = 14 * 24 * 3600;

#[derive(Args)]
pub(super) struct DoctorArgs {
    /// Prints a JSON array of objects with `result`, `name`, `finding` and `remedy`.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: serve::Args,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// Result of one check.
#[derive(Serialize)]
struct Check {
    result: Verdict,
    name: &'static str,
    finding: String,
    /// Empty if there is nothing to do.
    remedy: &'static str,
}

fn ok(name: &'static str, finding: impl Into<String>) -> Check {
    check(Verdict::Ok, name, finding, "")
}

fn check(
    result: Verdict,
    name: &'static str,
    finding: impl Into<String>,
    remedy: &'static str,
) -> Check {
    Check {
        result,
        name,
        finding: finding.into(),
        remedy,
    }
}

fn skipped(name: &'static str, needs: impl Display) -> Check {
    check(Verdict::Warn, name, format!("skipped: needs {needs}"), "")
}

/// Runs every check.
pub(super) async fn run(args: DoctorArgs) -> ExitCode {
    let config = match Config::load(args.settings.into_sources()) {
        Ok(config) => config,
        Err(error) => {
            report_error("the settings are wrong", &error);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let checks = check_all(&config).await;
    if let Err(error) = print(&checks, args.json) {
        report_error("cannot print the result", &error);
        return ExitCode::FAILURE;
    }
    match checks.iter().any(|check| check.result == Verdict::Fail) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

fn print(checks: &[Check], json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, checks)?;
        return writeln!(out);
    }
    for check in checks {
        let result = match check.result {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        };
        write!(out, "{result:<5} {:<12} {}", check.name, check.finding)?;
        match check.remedy {
            "" => writeln!(out)?,
            remedy => writeln!(out, " — {remedy}")?,
        }
    }
    Ok(())
}

async fn check_all(config: &Config) -> Vec<Check> {
    let mut checks = vec![ok("settings", "every setting is allowed")];
    let keyring = app::existing_keyring(config);
    if config.database_url.is_some() {
        checks.push(key(&keyring, None));
        let unchecked = "the log and the database are shared, which this command does not check";
        let remedy = "see the metrics of the instances and docs/scaling.md";
        checks.push(check(Verdict::Warn, "storage", unchecked, remedy));
    } else {
        let options = app::store_options(config);
        let inspected = timeout(LIMIT, Store::inspect(&options)).await.ok();
        let inspected = inspected.map(|looked| looked.map_err(|error| error_chain(&error)));
        let inspection = inspected.as_ref().and_then(|looked| looked.as_ref().ok());
        let inspection = inspection.and_then(Option::as_ref);
        checks.push(key(&keyring, inspection));
        checks.push(database(inspected.as_ref()));
        checks.push(disk(inspection));
    }
    checks.push(descriptors(config));
    checks.push(certificate(config, Timestamp::now()));
    checks.push(callers(config));
    checks.extend(aws(config).await);
    checks
}

fn key(keyring: &Result<Option<Keyring>, KeyError>, inspection: Option<&Inspection>) -> Check {
    let name = "key";
    let has_keys = inspection.is_some_and(|inspection| !inspection.keys.active.is_empty());
    let keyring = match keyring {
        Ok(Some(keyring)) => keyring,
        Ok(None) if has_keys => {
            let finding = "external-id.key is missing, and the database was made with one";
            return check(Verdict::Fail, name, finding, "bring the file back");
        }
        Ok(None) => return ok(name, "there is none yet; the first start makes it"),
        Err(error) => {
            let remedy = "bring back the key, as a file of the service's user with mode 0600";
            return check(Verdict::Fail, name, error_chain(error), remedy);
        }
    };
    let Some(inspection) = inspection.filter(|_| has_keys) else {
        let finding =
            "it can be read; no database of this version shows whether it is the right one";
        return ok(name, finding);
    };
    match Store::missing_keys(keyring, inspection) {
        Ok(missing) if missing.is_empty() => ok(name, "it opens the stored external IDs"),
        Ok(missing) => {
            let finding = format!("external IDs need the keys {}", missing.join(", "));
            let remedy = "bring back these keys, beside the present ones";
            check(Verdict::Fail, name, finding, remedy)
        }
        Err(error) => check(Verdict::Fail, name, error_chain(&error), ""),
    }
}

/// `inspected` is None if the look did not end in time.
fn database(inspected: Option<&Result<Option<Inspection>, String>>) -> Check {
    let name = "database";
    let Some(inspected) = inspected else {
        let finding = format!("not checked to its end within {} s", LIMIT.as_secs());
        let remedy =
            "a large database on a slow disk takes longer; the service checks it at its start";
        return check(Verdict::Warn, name, finding, remedy);
    };
    match inspected {
        Ok(None) => ok(name, "there is none yet; the first start makes it"),
        Ok(Some(Inspection {
            pending_migrations: 0,
            ..
        })) => ok(name, "it is whole, and of this version"),
        Ok(Some(inspection)) => {
            let pending = inspection.pending_migrations;
            let finding =
                format!("an earlier version made it: the next start makes {pending} changes");
            let remedy = "back it up before the upgrade";
            check(Verdict::Warn, name, finding, remedy)
        }
        Err(problem) => {
            let remedy = "see \"The service does not start\" in docs/operations.md";
            check(Verdict::Fail, name, problem.as_str(), remedy)
        }
    }
}

fn disk(inspection: Option<&Inspection>) -> Check {
    let name = "disk";
    let Some(inspection) = inspection else {
        return skipped(name, "a database");
    };
    let (free, reserve) = (inspection.free_bytes, inspection.reserve_bytes);
    let finding = format!("{free} bytes are free, of which events leave {reserve}");
    match free {
        free if free <= reserve => check(
            Verdict::Fail,
            name,
            finding,
            "free space: events are refused",
        ),
        free if free < reserve.saturating_mul(2) => {
            check(Verdict::Warn, name, finding, "free space soon")
        }
        _ => ok(name, finding),
    }
}

fn descriptors(config: &Config) -> Check {
    let permitted = connections_within_limit(config.requests_in_flight);
    let most = config.max_connections;
    let finding = format!(
        "the limit on open files of this shell permits {permitted} connections; max-connections is {most}"
    );
    match permitted < most {
        true => {
            let remedy = "raise it for the service (ulimit -n, or LimitNOFILE of systemd)";
            check(Verdict::Warn, "descriptors", finding, remedy)
        }
        false => ok("descriptors", finding),
    }
}

fn certificate(config: &Config, now: Timestamp) -> Check {
    let name = "tls";
    let tls = match app::load_tls(config) {
        Ok(Some(tls)) => tls,
        Ok(None) => return ok(name, "the API has no TLS"),
        Err(error) => return check(Verdict::Fail, name, error_chain(&error), ""),
    };
    if let Err(error) = tls.check_validity(now) {
        return check(Verdict::Fail, name, error.to_string(), "");
    }
    let left = tls.not_after() - now.as_second();
    let finding = format!(
        "the certificate is valid for another {} days",
        left / (24 * 3600)
    );
    match left < EXPIRES_SOON {
        true => check(
            Verdict::Warn,
            name,
            finding,
            "replace it, and its key with it",
        ),
        false => ok(name, finding),
    }
}

fn callers(config: &Config) -> Check {
    let name = "callers";
    match config.callers.as_deref().map(Callers::open) {
        Some(Ok(_)) => ok(name, "the callers file can be used"),
        Some(Err(error)) => check(Verdict::Fail, name, error_chain(&error), ""),
        None if config.has_authentication() => ok(name, "callers show a certificate"),
        None if config.listen.ip().to_canonical().is_loopback() => {
            ok(name, "no authentication, on loopback alone")
        }
        None => {
            let finding = "anyone who can reach the API has all rights";
            let remedy = "set callers or tls-client-ca";
            check(Verdict::Warn, name, finding, remedy)
        }
    }
}

async fn aws(config: &Config) -> Vec<Check> {
    let examining = async {
        let options = app::sink_options(config, None);
        Examiner::new(&options, CALL_LIMIT).await.examine().await
    };
    // The time to load the configuration, and that of the calls.
    match timeout(2 * LIMIT, examining).await {
        Ok(found) => aws_checks(config, &found),
        Err(_) => vec![check(
            Verdict::Fail,
            "identity",
            "the AWS configuration does not load in time",
            "check the AWS settings of the environment",
        )],
    }
}

fn aws_checks(config: &Config, found: &Examination) -> Vec<Check> {
    let failed = |fault: &Fault| format!("the call failed with {}", fault.code());
    let region = found.region.as_deref().unwrap_or("(none)");
    let identity = match (&found.region, &found.identity) {
        (None, _) => {
            let finding = "no AWS region is configured";
            check(Verdict::Fail, "identity", finding, "set AWS_REGION")
        }
        (Some(_), Ok((_, account))) => {
            let account = account.as_deref().unwrap_or("an unknown account");
            ok(
                "identity",
                format!("STS in {region} accepts the credentials, of {account}"),
            )
        }
        (Some(_), Err(fault)) => {
            let remedy = "check credentials, region and the network's way to STS; see \"AWS cannot be reached\" in docs/operations.md";
            check(Verdict::Fail, "identity", failed(fault), remedy)
        }
    };
    let clock = match found.clock_offset {
        None => skipped("clock", "an answer of STS"),
        Some(0) => ok("clock", "within 4 minutes of AWS's"),
        Some(offset) => {
            let finding = format!("AWS's clock is {offset} s ahead of this machine's");
            check(Verdict::Fail, "clock", finding, "set the clock right")
        }
    };
    let canary = match (&config.canary_role_arn, found.canary) {
        (None, _) => ok("canary", "canary-role-arn is not set"),
        (Some(_), Some(true)) => ok("canary", "the role can be assumed"),
        (Some(_), Some(false)) => {
            let remedy = "check the policy of this service's identity (sts:AssumeRole) and the role's trust policy";
            check(Verdict::Fail, "canary", "the role is denied", remedy)
        }
        (Some(_), None) => skipped("canary", "a clear answer of STS"),
    };
    let kinesis = match &found.kinesis {
        Ok(()) => ok("kinesis", format!("it answers in {region}")),
        Err(fault) => {
            let remedy = "check the network's way to Kinesis; see \"AWS cannot be reached\" in docs/operations.md";
            check(Verdict::Fail, "kinesis", failed(fault), remedy)
        }
    };
    vec![identity, clock, canary, kinesis]
}
