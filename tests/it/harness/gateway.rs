//! A TCP proxy in front of AWS that can be closed, which refuses connections.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream},
    task::{JoinHandle, JoinSet},
};

/// A port that is forwarded to another one while the gateway is open.
pub struct Gateway {
    address: SocketAddr,
    to: SocketAddr,
    /// Reserves the port while nothing listens on it.
    spare: Option<TcpSocket>,
    forwarding: Option<JoinHandle<()>>,
}

impl Gateway {
    /// An open gateway to an address.
    pub async fn to(to: SocketAddr) -> Self {
        let socket = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let mut gateway = Self {
            address: socket.local_addr().unwrap(),
            to,
            spare: Some(socket),
            forwarding: None,
        };
        gateway.open();
        gateway
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Accepts connections.
    pub fn open(&mut self) {
        let listener = self.spare.take().unwrap().listen(128).unwrap();
        self.spare = Some(bind(self.address));
        self.forwarding = Some(tokio::spawn(forward(listener, self.to)));
    }

    /// Refuses connections and ends the existing ones.
    pub async fn close(&mut self) {
        let forwarding = self.forwarding.take().unwrap();
        forwarding.abort();
        assert!(forwarding.await.unwrap_err().is_cancelled());
        assert!(TcpStream::connect(self.address).await.is_err());
    }
}

fn bind(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

async fn forward(listener: TcpListener, to: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        let (mut client, _) = listener.accept().await.unwrap();
        connections.spawn(async move {
            if let Ok(mut server) = TcpStream::connect(to).await {
                // Either side may close it.
                let _ended = copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}
