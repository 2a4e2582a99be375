//! Bytes of a connection, with or without TLS, and what their flow says about the peer.

use std::{
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

use super::{Connection, Table};

/// Client preface of HTTP/2 (RFC 9113, section 3.4), without its SETTINGS frame.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Transport of a connection after its handshake.
pub(super) enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Transport that records progress in its [`Connection`].
pub(super) struct Io {
    transport: Transport,
    table: Arc<Table>,
    connection: Arc<Connection>,
    /// Bytes of the preface that were read.
    preface: usize,
    /// The client has sent something other than the preface.
    is_http1: bool,
    is_blocked: bool,
}

impl Io {
    pub(super) fn new(
        transport: Transport,
        table: Arc<Table>,
        connection: Arc<Connection>,
    ) -> Self {
        Self {
            transport,
            table,
            connection,
            preface: 0,
            is_http1: false,
            is_blocked: false,
        }
    }

    /// Records that bytes were read.
    fn note_read(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.is_http1 {
            self.connection.note_head(&self.table);
        } else if self.preface < PREFACE.len() {
            let expected = &PREFACE[self.preface..];
            let length = bytes.len().min(expected.len());
            self.is_http1 = bytes[..length] != expected[..length];
            self.preface += length;
            if !self.is_http1 && self.preface == PREFACE.len() {
                self.connection.has_preface.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Records whether the peer's socket takes bytes.
    fn record<T>(&mut self, written: Poll<T>) -> Poll<T> {
        if written.is_pending() != self.is_blocked {
            self.is_blocked = written.is_pending();
            let since = match self.is_blocked {
                true => self.table.now_ms(),
                false => 0,
            };
            self.connection
                .blocked_since_ms
                .store(since, Ordering::Relaxed);
        }
        written
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        };
        self.note_read(&buffer.filled()[before..]);
        read
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        self.record(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        };
        self.record(written)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Plain(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => {
                let flushed = Pin::new(stream).poll_flush(cx);
                self.record(flushed)
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        };
        self.record(closed)
    }
}
