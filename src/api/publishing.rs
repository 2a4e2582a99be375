//! Events in: decode, check, render, and hand over to the log.

use std::sync::Arc;

use bytes::Bytes;

use super::{convert, errors::ApiError, intake::Room, wire::decode_event};
use crate::{
    domain::{
        event::{Format, Rejection},
        map::Map,
        segment::{OwnedSegment, Segment},
    },
    proto::v1,
    store::{Store, StoreError},
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
    segments: Vec<OwnedSegment>,
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
        self.store.give_way().await;
        let sorted = sort(&self.store, &self.format, &events);
        drop(events);
        let counts: Vec<u32> = sorted
            .segments
            .iter()
            .map(|owned| owned.segment.count)
            .collect();
        let durable = match sorted.segments.is_empty() {
            true => None,
            // Whether or not the caller reads the answer, the memory is free once it is
            // durable.
            false => Some(self.store.append(sorted.segments, room).await?),
        };
        Ok(async move {
            let existed: Result<Vec<bool>, StoreError> = match durable {
                Some(durable) => durable.await,
                None => Ok(Vec::new()),
            };
            let mut response = v1::PublishResponse {
                accepted: 0,
                unconfigured: sorted.unconfigured,
                rejections: sorted.rejections,
            };
            for (existed, count) in existed?.into_iter().zip(counts) {
                match existed {
                    true => response.accepted += count,
                    false => response.unconfigured += count,
                }
            }
            Ok(response)
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
    let mut desks = Desks::new(store);
    let mut scratch = Vec::new();
    for (index, bytes) in events.iter().enumerate() {
        let share = Share {
            seen: index,
            left: events.len() - index,
        };
        match place(
            bytes,
            share,
            format,
            &mut scratch,
            &mut desks,
            &mut sorted.segments,
        ) {
            Ok(true) => {}
            Ok(false) => sorted.unconfigured += 1,
            Err(rejection) => sorted.rejections.push(convert::rejection(index, rejection)),
        }
    }
    let rest = desks.all.into_iter();
    sorted
        .segments
        .extend(rest.filter(|owned| owned.segment.count > 0));
    sorted
}

/// Renders one event into its integration's segment. False where there is none.
fn place<'a>(
    bytes: &'a [u8],
    share: Share,
    format: &Format,
    scratch: &mut Vec<u8>,
    desks: &mut Desks<'a>,
    full: &mut Vec<OwnedSegment>,
) -> Result<bool, Rejection> {
    let event = decode_event(bytes)?;
    let valid = event.validate()?;
    let Some(desk) = desks.of(event.organization_id) else {
        return Ok(false);
    };
    if desk.segment.is_representative() {
        desk.segment.expect(share.of(&desk.segment));
        desk.segment.push(|out| valid.render(format, out))?;
    } else {
        // Most of these stay small, where memory of the right size is worth a copy.
        scratch.clear();
        valid.render(format, scratch)?;
        desk.segment.push_rendered(scratch);
    }
    if desk.segment.is_full() {
        full.push(OwnedSegment {
            key: desk.key,
            segment: std::mem::take(&mut desk.segment),
        });
    }
    Ok(true)
}

/// How far a request has been read.
#[derive(Clone, Copy)]
struct Share {
    seen: usize,
    left: usize,
}

impl Share {
    /// How many of the events that are left a segment gets, if it goes on as it did.
    fn of(self, segment: &Segment) -> usize {
        (self.left * segment.count as usize).div_ceil(self.seen.max(1))
    }
}

/// The segments that a request's events are put into, one an integration.
struct Desks<'a> {
    store: &'a Store,
    all: Vec<OwnedSegment>,
    by_organization: Map<&'a str, Option<usize>>,
    /// Events of one organization mostly come together.
    last: Option<(&'a str, Option<usize>)>,
}

impl<'a> Desks<'a> {
    fn new(store: &'a Store) -> Self {
        Self {
            store,
            all: Vec::new(),
            by_organization: Map::default(),
            last: None,
        }
    }

    fn of(&mut self, organization_id: &'a str) -> Option<&mut OwnedSegment> {
        let desk = match self.last {
            Some((last, desk)) if last == organization_id => desk,
            _ => self.look_up(organization_id),
        };
        self.all.get_mut(desk?)
    }

    fn look_up(&mut self, organization_id: &'a str) -> Option<usize> {
        let desk = match self.by_organization.get(organization_id) {
            Some(desk) => *desk,
            None => {
                let desk = self.open(organization_id);
                self.by_organization.insert(organization_id, desk);
                desk
            }
        };
        self.last = Some((organization_id, desk));
        desk
    }

    fn open(&mut self, organization_id: &str) -> Option<usize> {
        let key = self.store.key_of(organization_id)?;
        self.all.push(OwnedSegment {
            key,
            segment: Segment::default(),
        });
        Some(self.all.len() - 1)
    }
}
