//! The connection of a request.

use std::{net::SocketAddr, sync::Arc};

use rustls::pki_types::CertificateDer;

/// Remote end of a connection. An extension of each request.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    /// Address and port; None in tests without a connection.
    pub(super) address: Option<SocketAddr>,
    /// Certificates that TLS has verified, the peer's own first; empty without a client
    /// certificate.
    pub(super) certificates: Arc<[CertificateDer<'static>]>,
}
