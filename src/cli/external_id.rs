//! `siem-relay external-id`: prints a new random external ID.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use aws_lc_rs::{
    error::Unspecified,
    rand::{SecureRandom as _, SystemRandom},
};

use super::report_error;

/// Prints a new external ID.
pub(super) fn run() -> ExitCode {
    let id = match generate() {
        Ok(id) => id,
        Err(error) => {
            report_error("the system gave no random bytes", &error);
            return ExitCode::FAILURE;
        }
    };
    match writeln!(io::stdout(), "{id}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report_error("cannot print", &error);
            ExitCode::FAILURE
        }
    }
}

/// 256 random bits as 64 hexadecimal characters.
pub(super) fn generate() -> Result<String, Unspecified> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes)?;
    Ok(hex::encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Keyring;

    #[test]
    fn generates_a_different_key_of_64_hexadecimal_characters_each_time() {
        let (one, other) = (generate().unwrap(), generate().unwrap());
        assert_ne!(one, other);
        for id in [one, other] {
            assert!(Keyring::parse(&id).is_ok());
            assert_eq!(id, id.to_lowercase());
        }
    }
}
