//! Proves from a stream's records that nothing is missing: what `siem-relay verify`
//! does. Pure; whoever calls it brings the records.
//!
//! ```text
//! files ──bytes──▶ Intake (framer, wrapper) ──records──┐
//!                                                      ▼
//! GetRecords ─────────────records───────────────────▶ Audit ──▶ Report
//! ```

mod audit;
mod event;
mod framer;
mod intake;
mod integration;
mod prints;
mod report;
mod sequences;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod text;
mod wrapper;

pub use audit::{Audit, Expectation, First};
pub use intake::Intake;
pub use report::{
    ForeignRecord, GapReport, Gaps, Holes, IntegrationReport, LateEvent, Listed, MalformedRecord,
    OutOfOrder, Range, Report, UnderstatedRange, Verdict,
};
