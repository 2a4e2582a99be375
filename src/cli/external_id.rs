//! `external-id`: a fresh one, from the operating system's random numbers.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use aws_lc_rs::{
    error::Unspecified,
    rand::{SecureRandom as _, SystemRandom},
};

use super::complain;

/// Prints a fresh external ID.
pub(super) fn run() -> ExitCode {
    let id = match fresh() {
        Ok(id) => id,
        Err(error) => {
            complain("there are no random numbers", &error);
            return ExitCode::FAILURE;
        }
    };
    match writeln!(io::stdout(), "{id}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain("cannot print", &error);
            ExitCode::FAILURE
        }
    }
}

/// 256 random bits as 64 hexadecimal characters.
pub(super) fn fresh() -> Result<String, Unspecified> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes)?;
    Ok(hex::encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ExternalIdKey;

    #[test]
    fn is_64_hexadecimal_characters_and_new_each_time() {
        let (one, other) = (fresh().unwrap(), fresh().unwrap());
        assert_ne!(one, other);
        for id in [one, other] {
            assert!(ExternalIdKey::from_hex(&id).is_some());
            assert_eq!(id, id.to_lowercase());
        }
    }
}
