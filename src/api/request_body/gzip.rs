//! Messages that come compressed by gzip ([RFC 1952]), in the form of gRPC's
//! [compression]: each message is a file of its own, of one or more members.
//!
//! [RFC 1952]: https://www.rfc-editor.org/rfc/rfc1952
//! [compression]: https://github.com/grpc/grpc/blob/master/doc/compression.md

use std::io::{self, Read as _};

use bytes::{Buf as _, Bytes, BytesMut, buf::Reader};
use flate2::bufread::MultiGzDecoder;

use super::Room;
use crate::api::errors::ApiError;

/// Bytes that are decompressed at once.
const PIECE_BYTES: usize = 64 << 10;

/// A compressed message on its way in.
#[derive(Default)]
pub(super) struct Arriving {
    pub(super) bytes: BytesMut,
    /// Room for its bytes as they come.
    pub(super) room: Option<Room>,
}

/// A message that is decompressed as it is read.
pub(super) struct Inflating {
    decoder: MultiGzDecoder<Reader<Bytes>>,
    left: usize,
    _room: Option<Room>,
}

impl Inflating {
    /// Begins with a message that decompresses to `length` bytes.
    pub(super) fn new(arrived: Arriving, length: usize) -> Self {
        Self {
            decoder: MultiGzDecoder::new(arrived.bytes.freeze().reader()),
            left: length,
            _room: arrived.room,
        }
    }

    /// Returns the next bytes; None at the end.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        if self.left == 0 {
            return Ok(None);
        }
        let mut piece = vec![0; self.left.min(PIECE_BYTES)];
        self.decoder.read_exact(&mut piece).map_err(corrupt)?;
        self.left -= piece.len();
        Ok(Some(piece.into()))
    }
}

/// Returns the length of a message once it is decompressed, and checks all of it. That is
/// done twice so that nothing is kept before there is room for it: the length that gzip
/// itself tells is that of the last member, and whatever the sender wrote there.
pub(super) fn inflated_length(bytes: &[u8], most: usize) -> Result<usize, ApiError> {
    let mut decoder = MultiGzDecoder::new(bytes).take(most as u64 + 1);
    let length = io::copy(&mut decoder, &mut io::sink()).map_err(corrupt)? as usize;
    match length <= most {
        true => Ok(length),
        false => Err(ApiError::MessageTooLarge { most }),
    }
}

fn corrupt(error: io::Error) -> ApiError {
    ApiError::Malformed(match error.kind() {
        io::ErrorKind::UnexpectedEof => "a message is not gzip, or cut off".to_owned(),
        _ => "a message is not gzip, or damaged".to_owned(),
    })
}
