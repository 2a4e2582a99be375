//! One connection, driven by the task of whoever sends a request on it: no other task
//! has to be woken for a request or its answer.

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

use super::received::{Received, receive};
use crate::domain::status::Cause;

/// Bytes to a server, in TLS or not.
pub(super) type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;
type Body = Full<Bytes>;

/// A connection that carries one request at a time.
pub(super) struct Connection {
    sender: http1::SendRequest<Body>,
    /// None once it has ended: only that gives back a request that it has not begun.
    driver: Option<http1::Connection<Stream, Body>>,
}

/// Why there is no answer.
pub(super) enum Unanswered {
    /// The server had closed before anything of the request was sent.
    Unsent(Box<Request<Body>>),
    /// The connection broke off before there was an answer.
    Broken(hyper::Error),
    Failed(Cause),
}

impl Connection {
    /// It has a memory of its own: with its TLS and its buffers it is too large to be moved
    /// about.
    pub(super) async fn open(stream: Stream) -> Result<Box<Self>, hyper::Error> {
        let (sender, driver) = http1::handshake(stream).await?;
        Ok(Box::new(Self {
            sender,
            driver: Some(driver),
        }))
    }

    /// Whether a further request may be sent: the server has not closed. A task that sent
    /// one before is not woken by it any more.
    pub(super) fn is_at_rest(&mut self) -> bool {
        // A task whose budget is spent would see nothing.
        let look = pin!(unconstrained(poll_fn(|cx| {
            self.drive(cx);
            Poll::Ready(())
        })));
        let _looked = look.poll(&mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Sends a request, and takes the answer. It is to be at rest, or new.
    pub(super) async fn exchange(
        &mut self,
        request: Request<Body>,
    ) -> Result<Received, Unanswered> {
        let sent = self.sender.try_send_request(request);
        // Only what drives the connection brings this further, and that is polled first;
        // it needs no waker. A task's budget would want one.
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
        // What went wrong is told to who sent the request.
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
    async fn a_request_that_never_left_is_given_back() {
        let (mut connection, mut server) = connection().await;
        let serve = async {
            let mut read = [0; 1 << 10];
            assert!(server.read(&mut read).await.unwrap() > 0);
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            server.write_all(answer).await.unwrap();
        };
        let (first, ()) = tokio::join!(connection.exchange(post(3)), serve);
        assert!(first.is_ok() && connection.is_at_rest());
        drop(server);
        // Once another connection is there, so is the end of this one.
        let _other = tests::connection().await;
        let answer = connection.exchange(post(3)).await;
        assert!(matches!(answer, Err(Unanswered::Unsent(_))));
        assert!(!connection.is_at_rest());
    }

    /// It would be taken for the answer to the next request.
    #[tokio::test]
    async fn one_that_says_more_than_was_asked_is_left() {
        let (mut connection, mut server) = connection().await;
        let serve = async {
            let mut read = [0; 1 << 10];
            assert!(server.read(&mut read).await.unwrap() > 0);
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            server.write_all(&answer.repeat(2)).await.unwrap();
        };
        let (first, ()) = tokio::join!(connection.exchange(post(3)), serve);
        assert!(first.is_ok() && !connection.is_at_rest());
    }

    #[tokio::test]
    async fn large_requests_and_answers_in_pieces_pass() {
        const SENT: usize = 5 << 20;
        let (mut connection, mut server) = connection().await;
        let pieces: Vec<Vec<u8>> = (0..40_u8).map(|piece| vec![piece; 20_000]).collect();
        let whole = pieces.concat();
        let serve = async {
            for _ in 0..2 {
                // Its head has no such byte.
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
                assert!(connection.is_at_rest());
            }
        };
        tokio::join!(serve, ask);
    }
}
