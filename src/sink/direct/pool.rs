//! Idle connections, reused by the next request to the same server.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::{connection::Connection, endpoint::Endpoint};

/// Time after which an idle connection is closed, as in the SDK.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// Limit of idle connections to all servers together. By the SDK's rules each customer's account
/// has its own endpoint, so that a limit per server would not bound them.
const MAX_IDLE: usize = 4096;

/// Idle connections. For each server, the connection that became idle last is reused first.
pub(super) struct Pool {
    state: Mutex<State>,
    max: usize,
}

#[derive(Default)]
struct State {
    /// Numbered in the order in which they became idle.
    by_number: BTreeMap<u64, Idle>,
    /// Numbers of each server's connections, the newest last.
    by_origin: HashMap<Box<str>, VecDeque<u64>>,
    next_number: u64,
    has_cleanup: bool,
}

struct Idle {
    endpoint: Arc<Endpoint>,
    since: Instant,
    connection: Box<Connection>,
}

impl Default for Pool {
    fn default() -> Self {
        Self::new(MAX_IDLE)
    }
}

impl Pool {
    fn new(max: usize) -> Self {
        Self {
            state: Mutex::default(),
            max,
        }
    }

    /// Removes a connection that can carry a request.
    pub(super) fn take(&self, endpoint: &Endpoint) -> Option<Box<Connection>> {
        loop {
            let mut connection = self.state().take_newest(&endpoint.origin)?;
            if connection.is_idle() {
                return Some(connection);
            }
        }
    }

    /// Adds a connection, unless it cannot carry another request.
    pub(super) fn add(self: &Arc<Self>, endpoint: &Arc<Endpoint>, mut connection: Box<Connection>) {
        if !connection.is_idle() {
            return;
        }
        let now = Instant::now();
        let mut state = self.state();
        state.add(endpoint, connection, now);
        let is_full = state.by_number.len() > self.max;
        // Closing takes a while, so it happens after the lock is released.
        let _closed = is_full.then(|| state.take_oldest());
        if !std::mem::replace(&mut state.has_cleanup, true) {
            tokio::spawn(clean_up(Arc::downgrade(self), now + IDLE_TIMEOUT));
        }
        drop(state);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes connections at their idle timeout, until none is left.
async fn clean_up(pool: Weak<Pool>, mut at: Instant) {
    loop {
        sleep_until(at).await;
        let Some(pool) = pool.upgrade() else { return };
        let (_closed, oldest) = pool.state().take_expired(Instant::now());
        match oldest {
            Some(oldest) => at = oldest + IDLE_TIMEOUT,
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
        let idle = Idle {
            endpoint,
            since,
            connection,
        };
        self.by_number.insert(number, idle);
    }

    fn take_newest(&mut self, origin: &str) -> Option<Box<Connection>> {
        let numbers = self.by_origin.get_mut(origin)?;
        let number = numbers.pop_back()?;
        if numbers.is_empty() {
            self.by_origin.remove(origin);
        }
        Some(self.by_number.remove(&number)?.connection)
    }

    fn take_oldest(&mut self) -> Option<Idle> {
        let (_number, oldest) = self.by_number.pop_first()?;
        let origin = &oldest.endpoint.origin;
        if let Some(numbers) = self.by_origin.get_mut(origin) {
            // The oldest of all is also the oldest of its server.
            numbers.pop_front();
            if numbers.is_empty() {
                self.by_origin.remove(origin);
            }
        }
        Some(oldest)
    }

    /// Removes expired connections. Returns them and the time since which the oldest of the others
    /// has been idle; without others the cleanup ends.
    fn take_expired(&mut self, now: Instant) -> (Vec<Idle>, Option<Instant>) {
        let mut expired = Vec::new();
        while let Some((_, oldest)) = self.by_number.first_key_value() {
            let since = oldest.since;
            if now < since + IDLE_TIMEOUT {
                return (expired, Some(since));
            }
            expired.extend(self.take_oldest());
        }
        self.has_cleanup = false;
        (expired, None)
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
    async fn the_newest_is_reused_and_the_oldest_evicted() {
        let pool = Arc::new(Pool::new(2));
        let (one, other) = (endpoint("one.test"), endpoint("other.test"));
        let mut servers = Vec::new();
        for endpoint in [&one, &other, &one] {
            let (connection, server) = connection().await;
            servers.push((std::ptr::from_ref(&*connection), server));
            pool.add(endpoint, connection);
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

    /// Runs the cleanup until `left` connections remain.
    async fn until_left(pool: &Pool, left: usize) {
        for _ in 0..10_000 {
            if pool.state().by_number.len() == left {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("more than {left} connections are left");
    }

    #[tokio::test]
    async fn idle_connections_are_closed_at_their_timeout() {
        let pool = Arc::new(Pool::default());
        let endpoint = endpoint("one.test");
        let (first, mut first_server) = connection().await;
        let (second, mut second_server) = connection().await;
        let (third, mut third_server) = connection().await;
        // Timers count whole milliseconds.
        let half = IDLE_TIMEOUT / 2 + Duration::from_millis(1);
        tokio::time::pause();
        pool.add(&endpoint, first);
        advance(half).await;
        pool.add(&endpoint, second);
        advance(half).await;
        until_left(&pool, 1).await;
        advance(half).await;
        until_left(&pool, 0).await;
        assert!(!pool.state().has_cleanup);
        // The cleanup starts again with the next connection.
        pool.add(&endpoint, third);
        advance(2 * half).await;
        until_left(&pool, 0).await;
        tokio::time::resume();
        for server in [&mut first_server, &mut second_server, &mut third_server] {
            assert!(is_closed(server).await);
        }
    }
}
