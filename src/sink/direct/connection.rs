//! One HTTP connection, polled by the task that sends a request on it. With a task per connection,
//! as in hyper-util's client, each request costs more wake-ups, and the rest of a request is
//! written after its call was dropped. See `docs/decisions/connection-pool.md`.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper::client::conn::{TrySendError, http1};
use hyper_rustls::MaybeHttpsStream;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::unconstrained};

use super::transport::{Received, receive};
use crate::domain::status::Cause;

/// A byte stream to a server, with or without TLS.
pub(super) type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;
type Body = Full<Bytes>;

/// A connection that carries one request at a time. Dropping it closes it, so that nothing more of
/// a cancelled request is written.
pub(super) struct Connection {
    sender: http1::SendRequest<Body>,
    /// hyper's state machine of the connection; None once it has ended. Dropping it makes hyper
    /// return a request that was not started.
    driver: Option<http1::Connection<Stream, Body>>,
}

/// Failure of a request.
pub(super) enum Unanswered {
    /// The server had closed the connection before any of the request was written.
    Unsent(Box<Request<Body>>),
    /// The connection failed before an answer arrived.
    Broken(hyper::Error),
    /// The answer is unusable.
    Failed(Cause),
}

impl Connection {
    /// Boxed because it is too large to be moved, with its TLS and its buffers.
    pub(super) async fn open(stream: Stream) -> Result<Box<Self>, hyper::Error> {
        let (sender, driver) = http1::handshake(stream).await?;
        Ok(Box::new(Self {
            sender,
            driver: Some(driver),
        }))
    }

    /// Whether another request can be sent: the last one is complete, and the server has not
    /// closed the connection. Afterwards the connection wakes no task.
    pub(super) fn is_idle(&mut self) -> bool {
        // Unconstrained because without budget left tokio would report no events.
        let poll = pin!(unconstrained(poll_fn(|cx| {
            self.drive(cx);
            Poll::Ready(())
        })));
        let _polled = poll.poll(&mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Sends a request on an idle or new connection, and receives the answer.
    pub(super) async fn exchange(
        &mut self,
        request: Request<Body>,
    ) -> Result<Received, Unanswered> {
        let sent = self.sender.try_send_request(request);
        // Needs no waker: only `drive` makes progress possible, and it is polled first.
        // Unconstrained because an exhausted budget would need one.
        let mut answer = pin!(unconstrained(async {
            match sent.await {
                Ok(response) => receive(response).await.map_err(Unanswered::Failed),
                Err(error) => Err(error.into()),
            }
        }));
        poll_fn(|cx| {
            self.drive(cx);
            match answer
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()))
            {
                Poll::Pending if self.driver.is_none() => {
                    Poll::Ready(Err(Unanswered::Failed(Cause::Connection)))
                }
                answer => answer,
            }
        })
        .await
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        // An error reaches the request through `sender`.
        if let Some(driver) = &mut self.driver
            && Pin::new(driver).poll(cx).is_ready()
        {
            self.driver = None;
        }
    }
}

impl From<TrySendError<Request<Body>>> for Unanswered {
    fn from(mut error: TrySendError<Request<Body>>) -> Self {
        match error.take_message() {
            Some(request) => Self::Unsent(Box::new(request)),
            None => Self::Broken(error.into_error()),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::{super::connection::tests, *};

    /// A connection, and the server's end of it.
    pub(in crate::sink::direct) async fn connection() -> (Box<Connection>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        let stream = Stream::Http(TokioIo::new(client.unwrap()));
        let connection = Connection::open(stream).await.ok().unwrap();
        (connection, server.unwrap().0)
    }

    fn post(bytes: usize) -> Request<Body> {
        let mut request = Request::post("/").header("host", "one.test");
        request = request.header("content-length", bytes);
        request.body(Full::new(vec![7; bytes].into())).unwrap()
    }

    #[tokio::test]
    async fn a_request_that_was_not_written_is_returned() {
        let (mut connection, mut server) = connection().await;
        let serve = async {
            let mut read = [0; 1 << 10];
            assert!(server.read(&mut read).await.unwrap() > 0);
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            server.write_all(answer).await.unwrap();
        };
        let (first, ()) = tokio::join!(connection.exchange(post(3)), serve);
        assert!(first.is_ok() && connection.is_idle());
        drop(server);
        // Once another connection is made, the close of this one has arrived.
        let _other = tests::connection().await;
        let answer = connection.exchange(post(3)).await;
        assert!(matches!(answer, Err(Unanswered::Unsent(_))));
        assert!(!connection.is_idle());
    }

    /// A second answer would be taken for that to the next request.
    #[tokio::test]
    async fn a_connection_with_excess_data_is_not_reused() {
        let (mut connection, mut server) = connection().await;
        let serve = async {
            let mut read = [0; 1 << 10];
            assert!(server.read(&mut read).await.unwrap() > 0);
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            server.write_all(&answer.repeat(2)).await.unwrap();
        };
        let (first, ()) = tokio::join!(connection.exchange(post(3)), serve);
        assert!(first.is_ok() && !connection.is_idle());
    }

    #[tokio::test]
    async fn large_requests_and_answers_in_pieces_pass() {
        const SENT: usize = 5 << 20;
        let (mut connection, mut server) = connection().await;
        let pieces: Vec<Vec<u8>> = (0..40_u8).map(|piece| vec![piece; 20_000]).collect();
        let whole = pieces.concat();
        let serve = async {
            for _ in 0..2 {
                // The head of the request has no such byte.
                let (mut read, mut piece) = (0, [0; 16 << 10]);
                while read < SENT {
                    let count = server.read(&mut piece).await.unwrap();
                    read += piece[..count].iter().filter(|byte| **byte == 7).count();
                }
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", whole.len());
                server.write_all(head.as_bytes()).await.unwrap();
                for piece in &pieces {
                    server.write_all(piece).await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
        };
        let ask = async {
            for _ in 0..2 {
                let answer = connection.exchange(post(SENT)).await.ok().unwrap();
                assert!(answer.http_status == 200 && answer.body == whole);
                assert!(connection.is_idle());
            }
        };
        tokio::join!(serve, ask);
    }
}
