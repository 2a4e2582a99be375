//! Borders between the modules of `src`, as `src/lib.rs` lists them. Borders between crates are in
//! their Cargo.toml.

use std::{
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// Engines of the store, below its ports.
const ENGINES: [&str; 5] = ["kafka", "memory", "postgres", "sql", "sqlite"];

/// Part of the store that a file belongs to; None for `store.rs`, which assembles the parts.
fn store_part(path: &str) -> Option<&str> {
    let part = path.strip_prefix("store/")?.split('/').next()?;
    Some(part.trim_end_matches(".rs"))
}

/// Reason why a file of the store may not use a part of the store; None if it may.
fn store_violation(path: &str, used: &str) -> Option<&'static str> {
    let part = store_part(path)?;
    let (is_engine, uses_engine) = (ENGINES.contains(&part), ENGINES.contains(&used));
    match (part, used) {
        _ if part == used => None,
        // The folder itself, as in `pub(in crate::store)`.
        (_, "" | "ports" | "error" | "codec") => None,
        // `sql` is the code that SQL engines share.
        ("sqlite" | "postgres", "sql") | ("sql", "sqlite" | "postgres") => None,
        _ if is_engine => Some("an engine uses ports and domain only"),
        // These assemble engines.
        ("shared" | "move_out" | "conformance" | "tests", _) => None,
        _ if uses_engine => Some("above the ports nothing knows an engine"),
        _ => None,
    }
}

/// Reason why a file may not use a path; None if it may. `path` starts at `src`; `used` starts
/// with `crate` or the name of a crate.
fn violation(path: &str, used: &[String]) -> Option<&'static str> {
    let module = path.split('/').next().unwrap_or_default();
    let module = module.trim_end_matches(".rs");
    let is_test = path
        .split('/')
        .any(|part| ["tests", "tests.rs"].contains(&part));
    let mut segments = used.iter().map(String::as_str);
    let first = segments.next()?;
    let mut next = || segments.next().unwrap_or_default();
    let (second, third) = (next(), next());
    match first {
        "crate" if second == module && module == "store" && is_test => None,
        "crate" if second == module && module == "store" => store_violation(path, third),
        "crate" if second == module => None,
        "crate" => match (module, second) {
            ("domain", _) => Some("domain uses only itself"),
            ("metrics", used) if used != "domain" => Some("metrics use domain only"),
            ("sink" | "store", "metrics") => None,
            ("sink", "telemetry") => None,
            ("sink" | "store", "gate") | ("store", "boot_time" | "secret_file") => None,
            ("store" | "sink" | "gate", used) if used != "domain" => {
                Some("store, sink and gate use domain only (store and sink also gate and metrics)")
            }
            ("onboarding" | "verify", used) if used != "domain" && !is_test => {
                Some("it uses domain only")
            }
            ("api", "worker" | "sink" | "app" | "cli") => {
                Some("api reaches delivery only through api::Delivery, which app implements")
            }
            ("worker", "api" | "watch" | "app" | "cli") => {
                Some("worker is reached only through api::Delivery, which app implements")
            }
            (module, "proto") if module != "api" => Some("the server's messages belong to api"),
            _ => None,
        },
        "tonic" | "tonic_health" | "tonic_prost" | "tonic_reflection" | "tonic_types" | "prost"
        | "prost_types" => (!["api", "proto"].contains(&module) && !is_test)
            .then_some("only api uses tonic and prost"),
        "sea_orm" | "sea_orm_migration" | "sqlx" => {
            let may_use = |part| ENGINES.contains(&part) || part == "conformance";
            let is_engine = store_part(path).is_some_and(may_use);
            (!(is_engine || module == "store" && is_test))
                .then_some("only the engines of store use the database")
        }
        "aws_lc_rs" => None,
        "aws_stand_in" => (!["cli", "sandbox"].contains(&module) && !is_test)
            .then_some("the stand-in is for the sandbox and tests"),
        "siem_client" => (!["cli", "publish", "sandbox"].contains(&module) && !is_test)
            .then_some("the service does not call itself"),
        sdk if sdk.starts_with("aws_") => {
            (module != "sink").then_some("only sink uses the AWS SDK")
        }
        "clap" => (!["config", "cli"].contains(&module)).then_some("only config and cli use clap"),
        "tokio" | "tokio_util" | "tokio_stream" => {
            (module == "domain").then_some("domain is pure: no IO, no clock, no tasks")
        }
        _ => None,
    }
}

fn violations(path: &str, source: &str) -> Vec<String> {
    let module = match path {
        "lib.rs" | "main.rs" => Vec::new(),
        _ => path
            .trim_end_matches(".rs")
            .split('/')
            .map(str::to_owned)
            .collect(),
    };
    let mut paths = Paths {
        module,
        found: Vec::new(),
    };
    paths.visit_file(&syn::parse_file(source).unwrap());
    let mut found: Vec<String> = paths
        .found
        .iter()
        .filter_map(|used| {
            let reason = violation(path, used)?;
            Some(format!("{path}: {}: {reason}", used.join("::")))
        })
        .collect();
    found.dedup();
    if path.ends_with("mod.rs") {
        found.push(format!("{path}: a module is a file beside its folder"));
    }
    found
}

/// Collects the paths that a file uses, also inside of macros.
struct Paths {
    /// Path of the visited module from the crate root.
    module: Vec<String>,
    found: Vec<Vec<String>>,
}

impl Paths {
    /// Adds a path, rewritten to start with `crate` if it leads into this crate.
    fn add(&mut self, mut path: Vec<String>) {
        let supers = path.iter().take_while(|part| *part == "super").count();
        let (replaced, base) = match path.first().map(String::as_str) {
            Some("crate" | "siem_relay") => (1, 0),
            Some("self") => (1, self.module.len()),
            Some("super") => (supers, self.module.len().saturating_sub(supers)),
            _ => return self.found.push(path),
        };
        let start = std::iter::once("crate".to_owned()).chain(self.module[..base].iter().cloned());
        path.splice(..replaced, start.collect::<Vec<_>>());
        self.found.push(path);
    }

