//! The floor of taking events, and a loader of its own.

use super::{Failure, Size};
use crate::{
    intake::{Plan, Ready},
    loader,
    process::Child,
    report::IntakeRun,
    workload::Workload,
};

pub struct Intake {
    process: Child,
    loader: Child,
    _folder: tempfile::TempDir,
}

impl Intake {
    pub async fn start(workload: &Workload, size: &Size) -> Result<Self, Failure> {
        let folder = tempfile::tempdir_in(&size.data_dir)?;
        let plan = Plan {
            folder: folder.path().to_owned(),
        };
        let mut process = Child::start("intake", &plan)?;
        let Ready { address } = process.answer().await?;
        let workload = workload.clone();
        let mut loader = Child::start("loader", &loader::Plan { address, workload })?;
        let _ready: loader::Ready = loader.answer().await?;
        Ok(Self {
            process,
            loader,
            _folder: folder,
        })
    }

    pub async fn run(&mut self, order: loader::Order) -> Result<IntakeRun, Failure> {
        let before = self.process.usage()?;
        let sent: loader::Sent = self.loader.ask(&order).await?;
        let after = self.process.usage()?;
        if sent.accepted == 0 || sent.rejected + sent.unconfigured > 0 {
            return Err(format!("the intake did not take all events: {sent:?}").into());
        }
        let events = sent.accepted as f64;
        let seconds = sent.last_nanos.saturating_sub(sent.first_nanos) as f64 / 1e9;
        Ok(IntakeRun {
            events_per_second: events / seconds,
            cpu_per_million: (after.cpu_seconds - before.cpu_seconds) / (events / 1e6),
            ack: sent.ack,
        })
    }
}
