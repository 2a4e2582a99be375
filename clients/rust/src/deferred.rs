//! Events that were rejected temporarily, and those that must not precede them. No I/O and no
//! clock.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use tokio::time::{Duration, Instant};
use tonic::Status;

use super::{
    batch::{Batch, BatchLimits, Item},
    publish_loop::Deferral,
    window::Window,
};
use crate::v1::{ErrorReason, PublishResponse, Rejection};

/// The part of an answer that is final, and the temporary rejections.
#[derive(Debug)]
pub(super) struct Answer {
    /// Tags of the events that have their final answer.
    pub(super) tags: Vec<u64>,
    /// The answer without temporary rejections; indices are those of `tags`.
    pub(super) outcome: Result<PublishResponse, Status>,
    /// The temporary rejections, if there are any.
    pub(super) deferral: Option<Deferral>,
}

/// A device with deferred events. From its first temporary rejection on, at most one request
/// at a time carries events of it. Some of its events are in the window, or it is due.
#[derive(Debug, Default)]
struct Device {
    /// Events in the window.
    in_window: usize,
    /// Whether those in the window were sent again, so that they precede all deferred ones.
    resent: bool,
    /// Whether one of the events that were last in the window was rejected temporarily.
    rejected: bool,
    /// Whether one of them got its final answer.
    progress: bool,
    /// Attempts in a row without progress.
    failures: u32,
}

/// Devices with deferred events. All events of such a device are deferred, except those that
/// were in flight at its first temporary rejection.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    devices: HashMap<u64, Device>,
    /// Deferred events by device and order.
    events: BTreeMap<(u64, u64), Item>,
    /// Devices without events in the window, each with the time from which it may send.
    due: BTreeSet<(Instant, u64)>,
}

impl Deferred {
    pub(super) fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// Moves the new events of devices with deferred events behind these.
    pub(super) fn divert(&mut self, batch: &mut Batch) {
        if self.is_empty() {
            return;
        }
        for item in batch.extract(|item| self.devices.contains_key(&item.device)) {
            self.events.insert(item.key(), item);
        }
    }

    /// Takes the answered events of a request: those that were rejected temporarily are
    /// deferred. `wait` returns the wait after a number of failures in a row.
    pub(super) fn settle(
        &mut self,
        batch: Batch,
        outcome: Result<PublishResponse, Status>,
        window: &mut Window<Batch>,
        now: Instant,
        wait: impl Fn(u32) -> Duration,
    ) -> Answer {
        let (outcome, temporary) = match outcome {
            Ok(mut response) => {
                let temporary = response.rejections.extract_if(.., is_temporary).collect();
                (Ok(response), temporary)
            }
            Err(status) => (Err(status), Vec::new()),
        };
        let mut answer = Answer {
            tags: Vec::with_capacity(batch.items.len()),
            outcome,
            deferral: temporary.first().map(|first| Deferral {
                events: temporary.len(),
                message: first.message.clone(),
            }),
        };
        if self.is_empty() && temporary.is_empty() {
            answer.tags.extend(batch.items.iter().map(|item| item.tag));
            return answer;
        }
        for item in &batch.items {
            if let Some(device) = self.devices.get_mut(&item.device) {
                device.in_window -= 1;
            }
        }
        let mut rejected: Vec<u32> = temporary.iter().map(|each| each.index).collect();
        rejected.sort_unstable();
        if let Ok(response) = &mut answer.outcome {
            for rejection in &mut response.rejections {
                let index = rejection.index;
                rejection.index -= rejected.partition_point(|each| *each < index) as u32;
            }
        }
        let (mut touched, mut opened) = (BTreeSet::new(), HashSet::new());
        let mut is_rejected_again = false;
        for (index, item) in (0..).zip(batch.items) {
            touched.insert(item.device);
            if rejected.binary_search(&index).is_ok() {
                let device = self.devices.entry(item.device).or_insert_with(|| {
                    opened.insert(item.device);
                    Device::default()
                });
                device.rejected = true;
                // The second half of a request that was split must not precede it.
                is_rejected_again |= std::mem::take(&mut device.resent);
                self.events.insert(item.key(), item);
            } else {
                answer.tags.push(item.tag);
                if let Some(device) = self.devices.get_mut(&item.device) {
                    device.progress = true;
                }
            }
        }
        if !opened.is_empty() {
            for item in window.iter().flat_map(|batch| &batch.items) {
                if opened.contains(&item.device)
                    && let Some(device) = self.devices.get_mut(&item.device)
                {
                    device.in_window += 1;
                }
            }
        }
        if !opened.is_empty() || is_rejected_again {
            touched.append(&mut self.withdraw(window));
        }
        self.schedule(touched, now, wait);
        answer
    }

