//! The memory log with the model of a ledger, as an engine of the suites.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use proptest::prelude::*;
use tokio::runtime::Builder;

use super::{
    Checked, Damage, Engine, Harness, Ports, conforms, ledger,
    oracle::{Model, Oracle},
};
use crate::{
    domain::integration::IntegrationId,
    store::{
        memory::{Fault, Image, MemoryLog},
        ports::Partition,
    },
};

/// Makes engines in memory.
#[derive(Clone, Copy)]
pub(super) struct Memory {
    /// Number of partitions.
    pub(super) partitions: Partition,
    /// Largest distance of consecutive positions.
    pub(super) max_step: u64,
}

/// Dense positions in one partition, as the embedded engine has.
pub(super) const DENSE: Memory = Memory {
    partitions: 1,
    max_step: 1,
};

struct MemoryEngine {
    memory: Memory,
    image: Image,
    model: Arc<Mutex<Model>>,
    log: Arc<MemoryLog>,
}

impl Memory {
    fn engine(self) -> MemoryEngine {
        let image = Image::new(self.partitions, self.max_step);
        MemoryEngine {
            memory: self,
            log: Arc::new(MemoryLog::open(image.clone())),
            image,
            model: Arc::default(),
        }
    }
}

#[async_trait]
impl Harness for Memory {
    async fn create(&self) -> Checked<Box<dyn Engine>> {
        Ok(Box::new(self.engine()))
    }
}

impl MemoryEngine {
    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Engine for MemoryEngine {
    fn ports(&self) -> Ports {
        let oracle = Arc::new(Oracle::open(self.model.clone(), self.memory.partitions));
        Ports {
            log: self.log.clone(),
            ledger: oracle.clone(),
            acquire: oracle,
        }
    }

    async fn crash(&mut self) -> Checked {
        self.log.kill();
        self.log = Arc::new(MemoryLog::open(self.image.clone()));
        Ok(())
    }

    async fn add_integration(&self, id: IntegrationId, partition: Partition) -> Checked {
        self.model().integrations.insert(id, partition);
        Ok(())
    }

    async fn delete_integration(&self, id: IntegrationId) -> Checked {
        self.model().integrations.remove(&id);
        Ok(())
    }

    async fn damage(&mut self, damage: Damage) -> Checked<bool> {
        match damage {
            Damage::Payload(partition, position) => self.image.damage_payload(partition, position),
            Damage::Header(partition, position) => self.image.damage_header(partition, position),
            Damage::Lost(partition, position) => self.image.lose(partition, position),
            Damage::Recreated(partition) => self.image.recreate(partition),
            Damage::Backlog(id, first_sequence) => {
                self.model().damaged.insert((id, first_sequence));
            }
            Damage::PositionsForgotten => self.image.forget_positions(),
        }
        Ok(!matches!(damage, Damage::Lost(..)) || self.memory.max_step == 1)
    }

    fn inject(&self, fault: Fault) -> bool {
        self.image.inject(fault);
        true
    }
}

#[tokio::test(start_paused = true)]
async fn the_memory_log_conforms() {
    for (partitions, max_step) in [(1, 1), (1, 3), (3, 2)] {
        let memory = Memory {
            partitions,
            max_step,
        };
        let result = conforms(&memory, 10).await;
        assert_eq!(
            result,
            Ok(()),
            "{partitions} partitions, steps up to {max_step}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// A failure is reduced to the fewest steps.
    #[test]
    fn random_operations_conform(seed: u64, steps in 1..60_usize) {
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
        let result = runtime.unwrap().block_on(ledger::random(&DENSE, seed, steps));
        prop_assert_eq!(result, Ok(()));
    }
}
