//! Records that are refused for what they hold.

use std::sync::atomic::Ordering;

use http::StatusCode;

use super::{Effect, Faults};
use crate::{control::Operation, error::AwsError};

impl Faults {
    /// For each of the records, the code with which it is refused, if it is; an error
    /// where the request is.
    pub(crate) fn refuse_records<'a>(
        &self,
        operation: Operation,
        target: &str,
        records: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> Result<Vec<Option<String>>, AwsError> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Ok(Vec::new());
        }
        let mut refused: Vec<Option<String>> = vec![None; records.clone().count()];
        for set in &mut self.lock().set {
            let Effect::RefuseRecords {
                containing,
                code,
                whole,
            } = &set.fault.effect
            else {
                continue;
            };
            if !set.fault.concerns(operation, target) {
                continue;
            }
            let (code, whole) = (code.clone(), *whole);
            let holds = |data: &[u8]| {
                let mut windows = data.windows(containing.len());
                windows.any(|window| window == containing.as_bytes())
            };
            let held: Vec<bool> = records.clone().map(holds).collect();
            if !held.contains(&true) || !set.take_call() {
                continue;
            }
            if whole {
                let message = "A record is not acceptable.".to_owned();
                return Err(AwsError {
                    code: code.into(),
                    status: StatusCode::BAD_REQUEST,
                    message,
                });
            }
            for (refused, _) in refused.iter_mut().zip(held).filter(|(_, held)| *held) {
                refused.get_or_insert_with(|| code.clone());
            }
        }
        Ok(refused)
    }
}
