//! Where the external ID comes from.

use std::{
    ffi::OsString,
    io::{self, BufRead as _, Read as _},
};

use clap::Args;

use crate::{cli::external_id::fresh, domain::external_id::ExternalId, onboarding::Problem};

/// Holds an external ID where no flag names one.
pub(super) const VARIABLE: &str = "SIEM_RELAY_ONBOARDING_EXTERNAL_ID";

/// More than the longest external ID, with its line break.
const MAX_LINE_LENGTH: u64 = 4_096;

/// It may hold a secret, so it does not print.
#[derive(Args, Default)]
pub(super) struct Given {
    /// The external ID. Other users of this machine can see it on the command line.
    #[arg(long, value_name = "SECRET")]
    external_id: Option<String>,
    /// Read the external ID from the first line of standard input.
    #[arg(long)]
    external_id_stdin: bool,
    /// Make a new external ID and show it once, on stderr.
    #[arg(long)]
    generate_external_id: bool,
}

/// What came of it.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) id: Option<ExternalId>,
    /// Whether it was made just now.
    pub(super) is_new: bool,
}

impl Given {
    /// Takes it from the one place that was named, else from the variable.
    pub(super) fn take(
        self,
        is_required: bool,
        variable: Option<OsString>,
    ) -> Result<Taken, Problem> {
        let places = [
            self.external_id.is_some(),
            self.external_id_stdin,
            self.generate_external_id,
        ];
        if places.into_iter().filter(|named| *named).count() > 1 {
            return problem(
                "external-id",
                "give one of --external-id, --external-id-stdin and --generate-external-id",
            );
        }
        let is_new = self.generate_external_id;
        let id = if let Some(text) = self.external_id {
            Some(parsed("external-id", text)?)
        } else if self.external_id_stdin {
            Some(parsed("external-id-stdin", first_line()?)?)
        } else if is_new {
            Some(generated()?)
        } else {
            variable.map(from_variable).transpose()?.flatten()
        };
        if id.is_none() && is_required {
            let what = format!(
                "is required for the trust policy: give it through --external-id-stdin or {VARIABLE}, or let --generate-external-id make one"
            );
            return problem("external-id", what);
        }
        Ok(Taken { id, is_new })
    }
}

fn parsed(field: &'static str, text: String) -> Result<ExternalId, Problem> {
    ExternalId::parse(text).or_else(|error| problem(field, error.to_string()))
}

fn first_line() -> Result<String, Problem> {
    let mut line = String::new();
    let mut input = io::stdin().lock().take(MAX_LINE_LENGTH);
    if let Err(error) = input.read_line(&mut line) {
        return problem("external-id-stdin", format!("cannot be read: {error}"));
    }
    let length = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(length);
    Ok(line)
}

fn generated() -> Result<ExternalId, Problem> {
    match fresh() {
        Ok(text) => parsed("generate-external-id", text),
        Err(_) => problem("generate-external-id", "there are no random numbers"),
    }
}

/// An empty variable is as good as none.
fn from_variable(value: OsString) -> Result<Option<ExternalId>, Problem> {
    let told = |what: String| problem("external-id", format!("the variable {VARIABLE} {what}"));
    match value.into_string() {
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => ExternalId::parse(text)
            .map(Some)
            .or_else(|error| told(error.to_string())),
        Err(_) => told("is not text".to_owned()),
    }
}

fn problem<T>(field: &'static str, what: impl Into<String>) -> Result<T, Problem> {
    let what = what.into();
    Err(Problem { field, what })
}
