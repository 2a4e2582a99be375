//! Connections at rest, for the next request to the same server.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::{connection::Connection, endpoint::Endpoint};

/// As the SDK keeps them.
const LONGEST_REST: Duration = Duration::from_secs(90);
/// Each customer's account has an endpoint of its own by the SDK's rules; in all there are
/// no more connections at rest than this.
const MOST_AT_REST: usize = 4096;

/// The connections at rest. Those of an endpoint are taken the newest first.
pub(super) struct Pool {
    state: Mutex<State>,
    most: usize,
}

#[derive(Default)]
struct State {
    /// By number, and so by how long they rest.
    by_number: BTreeMap<u64, AtRest>,
    /// The numbers of each server's, the newest last.
    by_origin: HashMap<Box<str>, VecDeque<u64>>,
    next_number: u64,
    is_swept: bool,
}

struct AtRest {
    endpoint: Arc<Endpoint>,
    since: Instant,
    connection: Box<Connection>,
}

impl Default for Pool {
    fn default() -> Self {
        Self::new(MOST_AT_REST)
    }
}

impl Pool {
    fn new(most: usize) -> Self {
        Self {
            state: Mutex::default(),
            most,
        }
    }

    /// Takes a connection that can carry a request.
    pub(super) fn take(&self, endpoint: &Endpoint) -> Option<Box<Connection>> {
        loop {
            let mut connection = self.state().take_newest(&endpoint.origin)?;
            if connection.is_at_rest() {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection, unless it cannot carry another request.
    pub(super) fn keep(
        self: &Arc<Self>,
        endpoint: &Arc<Endpoint>,
        mut connection: Box<Connection>,
    ) {
        if !connection.is_at_rest() {
            return;
        }
        let now = Instant::now();
        let mut state = self.state();
        state.add(endpoint, connection, now);
        let is_full = state.by_number.len() > self.most;
        // To close it takes a while; it is dropped last.
        let _closed = is_full.then(|| state.take_oldest());
        if !std::mem::replace(&mut state.is_swept, true) {
            tokio::spawn(sweep(Arc::downgrade(self), now + LONGEST_REST));
        }
        drop(state);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes what has rested for long, until nothing is left.
async fn sweep(pool: Weak<Pool>, mut at: Instant) {
    loop {
        sleep_until(at).await;
        let Some(pool) = pool.upgrade() else { return };
        let (_closed, oldest) = pool.state().take_older(Instant::now());
        match oldest {
            Some(oldest) => at = oldest + LONGEST_REST,
            None => return,
        }
    }
}

impl State {
    fn add(&mut self, endpoint: &Arc<Endpoint>, connection: Box<Connection>, since: Instant) {
        let number = self.next_number;
        self.next_number += 1;
        match self.by_origin.get_mut(&endpoint.origin) {
            Some(numbers) => numbers.push_back(number),
            None => {
                let numbers = VecDeque::from([number]);
                self.by_origin.insert(endpoint.origin.clone(), numbers);
            }
        }
        let endpoint = Arc::clone(endpoint);
        let at_rest = AtRest {
            endpoint,
            since,
            connection,
        };
        self.by_number.insert(number, at_rest);
    }

    fn take_newest(&mut self, origin: &str) -> Option<Box<Connection>> {
        let numbers = self.by_origin.get_mut(origin)?;
        let number = numbers.pop_back()?;
        if numbers.is_empty() {
            self.by_origin.remove(origin);
        }
        Some(self.by_number.remove(&number)?.connection)
    }

    fn take_oldest(&mut self) -> Option<AtRest> {
        let (_number, oldest) = self.by_number.pop_first()?;
        let origin = &oldest.endpoint.origin;
        if let Some(numbers) = self.by_origin.get_mut(origin) {
            // The oldest of all is the oldest of its server's.
            numbers.pop_front();
            if numbers.is_empty() {
                self.by_origin.remove(origin);
            }
        }
        Some(oldest)
    }

    /// Takes those that have rested too long. Since when the oldest of the others rests;
    /// where there is none, nobody sweeps any more.
    fn take_older(&mut self, now: Instant) -> (Vec<AtRest>, Option<Instant>) {
        let mut older = Vec::new();
        while let Some((_, oldest)) = self.by_number.first_key_value() {
            let since = oldest.since;
            if now < since + LONGEST_REST {
                return (older, Some(since));
            }
            older.extend(self.take_oldest());
        }
        self.is_swept = false;
        (older, None)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, net::TcpStream, time::advance};

    use super::*;
    use crate::sink::direct::connection::tests::connection;

    async fn is_closed(server: &mut TcpStream) -> bool {
        matches!(server.read(&mut [0]).await, Ok(0))
    }

    fn endpoint(host: &str) -> Arc<Endpoint> {
        Arc::new(Endpoint::new(&format!("https://{host}")).unwrap())
    }

    #[tokio::test]
    async fn the_newest_serves_its_own_server_and_the_oldest_goes() {
        let pool = Arc::new(Pool::new(2));
        let (one, other) = (endpoint("one.test"), endpoint("other.test"));
        let mut servers = Vec::new();
        for endpoint in [&one, &other, &one] {
            let (connection, server) = connection().await;
            servers.push((std::ptr::from_ref(&*connection), server));
            pool.keep(endpoint, connection);
        }
        assert!(is_closed(&mut servers[0].1).await);
        let taken = pool.take(&one).unwrap();
        assert!(std::ptr::eq(&*taken, servers[2].0));
        assert!(pool.take(&one).is_none());
        assert!(std::ptr::eq(&*pool.take(&other).unwrap(), servers[1].0));
        assert!(pool.take(&other).is_none());
        let state = pool.state();
        assert!(state.by_number.is_empty() && state.by_origin.is_empty());
    }

    /// Lets the sweeper run until so many are left.
    async fn until_left(pool: &Pool, left: usize) {
        for _ in 0..10_000 {
            if pool.state().by_number.len() == left {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("more than {left} are left");
    }

    #[tokio::test]
    async fn what_rests_for_long_is_closed() {
        let pool = Arc::new(Pool::default());
        let endpoint = endpoint("one.test");
        let (first, mut first_server) = connection().await;
        let (second, mut second_server) = connection().await;
        let (third, mut third_server) = connection().await;
        // Timers count whole milliseconds.
        let half = LONGEST_REST / 2 + Duration::from_millis(1);
        tokio::time::pause();
        pool.keep(&endpoint, first);
        advance(half).await;
        pool.keep(&endpoint, second);
        advance(half).await;
        until_left(&pool, 1).await;
        advance(half).await;
        until_left(&pool, 0).await;
        assert!(!pool.state().is_swept);
        // And again, where one comes after all were gone.
        pool.keep(&endpoint, third);
        advance(2 * half).await;
        until_left(&pool, 0).await;
        tokio::time::resume();
        for server in [&mut first_server, &mut second_server, &mut third_server] {
            assert!(is_closed(server).await);
        }
    }
}
