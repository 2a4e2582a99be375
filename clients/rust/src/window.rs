//! The unanswered requests, in order. No I/O and no clock.

use std::collections::VecDeque;

/// Unanswered requests with consecutive ids. The first `sent` of them are on the current stream;
/// the others are still to be sent.
#[derive(Debug)]
pub(super) struct Window<T> {
    requests: VecDeque<T>,
    front_id: u64,
    sent: usize,
    max_requests: usize,
    /// Requests with smaller ids are sent one at a time.
    singly_below: u64,
}

impl<T> Window<T> {
    pub(super) fn new(max_requests: usize) -> Self {
        Self {
            requests: VecDeque::new(),
            front_id: 1,
            sent: 0,
            max_requests,
            singly_below: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    pub(super) fn has_capacity(&self) -> bool {
        self.requests.len() < self.max_requests
    }

    /// Number of requests that were sent on the current stream and are not answered.
    pub(super) fn in_flight(&self) -> usize {
        self.sent
    }

    pub(super) fn push(&mut self, request: T) {
        self.requests.push_back(request);
    }

    /// Returns all requests, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.requests.iter()
    }

    /// Changes the requests that are not sent, and removes those for which `keep` is false.
    pub(super) fn retain_unsent(&mut self, mut keep: impl FnMut(&mut T) -> bool) {
        let mut index = 0;
        self.requests.retain_mut(|request| {
            index += 1;
            index <= self.sent || keep(request)
        });
    }

    /// Returns the next request to send, and counts it as sent.
    pub(super) fn send_next(&mut self) -> Option<(u64, &T)> {
        if self.front_id < self.singly_below && self.sent > 0 {
            return None;
        }
        if self.sent >= self.max_requests {
            return None;
        }
        let request = self.requests.get(self.sent)?;
        let id = self.front_id + self.sent as u64;
        self.sent += 1;
        Some((id, request))
    }

    /// Returns whether the oldest request has this id. The server answers in order, so that no
    /// other answer can be due.
    pub(super) fn awaits(&self, request_id: &str) -> bool {
        self.sent > 0 && request_id.parse() == Ok(self.front_id)
    }

    /// Removes the oldest request once it is answered.
    pub(super) fn pop(&mut self) -> Option<T> {
        let request = self.requests.pop_front()?;
        self.front_id += 1;
        self.sent = self.sent.saturating_sub(1);
        Some(request)
    }

    /// Marks everything as not sent, for the next stream.
    pub(super) fn rewind(&mut self) {
        self.sent = 0;
    }

    /// Divides the oldest request by `split`, which returns a part of it; both are sent one at a
    /// time, on the next stream. Returns whether there is such a part. [`Self::rewind`] must follow.
    pub(super) fn split_front(&mut self, split: impl FnOnce(&mut T) -> Option<T>) -> bool {
        let Some(part) = self.requests.front_mut().and_then(split) else {
            return false;
        };
        self.requests.insert(1, part);
        self.singly_below = self.front_id + 2;
        true
    }

    /// Makes the requests in flight be sent again one at a time, to find the one that breaks the
    /// stream.
    /// Must be called before [`Self::rewind`].
    pub(super) fn suspect_in_flight(&mut self) {
        self.singly_below = self.front_id + self.sent as u64;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Push,
        Send,
        Answer,
        Disconnect,
        Suspect,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => Just(Step::Push),
            4 => Just(Step::Send),
            3 => Just(Step::Answer),
            1 => Just(Step::Disconnect),
            1 => Just(Step::Suspect),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        /// With disconnects at any point, each stream carries requests in order and starts with
        /// the oldest unanswered one, and each request is answered once, in order.
        #[test]
        fn no_disconnect_loses_or_swaps_a_request(steps in steps()) {
            let mut window = Window::new(4);
            let (mut pushed, mut answered) = (0, 0);
            let mut stream: VecDeque<u64> = VecDeque::new();
            for step in steps {
                match step {
                    Step::Push if window.has_capacity() => {
                        pushed += 1;
                        window.push(pushed);
                    }
                    Step::Send => if let Some((id, request)) = window.send_next() {
                        prop_assert_eq!(id, *request);
                        prop_assert_eq!(id, stream.back().map_or(answered, |last| *last) + 1);
                        stream.push_back(id);
                    },
                    Step::Answer => if let Some(id) = stream.pop_front() {
                        prop_assert!(window.awaits(&id.to_string()));
                        prop_assert_eq!(window.pop(), Some(id));
                        answered += 1;
                        prop_assert_eq!(answered, id);
                    },
                    Step::Disconnect | Step::Suspect => {
                        if matches!(step, Step::Suspect) {
                            window.suspect_in_flight();
                        }
                        window.rewind();
                        stream.clear();
                    }
                    Step::Push => {}
                }
                prop_assert_eq!(window.in_flight(), stream.len());
            }
            // Left alone, the rest gets through.
            while !window.is_empty() {
                while let Some((id, _)) = window.send_next() {
                    stream.push_back(id);
                }
                prop_assert_eq!(window.pop(), stream.pop_front());
                answered += 1;
            }
            prop_assert_eq!(answered, pushed);
        }
    }

    #[test]
    fn suspects_go_one_at_a_time() {
        let mut window = Window::new(8);
        (1..=4).for_each(|request| window.push(request));
        let next = |window: &mut Window<u64>| window.send_next().map(|(id, _)| id);
        assert_eq!((next(&mut window), next(&mut window)), (Some(1), Some(2)));
        window.suspect_in_flight();
        window.rewind();
        assert_eq!((next(&mut window), next(&mut window)), (Some(1), None));
        window.pop();
        assert_eq!((next(&mut window), next(&mut window)), (Some(2), None));
        window.pop();
        assert_eq!((next(&mut window), next(&mut window)), (Some(3), Some(4)));
    }

    #[test]
    fn an_answer_to_something_else_is_not_awaited() {
        let mut window = Window::new(2);
        window.push(());
        assert!(!window.awaits("1"), "it was not sent");
        window.send_next();
        assert!(window.awaits("1"));
        for id in ["", "2", "x", "-1"] {
            assert!(!window.awaits(id), "{id}");
        }
    }
}
