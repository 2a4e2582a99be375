//! Request bodies that can be sent a second time.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::Frame;
use tonic::{Status, body::Body};

/// Bytes that are kept of a request; more than a valid one has.
const MAX_BYTES: usize = 8 << 20;

/// A body that is sent, and what was read of it.
#[derive(Clone)]
pub(super) struct Replay(Arc<Mutex<Shared>>);

struct Shared {
    rest: Body,
    read: VecDeque<Bytes>,
    read_bytes: usize,
    is_recording: bool,
    /// The first body has ended, and the second is sent.
    is_second: bool,
}

impl Replay {
    /// Returns the recording, and the body to send first.
    pub(super) fn new(body: Body) -> (Self, Body) {
        let replay = Self(Arc::new(Mutex::new(Shared {
            rest: body,
            read: VecDeque::new(),
            read_bytes: 0,
            is_recording: true,
            is_second: false,
        })));
        let first = replay.body(false);
        (replay, first)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn body(&self, is_second: bool) -> Body {
        Body::new(ReplayBody {
            replay: self.clone(),
            is_second,
        })
    }

    /// Forgets what was read: the body is not needed again.
    pub(super) fn stop_recording(&self) {
        self.lock().stop_recording();
    }

    /// Ends the first body, and returns it once more; none if it was not kept in whole.
    pub(super) fn again(&self) -> Option<Body> {
        let mut shared = self.lock();
        if !shared.is_recording {
            return None;
        }
        shared.is_recording = false;
        shared.is_second = true;
        Some(self.body(true))
    }
}

impl Shared {
    fn stop_recording(&mut self) {
        self.is_recording = false;
        self.read = VecDeque::new();
    }

    fn record(&mut self, data: &Bytes) {
        self.read_bytes += data.len();
        match self.read_bytes <= MAX_BYTES {
            true => self.read.push_back(data.clone()),
            false => self.stop_recording(),
        }
    }
}

struct ReplayBody {
    replay: Replay,
    is_second: bool,
}

impl http_body::Body for ReplayBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut shared = self.replay.lock();
        if shared.is_second != self.is_second {
            return Poll::Ready(None);
        }
        if self.is_second
            && let Some(data) = shared.read.pop_front()
        {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let frame = ready!(Pin::new(&mut shared.rest).poll_frame(context));
        if shared.is_recording
            && let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            shared.record(data);
        }
        Poll::Ready(frame)
    }
}
