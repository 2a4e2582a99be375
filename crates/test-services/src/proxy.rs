//! A TCP proxy that cuts and silences connections.

use std::{net::Ipv4Addr, thread};

use rustix::net::{Shutdown, shutdown};
use tokio::{
    io::{self, AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime,
    sync::watch::{self, error::RecvError},
    task::JoinSet,
};

use crate::{processes::listen, with_timeout};

const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Treatment of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Forward,
    Hang,
    Cut,
}

/// A TCP proxy from a port of its own on 127.0.0.1 to another one there. It runs in a thread of its
/// own, so that tests with different runtimes may share it. Dropping the handle ends it and its
/// connections.
pub struct Proxy {
    port: u16,
    mode: watch::Sender<Mode>,
    applied: watch::Receiver<Mode>,
}

impl Proxy {
    /// Starts a proxy to a port, on which nothing needs to listen yet.
    pub fn start(target: u16) -> Self {
        let listener = listen();
        let port = listener.local_addr().unwrap().port();
        listener.set_nonblocking(true).unwrap();
        let (mode, modes) = watch::channel(Mode::Forward);
        let (applying, applied) = watch::channel(Mode::Forward);
        thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                // Ends when the handle is dropped.
                let _dropped = serve(listener, target, modes, applying).await;
            });
        });
        Self {
            port,
            mode,
            applied,
        }
    }

    /// Port to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Closes all connections, and refuses new ones.
    pub async fn cut(&self) {
        self.apply(Mode::Cut).await;
    }

    /// Keeps and accepts connections, and forwards nothing: as a network that loses every packet.
    pub async fn hang(&self) {
        self.apply(Mode::Hang).await;
    }

    /// Forwards again, also on connections that hung.
    pub async fn resume(&self) {
        self.apply(Mode::Forward).await;
    }

    async fn apply(&self, mode: Mode) {
        self.mode.send_replace(mode);
        let mut applied = self.applied.clone();
        let applied = applied.wait_for(|applied| *applied == mode);
        with_timeout("the proxy", applied).await.unwrap();
    }
}

async fn serve(
    listener: TcpListener,
    target: u16,
    mut modes: watch::Receiver<Mode>,
    applied: watch::Sender<Mode>,
) -> Result<(), RecvError> {
    let port = listener.local_addr().unwrap().port();
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let mode = *modes.borrow_and_update();
        if mode == Mode::Cut {
            if let Some(listener) = listener.take() {
                // Closing alone leaves it to a process that is just being spawned, until its exec.
                shutdown(&listener, Shutdown::Both).unwrap();
            }
            connections.shutdown().await;
        } else if listener.is_none() {
            listener = Some(TcpListener::bind((LOOPBACK, port)).await.unwrap());
        }
        applied.send_replace(mode);
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = modes.changed() => changed?,
            Some(_ended) = connections.join_next() => {}
            Ok((client, _address)) = accept => {
                connections.spawn(connect(client, target, modes.clone()));
            }
        }
    }
}

/// Forwards a connection in both directions, until one of them fails or both have ended.
async fn connect(
    client: TcpStream,
    target: u16,
    mut modes: watch::Receiver<Mode>,
) -> io::Result<()> {
    until_forwarding(&mut modes).await?;
    let server = TcpStream::connect((LOOPBACK, target)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::try_join!(
        forward(from_client, to_server, modes.clone()),
        forward(from_server, to_client, modes),
    )?;
    Ok(())
}

async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut modes: watch::Receiver<Mode>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        until_forwarding(&mut modes).await?;
        let read = tokio::select! {
            biased;
            changed = modes.changed() => {
                changed.map_err(io::Error::other)?;
                continue;
            }
            read = from.read(&mut buffer) => read?,
        };
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
    }
}

async fn until_forwarding(modes: &mut watch::Receiver<Mode>) -> io::Result<()> {
    let forwarding = modes.wait_for(|mode| *mode == Mode::Forward).await;
    forwarding.map(|_mode| ()).map_err(io::Error::other)
}
