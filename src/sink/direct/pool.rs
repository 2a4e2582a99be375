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
/// Each customer's account can have an endpoint of its own; in all there are no more
/// connections at rest than this.
const MOST_AT_REST: usize = 512;

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
        if state.by_number.len() > self.most {
            state.drop_oldest();
        }
        if !std::mem::replace(&mut state.is_swept, true) {
            tokio::spawn(sweep(Arc::downgrade(self), now + LONGEST_REST));
        }
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
        let mut state = pool.state();
        match state.drop_older(Instant::now()) {
            Some(oldest) => at = oldest + LONGEST_REST,
            None => {
                state.is_swept = false;
                return;
            }
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

    fn drop_oldest(&mut self) {
        let Some((number, oldest)) = self.by_number.pop_first() else {
            return;
        };
        let origin = &oldest.endpoint.origin;
        if let Some(numbers) = self.by_origin.get_mut(origin) {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                self.by_origin.remove(origin);
            }
        }
    }

    /// Drops those that have rested too long. Since when the oldest of the others rests.
    fn drop_older(&mut self, now: Instant) -> Option<Instant> {
        loop {
            let since = self.by_number.first_key_value()?.1.since;
            if now < since + LONGEST_REST {
                return Some(since);
            }
            self.drop_oldest();
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper_util::rt::TokioIo;
    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, TcpStream},
        time::advance,
    };

    use super::*;
    use crate::sink::direct::connection::Stream;

    /// A connection, and the server's end of it.
    async fn connection() -> (Box<Connection>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        let stream = Stream::Http(TokioIo::new(client.unwrap()));
        let connection = Connection::open(stream).await.ok().unwrap();
        (connection, server.unwrap().0)
    }

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

    #[tokio::test(start_paused = true)]
    async fn what_rests_for_long_is_closed() {
        let pool = Arc::new(Pool::default());
        let endpoint = endpoint("one.test");
        let (first, mut first_server) = connection().await;
        pool.keep(&endpoint, first);
        advance(LONGEST_REST / 2).await;
        let (second, mut second_server) = connection().await;
        pool.keep(&endpoint, second);
        let began = Instant::now();
        assert!(is_closed(&mut first_server).await);
        assert!(began.elapsed() < LONGEST_REST);
        assert_eq!(pool.state().by_number.len(), 1);
        assert!(is_closed(&mut second_server).await);
        assert!(!pool.state().is_swept);
        // And again, where one comes after all were gone.
        let (third, mut third_server) = connection().await;
        pool.keep(&endpoint, third);
        assert!(is_closed(&mut third_server).await);
    }
}
