//! Where values come from: flags, environment and file, gathered as text by name.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use super::{
    Setting,
    nearest::nearest,
    problem::{Origin, Problem},
    settings,
};

/// The flag that names the configuration file.
pub const CONFIG_FLAG: &str = "config";
/// The environment variable that names the configuration file.
pub const CONFIG_VARIABLE: &str = "SIEM_RELAY_CONFIG";

const PREFIX: &str = "SIEM_RELAY_";

/// What a [`super::Config`] is read from.
#[derive(Default)]
pub struct Sources {
    /// The configuration file that a flag names.
    pub file: Option<PathBuf>,
    /// Settings by name, as flags give them.
    pub flags: Vec<(String, String)>,
    /// The environment.
    pub environment: Vec<(OsString, OsString)>,
}

/// The text of a setting and where it came from. It may be a secret, so it does not
/// print.
pub(super) struct Value {
    pub text: String,
    pub origin: Origin,
}

/// All that was given, by the name of the setting; the strongest source won.
pub(super) struct Given(BTreeMap<&'static str, Value>);

impl Given {
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    pub(super) fn origin(&self, name: &str) -> Origin {
        self.get(name)
            .map_or(Origin::Default, |value| value.origin.clone())
    }

    /// Reads every source, the weakest first, so that the stronger overwrite.
    pub(super) fn gather(sources: Sources, problems: &mut Vec<Problem>) -> Self {
        let known = settings();
        let mut given = Self(BTreeMap::new());
        let (environment, file_by_variable) = own_variables(sources.environment, problems);
        if let Some(path) = sources.file.or(file_by_variable) {
            given.take_file(&path, &known, problems);
        }
        given.take_environment(environment, &known, problems);
        given.take_flags(sources.flags, &known, problems);
        given
    }

    fn take_flags(
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

    fn take_environment(
        &mut self,
        variables: Vec<(String, Option<String>)>,
        known: &[Setting],
        problems: &mut Vec<Problem>,
    ) {
        for (variable, text) in variables {
            let setting = known.iter().find(|setting| setting.variable() == variable);
            let what = match (setting, text) {
                (Some(setting), Some(text)) => {
                    self.put(setting, text, Origin::Environment);
                    continue;
                }
                (Some(_), None) => "is not UTF-8; set it to plain text".to_owned(),
                (None, _) => unknown_variable(&variable, known),
            };
            problems.push(Problem::new(&variable, Origin::Environment, what));
        }
    }

    fn take_file(&mut self, path: &Path, known: &[Setting], problems: &mut Vec<Problem>) {
        let origin = Origin::File(path.to_owned());
        let table = match read_table(path) {
            Ok(table) => table,
            Err(what) => {
                problems.push(Problem::new("the settings", origin, what));
                return;
            }
        };
        for (key, value) in table {
            let name = key.replace('_', "-");
            let what = match known.iter().find(|setting| setting.name == name) {
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
                    Err(what) => what,
                },
            };
            problems.push(Problem::new(&key, origin.clone(), what));
        }
    }

    fn put(&mut self, setting: &Setting, text: String, origin: Origin) {
        self.0.insert(setting.name, Value { text, origin });
    }
}

/// The environment variable that sets the setting `name`; a variable's own name
/// stays as it is.
pub(super) fn variable_of(name: &str) -> String {
    if name.starts_with(PREFIX) {
        return name.to_owned();
    }
    format!("{PREFIX}{}", name.replace('-', "_").to_uppercase())
}

/// The variables that are ours, and the configuration file that one of them names.
/// A value that is not UTF-8 comes as `None`.
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
                    "is empty; give the path of a file, or unset it",
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

/// Kubernetes sets variables named after each Service, so a Service `siem-relay`
/// gives `SIEM_RELAY_SERVICE_HOST`, `SIEM_RELAY_PORT_50051_TCP` and more
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

/// The file as TOML. A syntax error is told by line and column, without the line's
/// text, which may hold a secret.
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
            "are not TOML at line {line}, column {column}: {}; mend that line",
            error.message()
        )
    })
}

fn scalar(value: toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Boolean(yes) => Ok(yes.to_string()),
        other => Err(format!(
            "is of TOML type {}; give a string, an integer or a boolean",
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
        "is a secret and may only come from the environment; set {} instead",
        setting.variable()
    )
}

/// The prefix is left out of the comparison, or every short name would be near.
fn unknown_variable(variable: &str, known: &[Setting]) -> String {
    let bare = |name: &str| name.trim_start_matches(PREFIX).to_owned();
    let candidates: Vec<String> = known
        .iter()
        .map(|setting| bare(&setting.variable()))
        .chain([bare(CONFIG_VARIABLE)])
        .collect();
    match nearest(&bare(variable), candidates.iter().map(String::as_str)) {
        Some(candidate) => {
            format!("is no setting; did you mean {PREFIX}{candidate}? if not, unset it")
        }
        None => "is no setting; unset it, or see siem-relay serve --help".to_owned(),
    }
}

fn unknown<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    match nearest(name, candidates) {
        Some(candidate) => format!("is no setting; did you mean {candidate}? if not, remove it"),
        None => "is no setting; remove it, or see siem-relay serve --help".to_owned(),
    }
}