    /// Defers events that are not sent, or must be sent again, although earlier ones of their
    /// device are deferred. Must follow each [`Window::rewind`].
    pub(super) fn reclaim(
        &mut self,
        window: &mut Window<Batch>,
        now: Instant,
        wait: impl Fn(u32) -> Duration,
    ) {
        if !self.is_empty() {
            let touched = self.withdraw(window);
            self.schedule(touched, now, wait);
        }
    }

    /// Moves events that must not be sent out of the window. Returns their devices.
    fn withdraw(&mut self, window: &mut Window<Batch>) -> BTreeSet<u64> {
        let mut touched = BTreeSet::new();
        window.retain_unsent(|batch| {
            let must_wait = |item: &Item| {
                let device = self.devices.get(&item.device);
                device.is_some_and(|device| !device.resent)
            };
            for item in batch.extract(must_wait) {
                if let Some(device) = self.devices.get_mut(&item.device) {
                    device.in_window -= 1;
                }
                touched.insert(item.device);
                self.events.insert(item.key(), item);
            }
            !batch.items.is_empty()
        });
        touched
    }

    /// Decides when the devices that have no event in the window any more may send again.
    fn schedule(
        &mut self,
        touched: impl IntoIterator<Item = u64>,
        now: Instant,
        wait: impl Fn(u32) -> Duration,
    ) {
        for key in touched {
            let Some(device) = self
                .devices
                .get_mut(&key)
                .filter(|each| each.in_window == 0)
            else {
                continue;
            };
            if self
                .events
                .range((key, 0)..=(key, u64::MAX))
                .next()
                .is_none()
            {
                self.devices.remove(&key);
                continue;
            }
            if device.progress || !device.rejected {
                device.failures = 0;
            }
            let mut at = now;
            if device.rejected {
                at += wait(device.failures);
                device.failures = device.failures.saturating_add(1);
            }
            (device.resent, device.rejected, device.progress) = (false, false, false);
            self.due.insert((at, key));
        }
    }

    /// Returns the time from which the next device may send.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Returns the events of one request, in order per device; they count as in the window.
    /// `None` if no device is due.
    pub(super) fn take_due(&mut self, now: Instant, limits: BatchLimits) -> Option<Batch> {
        let mut batch = Batch::default();
        while let Some((at, key)) = self.due.first().copied()
            && at <= now
            && let Some(device) = self.devices.get_mut(&key)
        {
            let first = (key, 0);
            while let Some((order, next)) = self.events.range(first..=(key, u64::MAX)).next()
                && batch.has_capacity(next, limits)
            {
                let order = *order;
                let Some(item) = self.events.remove(&order) else {
                    break;
                };
                batch.add(item);
                device.in_window += 1;
            }
            if device.in_window == 0 {
                break;
            }
            device.resent = true;
            self.due.pop_first();
        }
        (!batch.items.is_empty()).then_some(batch)
    }
}

