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
    driver: http1::Connection<Stream, Body>,
    is_over: bool,
}

/// Why there is no answer.
pub(super) enum Unanswered {
    /// The server had closed before anything of the request was sent.
    Unsent(Box<Request<Body>>),
    Failed(Cause),
}

impl Connection {
    /// It has a memory of its own: with its TLS and its buffers it is too large to be moved
    /// about.
    pub(super) async fn open(stream: Stream) -> Result<Box<Self>, Cause> {
        let opened = http1::handshake(stream).await;
        let (sender, driver) = opened.map_err(|_| Cause::Connection)?;
        Ok(Box::new(Self {
            sender,
            driver,
            is_over: false,
        }))
    }

    /// Whether a further request may be sent: nothing of the last is outstanding, and the
    /// server has not closed. A task that sent one before is not woken by it any more.
    pub(super) fn is_at_rest(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        !self.is_over && self.sender.is_ready()
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
                Poll::Pending if self.is_over => {
                    Poll::Ready(Err(Unanswered::Failed(Cause::Connection)))
                }
                answer => answer,
            }
        })
        .await
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        // What went wrong is told to who sent the request.
        if !self.is_over {
            self.is_over = Pin::new(&mut self.driver).poll(cx).is_ready();
        }
    }
}

impl From<TrySendError<Request<Body>>> for Unanswered {
    fn from(mut error: TrySendError<Request<Body>>) -> Self {
        match error.take_message() {
            Some(request) => Self::Unsent(Box::new(request)),
            None => Self::Failed(Cause::Connection),
        }
    }
}
