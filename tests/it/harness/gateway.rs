//! A way to AWS that can be closed: connections are then refused.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream},
    task::{JoinHandle, JoinSet},
};

/// A port that leads to another one while it is open.
pub struct Gateway {
    address: SocketAddr,
    to: SocketAddr,
    /// Holds the port while nobody listens on it.
    spare: Option<TcpSocket>,
    passage: Option<JoinHandle<()>>,
}

impl Gateway {
    /// Open from the start.
    pub async fn to(to: SocketAddr) -> Self {
        let socket = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let mut gateway = Self {
            address: socket.local_addr().unwrap(),
            to,
            spare: Some(socket),
            passage: None,
        };
        gateway.open();
        gateway
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Takes connections.
    pub fn open(&mut self) {
        let listener = self.spare.take().unwrap().listen(128).unwrap();
        self.spare = Some(bind(self.address));
        self.passage = Some(tokio::spawn(pass(listener, self.to)));
    }

    /// Refuses connections, and ends those that are there.
    pub async fn close(&mut self) {
        let passage = self.passage.take().unwrap();
        passage.abort();
        assert!(passage.await.unwrap_err().is_cancelled());
        assert!(TcpStream::connect(self.address).await.is_err());
    }
}

fn bind(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

async fn pass(listener: TcpListener, to: SocketAddr) {
    let mut passing = JoinSet::new();
    loop {
        let (mut client, _) = listener.accept().await.unwrap();
        passing.spawn(async move {
            if let Ok(mut server) = TcpStream::connect(to).await {
                // Either side may end it.
                let _ended = copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}
