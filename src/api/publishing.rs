//! Events in: decode, check, and hand over to the log.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use bytes::Bytes;

use super::{convert, errors::ApiError, event_decoder::decode_event, request_body::Room};
use crate::{
    domain::{
        event::{Format, Rejection},
        integration::IntegrationKey,
        map::Map,
        segment::Segments,
    },
    proto::v1,
    store::Store,
};

/// Events that one request may hold.
pub const MOST_EVENTS: usize = 1000;
/// Bytes of events that one request may hold.
pub const MOST_BYTES: usize = 4 << 20;

/// Takes events. Cheap to clone.
#[derive(Clone)]
pub(super) struct Publishing {
    store: Store,
    format: Arc<Format>,
    growth: Arc<Growth>,
}

/// What bytes of events became in the log of late, so that the memory of a few is not made
/// step by step.
struct Growth(AtomicU32);

/// What was found out about a request's events before they are durable.
#[derive(Default)]
struct Sorted {
    segments: Segments,
    unconfigured: u32,
    rejections: Vec<v1::Rejection>,
}

impl Publishing {
    pub(super) fn new(store: Store, format: Arc<Format>) -> Self {
        Self {
            store,
            format,
            growth: Arc::default(),
        }
    }

    /// Hands events over to the log, in the order of the calls. What it returns
    /// answers once they are durable. `room` is the memory that the events take.
    pub(super) async fn begin(
        &self,
        events: Vec<Bytes>,
        room: Option<Room>,
    ) -> Result<impl Future<Output = Result<v1::PublishResponse, ApiError>> + Send + use<>, ApiError>
    {
        check_size(&events)?;
        self.store.check_room()?;
        let Sorted {
            segments,
            unconfigured,
            rejections,
        } = self.sort(&events);
        drop(events);
        self.store.give_way(&segments).await;
        let found = segments.events();
        let durable = match segments.is_empty() {
            true => None,
            // Whether or not the caller reads the answer, the memory is free once it is
            // durable.
            false => Some(self.store.append(segments, room).await?),
        };
        Ok(async move {
            let accepted = match durable {
                Some(durable) => durable.await?,
                None => 0,
            };
            Ok(v1::PublishResponse {
                accepted,
                // Others were deleted meanwhile.
                unconfigured: unconfigured + (found - accepted),
                rejections,
            })
        })
    }

    fn sort(&self, events: &[Bytes]) -> Sorted {
        let (mut read, mut left) = (0, events.iter().map(Bytes::len).sum());
        let mut sorted = Sorted {
            segments: Segments::with_room(self.growth.of(left)),
            ..Sorted::default()
        };
        let mut keys = Keys::new(&self.store);
        for (index, bytes) in events.iter().enumerate() {
            sorted.segments.expect(read, left);
            match place(bytes, &self.format, &mut keys, &mut sorted.segments) {
                Ok(true) => {}
                Ok(false) => sorted.unconfigured += 1,
                Err(rejection) => sorted.rejections.push(convert::rejection(index, rejection)),
            }
            read += bytes.len();
            left -= bytes.len();
        }
        self.growth.learn(read, sorted.segments.bytes());
        sorted
    }
}

impl Growth {
    /// Of bytes that are as many in the log.
    const NONE: u32 = 1 << 10;

    /// What so many bytes may become, and a little more.
    fn of(&self, read: usize) -> usize {
        let growth = self.0.load(Ordering::Relaxed) as usize;
        read.saturating_mul(growth + growth / 16) / Self::NONE as usize
    }

    fn learn(&self, read: usize, stored: usize) {
        if stored > 0 {
            let growth = stored.saturating_mul(Self::NONE as usize) / read;
            let growth = u32::try_from(growth).unwrap_or(u32::MAX);
            self.0.store(growth.min(4 * Self::NONE), Ordering::Relaxed);
        }
    }
}

impl Default for Growth {
    fn default() -> Self {
        Self(AtomicU32::new(Self::NONE))
    }
}

fn check_size(events: &[Bytes]) -> Result<(), ApiError> {
    if events.len() > MOST_EVENTS {
        return Err(ApiError::TooManyEvents {
            count: events.len(),
            most: MOST_EVENTS,
        });
    }
    let bytes: usize = events.iter().map(Bytes::len).sum();
    if bytes > MOST_BYTES {
        return Err(ApiError::RequestTooLarge {
            bytes,
            most: MOST_BYTES,
        });
    }
    Ok(())
}

/// Stores one event for its integration. False where there is none.
fn place<'a>(
    bytes: &'a [u8],
    format: &Format,
    keys: &mut Keys<'a>,
    segments: &mut Segments,
) -> Result<bool, Rejection> {
    let event = decode_event(bytes)?;
    let valid = event.validate()?;
    let Some(key) = keys.of(event.organization_id) else {
        return Ok(false);
    };
    segments.push(key, |out| valid.store(format, out))?;
    Ok(true)
}

/// The integrations of a request's organizations.
struct Keys<'a> {
    store: &'a Store,
    by_organization: Map<&'a str, Option<IntegrationKey>>,
    /// Events of one organization mostly come together.
    last: Option<(&'a str, Option<IntegrationKey>)>,
}

impl<'a> Keys<'a> {
    fn new(store: &'a Store) -> Self {
        Self {
            store,
            by_organization: Map::default(),
            last: None,
        }
    }

    fn of(&mut self, organization_id: &'a str) -> Option<IntegrationKey> {
        let look = || self.store.key_of(organization_id);
        let key = match self.last {
            Some((last, key)) if last == organization_id => return key,
            // Of one organization nothing need be kept in a map.
            None => look(),
            Some((last, key)) => {
                if self.by_organization.is_empty() {
                    self.by_organization.insert(last, key);
                }
                *self
                    .by_organization
                    .entry(organization_id)
                    .or_insert_with(look)
            }
        };
        self.last = Some((organization_id, key));
        key
    }
}