/// Whether the event is to be sent again. A reason that is not known is final.
fn is_temporary(rejection: &mut Rejection) -> bool {
    let reason = rejection.reason();
    matches!(reason, ErrorReason::Overloaded | ErrorReason::RateLimited)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    const LIMITS: BatchLimits = BatchLimits {
        max_events: 3,
        max_bytes: 1_000,
        linger: Duration::ZERO,
    };
    const WAIT: Duration = Duration::from_secs(1);

    /// A request with events of these devices and orders, of which the latter are the tags too.
    fn batch(keys: &[(u64, u64)]) -> Batch {
        let mut batch = Batch::default();
        for (device, order) in keys {
            batch.add(Item {
                event: vec![0; 10].into(),
                tag: *order,
                device: *device,
                organization: 0,
                order: *order,
                _permit: Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap(),
            });
        }
        batch
    }

    fn keys(batch: &Batch) -> Vec<(u64, u64)> {
        batch.items.iter().map(Item::key).collect()
    }

    /// Answers the oldest request with temporary rejections of these indices.
    fn settle(deferred: &mut Deferred, window: &mut Window<Batch>, rejected: &[u32]) -> Answer {
        let rejections = rejected.iter().map(|index| Rejection {
            index: *index,
            reason: match index % 2 {
                0 => ErrorReason::Overloaded.into(),
                _ => ErrorReason::RateLimited.into(),
            },
            ..Rejection::default()
        });
        let response = PublishResponse {
            rejections: rejections.collect(),
            ..PublishResponse::default()
        };
        let batch = window.pop().unwrap();
        let wait = |failures| WAIT * 2_u32.pow(failures);
        deferred.settle(batch, Ok(response), window, Instant::now(), wait)
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_are_not_sent_keep_the_events_of_other_devices_only() {
        let (mut deferred, mut window) = (Deferred::default(), Window::new(8));
        window.push(batch(&[(1, 1), (2, 2)]));
        window.push(batch(&[(1, 3)]));
        window.push(batch(&[(1, 4), (2, 5)]));
        window.send_next();
        let answer = settle(&mut deferred, &mut window, &[0]);
        assert_eq!(answer.tags, [2]);
        assert_eq!(window.iter().map(keys).collect::<Vec<_>>(), [[(2, 5)]]);
        assert!(deferred.take_due(Instant::now(), LIMITS).is_none());
        tokio::time::advance(WAIT).await;
        let due = deferred.take_due(Instant::now(), LIMITS).unwrap();
        assert_eq!(keys(&due), [(1, 1), (1, 3), (1, 4)]);
        window.push(due);
        settle(&mut deferred, &mut window, &[]);
        settle(&mut deferred, &mut window, &[]);
        assert!(deferred.is_empty() && window.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_disconnect_defers_what_was_in_flight_behind_a_rejected_event() {
        let (mut deferred, mut window) = (Deferred::default(), Window::new(8));
        for order in 1..=3 {
            window.push(batch(&[(1, order)]));
            window.send_next();
        }
        settle(&mut deferred, &mut window, &[0]);
        assert_eq!(window.in_flight(), 2);
        window.rewind();
        deferred.reclaim(&mut window, Instant::now(), |_| WAIT);
        assert!(window.is_empty());
        let at = deferred.next_due().unwrap();
        assert_eq!(at, Instant::now() + WAIT);
        let due = deferred.take_due(at, LIMITS).unwrap();
        let all = [(1, 1), (1, 2), (1, 3)];
        assert_eq!(keys(&due), all);
        window.push(due);
        window.send_next();
        window.rewind();
        deferred.reclaim(&mut window, Instant::now(), |_| WAIT);
        let kept: Vec<_> = window.iter().map(keys).collect();
        assert_eq!(
            kept,
            [all],
            "nothing precedes the events that are sent again"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_half_of_a_split_request_waits_for_the_first() {
        let (mut deferred, mut window) = (Deferred::default(), Window::new(8));
        window.push(batch(&[(1, 1), (1, 2)]));
        window.send_next();
        settle(&mut deferred, &mut window, &[0, 1]);
        let at = deferred.next_due().unwrap();
        window.push(deferred.take_due(at, LIMITS).unwrap());
        window.send_next();
        assert!(window.split_front(Batch::split));
        window.rewind();
        deferred.reclaim(&mut window, at, |_| WAIT);
        window.send_next();
        settle(&mut deferred, &mut window, &[0]);
        assert!(window.is_empty(), "event 2 would overtake event 1");
        let at = deferred.next_due().unwrap();
        let due = deferred.take_due(at, LIMITS).unwrap();
        assert_eq!(keys(&due), [(1, 1), (1, 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_is_not_due_while_it_has_events_in_flight_and_waits_grow() {
        let (mut deferred, mut window) = (Deferred::default(), Window::new(8));
        for order in 1..=2 {
            window.push(batch(&[(1, order)]));
            window.send_next();
        }
        let start = Instant::now();
        settle(&mut deferred, &mut window, &[0]);
        assert_eq!(deferred.next_due(), None, "event 2 could be rejected too");
        settle(&mut deferred, &mut window, &[0]);
        assert_eq!(deferred.next_due(), Some(start + WAIT));
        for failures in 1..5 {
            let at = deferred.next_due().unwrap();
            window.push(deferred.take_due(at, LIMITS).unwrap());
            settle(&mut deferred, &mut window, &[0, 1]);
            assert_eq!(
                deferred.next_due(),
                Some(start + WAIT * 2_u32.pow(failures))
            );
        }
        let at = deferred.next_due().unwrap();
        window.push(deferred.take_due(at, LIMITS).unwrap());
        settle(&mut deferred, &mut window, &[1]);
        assert_eq!(deferred.next_due(), Some(start + WAIT), "after progress");
    }
}
