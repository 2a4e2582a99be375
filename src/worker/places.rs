//! The places for requests under way, and who waits for one. Pure: it starts and
//! ends nothing itself.
//!
//! All places are divided among classes, so that what one class does never takes a
//! place of another:
//! - those of all classes together are as many as are allowed in all, always;
//! - within a class they go round, and none is left empty while one waits for it;
//! - a call that takes long, where answers are expected at once, gives up its place as
//!   another needs it: it moves to the places of those that hang, one for each
//!   integration; where these are taken it is cut short, the oldest first.

use std::collections::BTreeMap;

use crate::domain::integration::IntegrationKey;

/// What is expected of an integration's next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// A quick success, as the last one.
    Quick,
    /// Unknown, or a quick failure, as the last one.
    Probe,
    /// A success that takes long, as the last one.
    Slow,
    /// A failure that takes long, as the last one.
    Hanging,
}

impl Class {
    const ALL: [Self; 4] = [Self::Quick, Self::Probe, Self::Slow, Self::Hanging];

    /// What the next call of one that answered is expected to do.
    pub(super) fn after(accepted: bool, took_long: bool) -> Self {
        match (accepted, took_long) {
            (true, false) => Self::Quick,
            (true, true) => Self::Slow,
            (false, false) => Self::Probe,
            (false, true) => Self::Hanging,
        }
    }
}

/// A place that is taken. Hand it back to [`Places::leave`].
#[derive(Debug)]
#[must_use = "a turn that is not ended keeps its place"]
pub(super) struct Turn {
    /// Rises from turn to turn.
    pub(super) id: u64,
    class: Class,
    /// Its call takes long.
    pub(super) overdue: bool,
}

/// A place in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    class: Class,
    number: u64,
}

#[derive(Debug)]
struct Room {
    most: usize,
    taken: usize,
    /// By ticket.
    queue: BTreeMap<u64, IntegrationKey>,
}

/// A turn whose call takes long.
#[derive(Debug)]
struct Overdue {
    key: IntegrationKey,
    /// Whose place it has now.
    class: Class,
    /// It is told to end.
    cut: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Places {
    rooms: [Room; 4],
    /// By turn, so the oldest first.
    overdue: BTreeMap<u64, Overdue>,
    last_number: u64,
}

impl Places {
    /// So many places in all, at least four. An eighth is for each class
    /// but the quick, which have the rest.
    pub(super) fn new(most: usize) -> Self {
        let eighth = (most / 8).max(1);
        let quick = most.saturating_sub(3 * eighth).max(1);
        let room = |most| Room {
            most,
            taken: 0,
            queue: BTreeMap::new(),
        };
        Self {
            rooms: [quick, eighth, eighth, eighth].map(room),
            overdue: BTreeMap::new(),
            last_number: 0,
        }
    }

