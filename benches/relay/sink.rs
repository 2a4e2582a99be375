//! The stand-in for STS and Kinesis that takes everything and looks at as little as it
//! can: it counts records, and reads from each when it was sent.

mod answers;
mod connection;
mod ledger;
mod stamp;

use std::{cell::RefCell, rc::Rc};

use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, sync::Notify, task::LocalSet};

use self::{answers::Answers, ledger::Ledger, stamp::Stamps};
use super::{
    Failure,
    process::Orders,
    stats::{Latency, Samples, now_nanos},
};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// How long each PutRecords takes.
    pub delay_ms: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Counts anew.
    Reset { watch: Watch },
    /// Answers with a [`Tally`] once so many records have come.
    Until { records: u64 },
    /// Refuses writes as an internal failure, or takes them again.
    Refuse { refuse: bool },
}

/// What is looked at beyond counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Watch {
    Nothing,
    /// When each record was sent.
    Times,
    /// Which record it is.
    Identities,
}

/// What has come since the last reset.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    pub records: u64,
    pub requests: u64,
    /// Of PutRecords' bodies.
    pub bytes: u64,
    pub assumed_roles: u64,
    pub last_nanos: u64,
    pub latency: Latency,
    /// Records that were watched for their identities and came once.
    pub distinct: u64,
}

struct State {
    tally: Tally,
    watch: Watch,
    refuse: bool,
    delay_ms: u64,
    answers: Answers,
    stamps: Stamps,
    samples: Samples,
    ledger: Ledger,
}

impl State {
    fn reset(&mut self, watch: Watch) {
        self.tally = Tally::default();
        self.watch = watch;
        self.samples = Samples::default();
        self.ledger = Ledger::default();
    }

    fn tally(&mut self) -> Tally {
        Tally {
            latency: self.samples.take(),
            distinct: self.ledger.distinct(),
            ..self.tally
        }
    }

    /// Takes in the body of a PutRecords, and tells of how many records it was.
    fn take(&mut self, body: &[u8]) -> usize {
        let now = now_nanos();
        let records = stamp::records(body, |data| match self.watch {
            Watch::Nothing => {}
            Watch::Times => {
                if let Some(sent) = self.stamps.read(data) {
                    self.samples.add(sent, now);
                }
            }
            Watch::Identities => self.ledger.add(data),
        });
        self.tally.records += records as u64;
        self.tally.requests += 1;
        self.tally.bytes += body.len() as u64;
        self.tally.last_nanos = now;
        records
    }
}

type Shared = Rc<(RefCell<State>, Notify)>;

/// Tells its address first.
pub fn run(plan: Plan) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, serve(plan))
}

async fn serve(plan: Plan) -> Result<(), Failure> {
    let shared: Shared = Rc::new((
        RefCell::new(State {
            tally: Tally::default(),
            watch: Watch::Nothing,
            refuse: false,
            delay_ms: plan.delay_ms,
            answers: Answers::default(),
            stamps: Stamps::default(),
            samples: Samples::default(),
            ledger: Ledger::default(),
        }),
        Notify::new(),
    ));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut orders = Orders::new();
    orders.answer(&listener.local_addr()?).await?;
    tokio::task::spawn_local(accept(listener, Rc::clone(&shared)));
    while let Some(order) = orders.next().await? {
        obey(order, &shared, &mut orders).await?;
    }
    Ok(())
}

async fn accept(listener: TcpListener, shared: Shared) {
    while let Ok((stream, _)) = listener.accept().await {
        let _no_delay = stream.set_nodelay(true);
        let shared = Rc::clone(&shared);
        tokio::task::spawn_local(async move {
            // The peer closes as it likes.
            let _closed = connection::serve(stream, shared).await;
        });
    }
}

async fn obey(order: Order, shared: &Shared, orders: &mut Orders) -> Result<(), Failure> {
    let (state, came) = &**shared;
    match order {
        Order::Reset { watch } => state.borrow_mut().reset(watch),
        Order::Refuse { refuse } => state.borrow_mut().refuse = refuse,
        Order::Until { records } => loop {
            let more = came.notified();
            if state.borrow().tally.records >= records {
                break;
            }
            more.await;
        },
    }
    let tally = state.borrow_mut().tally();
    orders.answer(&tally).await
}
