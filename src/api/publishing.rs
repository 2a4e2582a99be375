//! Events in: decode, check, and hand over to the log.

use std::sync::Arc;

use bytes::Bytes;

use super::{convert, errors::ApiError, intake::Room, wire::decode_event};
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
}

/// What was found out about a request's events before they are durable.
#[derive(Default)]
struct Sorted {
    segments: Segments,
    unconfigured: u32,
    rejections: Vec<v1::Rejection>,
}

impl Publishing {
    pub(super) fn new(store: Store, format: Arc<Format>) -> Self {
        Self { store, format }
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
        } = sort(&self.store, &self.format, &events);
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

fn sort(store: &Store, format: &Format, events: &[Bytes]) -> Sorted {
    let mut sorted = Sorted::default();
    let mut keys = Keys::new(store);
    let (mut read, mut left) = (0, events.iter().map(Bytes::len).sum());
    for (index, bytes) in events.iter().enumerate() {
        sorted.segments.expect(read, left);
        match place(bytes, format, &mut keys, &mut sorted.segments) {
            Ok(true) => {}
            Ok(false) => sorted.unconfigured += 1,
            Err(rejection) => sorted.rejections.push(convert::rejection(index, rejection)),
        }
        read += bytes.len();
        left -= bytes.len();
    }
    sorted
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
        let key = match self.last {
            Some((last, key)) if last == organization_id => key,
            _ => *self
                .by_organization
                .entry(organization_id)
                .or_insert_with(|| self.store.key_of(organization_id)),
        };
        self.last = Some((organization_id, key));
        key
    }
}
