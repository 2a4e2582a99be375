//! Proof from a stream's records that nothing is missing, for `siem-relay verify`. Pure; the
//! caller reads the files and the stream.
//!
//! ```text
//! files ──bytes──▶ Intake (framer) ──records──┐
//!                                             ▼
//! GetRecords ─────────records──────────────▶ Audit ──▶ Report
//! ```

mod audit;
mod event;
mod framer;
mod intake;
mod integration;
mod report;
mod sequences;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use audit::{Audit, Expectation, Start};
pub use intake::Intake;
pub use report::{
    ForeignRecord, GapRange, GapReport, Gaps, Holes, IntegrationReport, LateEvent, Listed,
    MalformedRecord, OutOfOrder, Range, Report, Verdict,
};