    /// Adds a path outside of `use`, where a single word is a local name.
    fn add_joined(&mut self, path: Vec<String>) {
        if path.len() > 1 {
            self.add(path);
        }
    }

    fn add_use(&mut self, mut path: Vec<String>, tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(part) => {
                path.push(part.ident.to_string());
                self.add_use(path, &part.tree);
            }
            syn::UseTree::Name(syn::UseName { ident })
            | syn::UseTree::Rename(syn::UseRename { ident, .. }) => {
                path.push(ident.to_string());
                self.add(path);
            }
            syn::UseTree::Glob(_) => self.add(path),
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_use(path.clone(), tree);
                }
            }
        }
    }

    /// Adds words joined by `::`, since the arguments of a macro are not parsed.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(word) => {
                    if colons != 2 {
                        self.add_joined(std::mem::take(&mut path));
                    }
                    path.push(word.to_string());
                    colons = 0;
                }
                TokenTree::Punct(mark) if mark.as_char() == ':' => colons += 1,
                token => {
                    self.add_joined(std::mem::take(&mut path));
                    colons = 0;
                    if let TokenTree::Group(group) = token {
                        self.add_tokens(group.stream());
                    }
                }
            }
        }
        self.add_joined(path);
    }
}

impl<'a> Visit<'a> for Paths {
    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        self.add_use(Vec::new(), &item.tree);
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let parts = path.segments.iter().map(|part| part.ident.to_string());
        self.add_joined(parts.collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'a syn::Macro) {
        self.visit_path(&item.path);
        self.add_tokens(item.tokens.clone());
    }

    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }
}

/// Path within `src`, with slashes, and text of every Rust file.
fn files() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
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
fn no_module_crosses_a_border() {
    let files = files();
    assert!(files.len() > 50, "found only {} files", files.len());
    let found: Vec<String> = files
        .iter()
        .flat_map(|(path, source)| violations(path, source))
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn each_planted_violation_is_found() {
    for (path, source, used) in [
        ("worker/turn.rs", "use tonic::Status;", "tonic::Status"),
        (
            "domain/arn.rs",
            "fn f() { tokio::time::sleep(d); }",
            "tokio::time::sleep",
        ),
        (
            "api/events.rs",
            "use crate::{domain::x, worker::{Worker}};",
            "crate::worker::Worker",
        ),
        (
            "api.rs",
            "use super::worker::Worker;",
            "crate::worker::Worker",
        ),
        (
            "worker/lane.rs",
            "fn f() -> super::super::api::Api { g() }",
            "crate::api::Api",
        ),
        (
            "store.rs",
            "mod a { use super::super::sink; }",
            "crate::sink",
        ),
        (
            "onboarding/policy.rs",
            "use crate::config::Config;",
            "crate::config::Config",
        ),
        ("verify.rs", "use crate::sink::Sink;", "crate::sink::Sink"),
        ("watch.rs", "use sea_orm as db;", "sea_orm"),
        (
            "store/partition.rs",
            "use sea_orm::DbErr;",
            "sea_orm::DbErr",
        ),
        (
            "store/partition.rs",
            "use super::sqlite::Log;",
            "crate::store::sqlite::Log",
        ),
        (
            "store/sqlite/log.rs",
            "use super::super::partition::Owner;",
            "crate::store::partition::Owner",
        ),
        (
            "store/sqlite.rs",
            "use super::{Store, ports::EventLog};",
            "crate::store::Store",
        ),
        (
            "store/sql/registry.rs",
            "mod a { use super::super::super::memory; }",
            "crate::store::memory",
        ),
        (
            "sink/kinesis.rs",
            "use aws_stand_in::Control;",
            "aws_stand_in::Control",
        ),
        (
            "domain/event.rs",
            "use siem_client::v1::Event;",
            "siem_client::v1::Event",
        ),
        (
            "app.rs",
            "use { std::fmt, aws_config::Region };",
            "aws_config::Region",
        ),
        ("main.rs", "use siem_relay::proto::v1;", "crate::proto::v1"),
        (
            "telemetry.rs",
            "fn f() { m!(\"{}\", g(clap::Parser)) }",
            "clap::Parser",
        ),
    ] {
        let found = violations(path, source);
        let named = format!("{path}: {used}: ");
        assert!(
            found.len() == 1 && found[0].starts_with(&named),
            "{found:?} is not one about {used}"
        );
    }
    assert_eq!(violations("domain/mod.rs", "").len(), 1);
}

#[test]
fn allowed_uses_are_no_violation() {
    for (path, source) in [
        ("domain.rs", "const A: &str = \"tokio::x\"; // use sqlx::y;"),
        (
            "store/open.rs",
            "mod tests { use super::*; use super::super::read; }",
        ),
        ("telemetry.rs", "fn f() { builder.with_tonic(); }"),
        ("store/secret.rs", "use aws_lc_rs::aead::Aad;"),
        ("store.rs", "use self::{partition::Owner, sqlite::Sqlite};"),
        (
            "store/sqlite/log.rs",
            "use sea_orm::DbErr; use super::script; use super::super::{error, ports, sql};",
        ),
        (
            "store/sqlite/log/tests.rs",
            "use super::{super::script, *};",
        ),
        (
            "domain.rs",
            "#[cfg(test)] mod tests { use super::*; use crate::domain::x; }",
        ),
    ] {
        assert_eq!(violations(path, source), Vec::<String>::new());
    }
}