    fn room(&mut self, class: Class) -> &mut Room {
        &mut self.rooms[class as usize]
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Queues an integration behind all of its class that wait.
    pub(super) fn queue(&mut self, key: IntegrationKey, class: Class) -> Ticket {
        let number = self.next_number();
        self.room(class).queue.insert(number, key);
        Ticket { class, number }
    }

    /// Moves one that waits to the queue of its class, where that has changed.
    pub(super) fn requeue(&mut self, ticket: Ticket, class: Class) -> Ticket {
        if ticket.class == class {
            return ticket;
        }
        match self.leave_queue(ticket) {
            Some(key) => self.queue(key, class),
            None => ticket,
        }
    }

    /// Takes one that waits out of its queue.
    pub(super) fn leave_queue(&mut self, ticket: Ticket) -> Option<IntegrationKey> {
        self.room(ticket.class).queue.remove(&ticket.number)
    }

    /// The next for which there is a place; it waits no longer.
    pub(super) fn call_next(&mut self) -> Option<(IntegrationKey, Class)> {
        Class::ALL.into_iter().find_map(|class| {
            let room = self.room(class);
            if room.taken >= room.most {
                return None;
            }
            let (_, key) = room.queue.pop_first()?;
            Some((key, class))
        })
    }

    /// Whether some of a class wait for a place.
    pub(super) fn some_wait(&self, class: Class) -> bool {
        let room = &self.rooms[class as usize];
        room.taken >= room.most && !room.queue.is_empty()
    }

    /// Whether one that waits may have a place, or one that takes long is in its way.
    pub(super) fn are_called_for(&self) -> bool {
        self.rooms.iter().any(|room| {
            let may = room.taken < room.most || !self.overdue.is_empty();
            may && !room.queue.is_empty()
        })
    }

    /// Takes the place to which [`Places::call_next`] has called.
    pub(super) fn take(&mut self, class: Class) -> Turn {
        self.room(class).taken += 1;
        Turn {
            id: self.next_number(),
            class,
            overdue: false,
        }
    }

    /// Notes that the call of a turn takes long.
    pub(super) fn overdue(&mut self, key: IntegrationKey, turn: &mut Turn) {
        turn.overdue = true;
        let overdue = Overdue {
            key,
            class: turn.class,
            cut: false,
        };
        self.overdue.insert(turn.id, overdue);
    }

    /// The turn that began last, at the most.
    pub(super) fn last_turn(&self) -> u64 {
        self.last_number
    }

    /// Gives a place back.
    pub(super) fn leave(&mut self, turn: Turn) {
        let overdue = self.overdue.remove(&turn.id);
        let class = overdue.map_or(turn.class, |overdue| overdue.class);
        self.room(class).taken -= 1;
    }

    /// Makes room for those that wait where answers are expected at once. Returns the
    /// turns that are to end.
    pub(super) fn make_room(&mut self) -> Vec<u64> {
        let mut cut = Vec::new();
        if self.overdue.is_empty() {
            return cut;
        }
        for class in [Class::Quick, Class::Probe] {
            for id in self.in_the_way(class) {
                if !self.move_to_hanging(id) {
                    cut.extend(self.cut(id));
                }
            }
        }
        cut
    }

    /// As many that take long as there are who wait for their places.
    fn in_the_way(&self, class: Class) -> Vec<u64> {
        let here = || self.overdue.iter().filter(|(_, one)| one.class == class);
        let room = &self.rooms[class as usize];
        let coming_free = room.most - room.taken + here().filter(|(_, one)| one.cut).count();
        here()
            .filter(|(_, one)| !one.cut)
            .map(|(id, _)| *id)
            .take(room.queue.len().saturating_sub(coming_free))
            .collect()
    }

    fn move_to_hanging(&mut self, id: u64) -> bool {
        let hanging = &self.rooms[Class::Hanging as usize];
        let full = hanging.taken >= hanging.most;
        let Some(key) = self.overdue.get(&id).map(|one| one.key) else {
            return false;
        };
        let mut moved = self.overdue.values();
        if full || moved.any(|one| one.key == key && one.class == Class::Hanging) {
            return false;
        }
        if let Some(one) = self.overdue.get_mut(&id) {
            let before = std::mem::replace(&mut one.class, Class::Hanging);
            self.room(before).taken -= 1;
            self.room(Class::Hanging).taken += 1;
        }
        true
    }

    /// Marks a turn that takes long as told to end; None where it was already.
    pub(super) fn cut(&mut self, id: u64) -> Option<u64> {
        let one = self.overdue.get_mut(&id)?;
        let before = std::mem::replace(&mut one.cut, true);
        (!before).then_some(id)
    }

    /// The turns of an integration that take long and are to end, since what they
    /// wait for has changed.
    pub(super) fn cut_all(&mut self, key: IntegrationKey) -> Vec<u64> {
        let of_key = self.overdue.iter().filter(|(_, one)| one.key == key);
        let ids: Vec<u64> = of_key.map(|(id, _)| *id).collect();
        ids.into_iter().filter_map(|id| self.cut(id)).collect()
    }

    #[cfg(test)]
    pub(super) fn taken(&self) -> [usize; 4] {
        [0, 1, 2, 3].map(|at: usize| self.rooms[at].taken)
    }

    #[cfg(test)]
    pub(super) fn has_idle_place(&self) -> bool {
        let idle = |room: &Room| room.taken < room.most && !room.queue.is_empty();
        self.rooms.iter().any(idle)
    }
}
