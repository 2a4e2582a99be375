//! Borders between the modules, as `lib.rs` maps them.

mod paths;

use std::{
    fs,
    path::{Path, PathBuf},
};

use self::paths::paths;

const GRPC: [&str; 7] = [
    "tonic",
    "tonic_health",
    "tonic_prost",
    "tonic_reflection",
    "tonic_types",
    "prost",
    "prost_types",
];
const GRPC_ROOMS: [&str; 5] = ["api", "client", "publish", "sandbox", "proto"];

/// What breaks the rules in a file; `path` is relative to `src`, with slashes.
fn violations(path: &str, source: &str) -> Vec<String> {
    let room = room(path);
    let mut found: Vec<String> = paths(path, source)
        .into_iter()
        .filter_map(|used| {
            let (first, second) = (used.first()?, used.get(1).map_or("", String::as_str));
            let why = match first.as_str() {
                "crate" => forbidden_room(path, room, second),
                name => forbidden_crate(path, room, name),
            }?;
            Some(format!("{path}: {}: {why}", used.join("::")))
        })
        .collect();
    found.dedup();
    if path.ends_with("mod.rs") {
        found.push(format!("{path}: a module is a file beside its folder"));
    }
    found
}

fn room(path: &str) -> &str {
    let first = path.split('/').next().unwrap_or_default();
    first.trim_end_matches(".rs")
}

fn is_test(path: &str) -> bool {
    path.split('/')
        .any(|part| matches!(part, "tests" | "tests.rs" | "testing.rs"))
}

/// Why a file may not use another room, where it may not.
fn forbidden_room(path: &str, room: &str, used: &str) -> Option<&'static str> {
    let own = used == room;
    match (room, used) {
        ("domain", _) if !own => Some("domain sees nothing but itself"),
        ("store" | "sink", "sandbox") if is_test(path) => None,
        ("sink", "gate") => None,
        ("store" | "sink", used) if !own && used != "domain" => Some("an adapter sees domain only"),
        ("gate", used) if !own && used != "domain" => Some("the gate sees domain only"),
        ("api", "worker" | "sink" | "app" | "cli") => Some("api sees domain and ports"),
        ("onboarding", used) if !own && used != "domain" && !is_test(path) => {
            Some("onboarding sees domain only")
        }
        ("verify", used) if !own && used != "domain" => Some("verify sees domain only"),
        ("worker", "api" | "watch" | "app" | "cli") => Some("worker sees domain and ports"),
        ("sandbox", _) if path.starts_with("sandbox/aws") && !own => {
            Some("the stand-in for AWS knows nothing of the service")
        }
        (_, "proto") if !GRPC_ROOMS.contains(&room) => Some("messages belong to the gRPC rooms"),
        _ => None,
    }
}

/// Why a file may not use a crate, where it may not.
fn forbidden_crate(path: &str, room: &str, name: &str) -> Option<&'static str> {
    let is_sdk = name.starts_with("aws_") && name != "aws_lc_rs";
    match name {
        _ if GRPC.contains(&name) && !GRPC_ROOMS.contains(&room) => {
            Some("only the gRPC rooms know tonic and prost")
        }
        "sea_orm" | "sea_orm_migration" | "sqlx" if room != "store" => {
            Some("only store knows the database")
        }
        _ if is_sdk && room != "sink" && !(room == "sandbox" && is_test(path)) => {
            Some("only sink knows the AWS SDK")
        }
        "clap" if room != "config" && room != "cli" => Some("only config and cli know clap"),
        "tokio" | "tokio_util" | "tokio_stream" if room == "domain" => {
            Some("domain is pure: no IO, no clock, no tasks")
        }
        _ => None,
    }
}

/// Every Rust file under a folder of this package: its path from there, and its text.
fn files(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap();
                let name = name.to_str().unwrap().replace('\\', "/");
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

#[test]
fn the_borders_hold() {
    let files = files("src");
    assert!(files.len() > 50, "found only {} files", files.len());
    let found: Vec<String> = files
        .iter()
        .flat_map(|(path, source)| violations(path, source))
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[track_caller]
fn refused(path: &str, source: &str, used: &str) {
    let found = violations(path, source);
    let named = format!("{path}: {used}: ");
    assert!(
        found.len() == 1 && found[0].starts_with(&named),
        "{found:?} is not one about {used}"
    );
}

#[track_caller]
fn allowed(path: &str, source: &str) {
    assert_eq!(violations(path, source), Vec::<String>::new());
}

#[test]
fn sees_a_planted_violation() {
    refused("worker/turn.rs", "use tonic::Status;", "tonic::Status");
    refused(
        "domain/arn.rs",
        "fn f() { tokio::time::sleep(d); }",
        "tokio::time::sleep",
    );
    refused(
        "api/events.rs",
        "use crate::{domain::x, worker::{Worker}};",
        "crate::worker::Worker",
    );
    refused(
        "api.rs",
        "use super::worker::Worker;",
        "crate::worker::Worker",
    );
    refused(
        "worker/lane.rs",
        "fn f() -> super::super::api::Api { g() }",
        "crate::api::Api",
    );
    refused(
        "store.rs",
        "mod a { use super::super::sink; }",
        "crate::sink",
    );
    refused(
        "onboarding/policy.rs",
        "use crate::config::Config;",
        "crate::config::Config",
    );
    refused("verify.rs", "use crate::sink::Sink;", "crate::sink::Sink");
    refused("watch.rs", "use sea_orm as db;", "sea_orm");
    refused(
        "app.rs",
        "use { std::fmt, aws_config::Region };",
        "aws_config::Region",
    );
    refused("main.rs", "use siem_relay::proto::v1;", "crate::proto::v1");
    refused("telemetry.rs", "use clap::Parser;", "clap::Parser");
    refused(
        "sandbox/aws/sts.rs",
        "use crate::domain::arn::RoleArn;",
        "crate::domain::arn::RoleArn",
    );
    refused(
        "sandbox/aws/sts.rs",
        "use aws_sdk_sts::Client;",
        "aws_sdk_sts::Client",
    );
    assert_eq!(violations("domain/mod.rs", "").len(), 1);
}

#[test]
fn sees_no_violation_where_there_is_none() {
    allowed(
        "worker.rs",
        "// use tonic::Status;\n/* sqlx::x /* */ clap::y */",
    );
    allowed(
        "domain.rs",
        r####"const A: &str = "tokio::x"; const B: &str = r#"tokio::"y"#;"####,
    );
    allowed(
        "domain.rs",
        "fn f<'a>(x: &'a str) -> char { '\"' } const C: char = '\\'';",
    );
    allowed(
        "store/open.rs",
        "mod tests { use super::*; use super::super::read; }",
    );
    allowed("telemetry.rs", "let exporter = builder.with_tonic();");
    allowed(
        "sink/tests/stand_in.rs",
        "use crate::sandbox::aws::StandIn;",
    );
    allowed("store/secret.rs", "use aws_lc_rs::aead::Aad;");
    allowed(
        "domain.rs",
        "#[cfg(test)] mod tests { use super::*; use crate::domain::x; }",
    );
}
