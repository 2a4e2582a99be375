//! Collects the texts of all settings from flags, environment and file.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use super::{Origin, Problem, Setting, settings};

/// The flag that names the configuration file.
pub const CONFIG_FLAG: &str = "config";
/// The environment variable that names the configuration file.
pub const CONFIG_VARIABLE: &str = "SIEM_RELAY_CONFIG";

const PREFIX: &str = "SIEM_RELAY_";

/// Inputs of [`Config::load`](super::Config::load).
#[derive(Default)]
pub struct Sources {
    /// The configuration file named by a flag.
    pub file: Option<PathBuf>,
    /// Names and values of the flags.
    pub flags: Vec<(String, String)>,
    /// The environment.
    pub environment: Vec<(OsString, OsString)>,
}

/// Text of a setting and its origin. It may be a secret, so the type has no `Debug`.
pub(super) struct RawValue {
    pub text: String,
    pub origin: Origin,
}

/// The given settings by name, each from the source with the highest priority.
pub(super) struct RawValues(BTreeMap<&'static str, RawValue>);

impl RawValues {
    pub(super) fn get(&self, name: &str) -> Option<&RawValue> {
        self.0.get(name)
    }

    pub(super) fn origin(&self, name: &str) -> Origin {
        self.get(name)
            .map_or(Origin::Default, |value| value.origin.clone())
    }

    /// Reads the sources in ascending priority, so that later ones overwrite earlier ones.
    pub(super) fn collect(sources: Sources, problems: &mut Vec<Problem>) -> Self {
        let known = settings();
        let mut values = Self(BTreeMap::new());
        let (environment, file_by_variable) = own_variables(sources.environment, problems);
        if let Some(path) = sources.file.or(file_by_variable) {
            values.add_file(&path, &known, problems);
        }
        values.add_environment(environment, &known, problems);
        values.add_flags(sources.flags, &known, problems);
        values
    }

    fn add_flags(
        &mut self,
        flags: Vec<(String, String)>,
        known: &[Setting],
        problems: &mut Vec<Problem>,
    ) {
        for (name, text) in flags {
            match known.iter().find(|setting| setting.name == name) {
                Some(setting) if setting.is_secret => {
                    problems.push(Problem::new(&name, Origin::Flag, environment_only(setting)));
                }
                Some(setting) => self.put(setting, text, Origin::Flag),
                None => problems.push(Problem::new(
                    &name,
                    Origin::Flag,
                    unknown(&name, names(known)),
                )),
            }
        }
    }

    fn add_environment(
        &mut self,
        variables: Vec<(String, Option<String>)>,
        known: &[Setting],
        problems: &mut Vec<Problem>,
    ) {
        for (variable, text) in variables {
            let setting = known.iter().find(|setting| setting.variable() == variable);
            let message = match (setting, text) {
                (Some(setting), Some(text)) => {
                    self.put(setting, text, Origin::Environment);
                    continue;
                }
                (Some(_), None) => "is not UTF-8; set it to plain text".to_owned(),
                (None, _) => unknown_variable(&variable, known),
            };
            problems.push(Problem::new(&variable, Origin::Environment, message));
        }
    }

    fn add_file(&mut self, path: &Path, known: &[Setting], problems: &mut Vec<Problem>) {
        let origin = Origin::File(path.to_owned());
        let table = match read_table(path) {
            Ok(table) => table,
            Err(message) => {
                problems.push(Problem::new("the settings", origin, message));
                return;
            }
        };
        for (key, value) in table {
            let name = key.replace('_', "-");
            let message = match known.iter().find(|setting| setting.name == name) {
                None => unknown(&name, names(known)),
                Some(setting) if setting.is_secret => environment_only(setting),
                Some(setting) if self.0.contains_key(setting.name) => {
                    "is given twice, with hyphens and with underscores; keep one".to_owned()
                }
                Some(setting) => match scalar(value) {
                    Ok(text) => {
                        self.put(setting, text, origin.clone());
                        continue;
                    }
                    Err(message) => message,
                },
            };
            problems.push(Problem::new(&key, origin.clone(), message));
        }
    }

    fn put(&mut self, setting: &Setting, text: String, origin: Origin) {
        self.0.insert(setting.name, RawValue { text, origin });
    }
}

/// Environment variable of the setting `name`. A name that is a variable already is returned
/// unchanged.
pub(super) fn variable_of(name: &str) -> String {
    if name.starts_with(PREFIX) {
        return name.to_owned();
    }
    format!("{PREFIX}{}", name.replace('-', "_").to_uppercase())
}

/// The variables with our prefix, and the configuration file that one of them names. A value
/// that is not UTF-8 is `None`.
fn own_variables(
    environment: Vec<(OsString, OsString)>,
    problems: &mut Vec<Problem>,
) -> (Vec<(String, Option<String>)>, Option<PathBuf>) {
    let mut own = Vec::new();
    let mut file = None;
    for (name, value) in environment {
        let Ok(name) = name.into_string() else {
            continue;
        };
        if name == CONFIG_VARIABLE {
            if value.is_empty() {
                problems.push(Problem::new(
                    &name,
                    Origin::Environment,
                    "is empty; give the path of a file, or unset the variable",
                ));
            } else {
                file = Some(PathBuf::from(value));
            }
        } else if name.starts_with(PREFIX) && !is_service_link(&name) {
            own.push((name, value.into_string().ok()));
        }
    }
    own.sort_unstable();
    (own, file)
}

/// Whether Kubernetes set the variable. It sets variables named after each Service: for a
/// Service `siem-relay`, `SIEM_RELAY_SERVICE_HOST`, `SIEM_RELAY_PORT_50051_TCP` and more
/// (Kubernetes documentation, Service, "Environment variables").
fn is_service_link(name: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name
            .split("_PORT_")
            .skip(1)
            .any(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
}

/// Reads the file as TOML. A syntax error is reported by line and column, without the text
/// of the line, which may contain a secret.
fn read_table(path: &Path) -> Result<toml::Table, String> {
    let text = fs::read_to_string(path)
        .map_err(|error| format!("cannot be read: {error}; give a readable TOML file"))?;
    text.parse().map_err(|error: toml::de::Error| {
        let offset = error.span().map_or(0, |span| span.start.min(text.len()));
        let before = &text.as_bytes()[..offset];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = before
            .iter()
            .rev()
            .take_while(|byte| **byte != b'\n')
            .count()
            + 1;
        format!(
            "are not valid TOML at line {line}, column {column}: {}; correct that line",
            error.message()
        )
    })
}

fn scalar(value: toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Boolean(value) => Ok(value.to_string()),
        other => Err(format!(
            "has the TOML type {}; give a string, an integer or a boolean",
            other.type_str()
        )),
    }
}

fn names(known: &[Setting]) -> impl Iterator<Item = &str> {
    known
        .iter()
        .filter(|setting| !setting.is_secret)
        .map(|setting| setting.name)
}

fn environment_only(setting: &Setting) -> String {
    format!(
        "is a secret, which is accepted only from the environment; set {} instead",
        setting.variable()
    )
}

/// Message about an unknown variable. Names are compared without their prefix, which would
/// make every short name similar.
fn unknown_variable(variable: &str, known: &[Setting]) -> String {
    let without_prefix = |name: &str| name.trim_start_matches(PREFIX).to_owned();
    let candidates: Vec<String> = known
        .iter()
        .map(|setting| without_prefix(&setting.variable()))
        .chain([without_prefix(CONFIG_VARIABLE)])
        .collect();
    match nearest(
        &without_prefix(variable),
        candidates.iter().map(String::as_str),
    ) {
        Some(candidate) => {
            format!("is not a setting; did you mean {PREFIX}{candidate}? If not, unset it")
        }
        None => "is not a setting; unset it, or see siem-relay serve --help".to_owned(),
    }
}

fn unknown<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    match nearest(name, candidates) {
        Some(candidate) => format!("is not a setting; did you mean {candidate}? If not, remove it"),
        None => "is not a setting; remove it, or see siem-relay serve --help".to_owned(),
    }
}

/// Returns the candidate with the smallest edit distance to `name`, if that is small enough
/// for a typing error.
pub(super) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}
