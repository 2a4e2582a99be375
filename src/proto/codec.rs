//! How messages are encoded: into memory of their own size. tonic's own encoder sets 8 KiB
//! aside for each call and keeps them as long as it lasts, which is most of what a
//! status stream at rest would cost. And how they are decoded: only what has not too many
//! fields.

use std::marker::PhantomData;

use bytes::Buf as _;
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, decode_key, skip_field},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};
use tonic_prost::ProstDecoder;

use super::UNDECODABLE;

/// Encoded bytes that are handed on without waiting for more.
const YIELD_BYTES: usize = 32 << 10;
/// Fields of a message, those of its own fields not counted. An empty entry of a repeated
/// field takes two bytes on the wire and 32 in memory.
const MOST_FIELDS: usize = 1 << 16;

/// Protobuf by prost, as [`tonic_prost::ProstCodec`].
pub struct LeanCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for LeanCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for LeanCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = LeanEncoder<T>;
    type Decoder = LeanDecoder<U>;

    fn encoder(&mut self) -> LeanEncoder<T> {
        LeanEncoder(PhantomData)
    }

    fn decoder(&mut self) -> LeanDecoder<U> {
        LeanDecoder(ProstDecoder::default())
    }
}

/// The decoder of [`LeanCodec`].
pub struct LeanDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for LeanDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let problem = match has_too_many_fields(bytes.chunk()) {
            Ok(false) => return self.0.decode(bytes),
            Ok(true) => format!("{UNDECODABLE}: it has more than {MOST_FIELDS} fields"),
            Err(error) => error.to_string(),
        };
        Err(Status::internal(problem))
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

fn has_too_many_fields(mut bytes: &[u8]) -> Result<bool, DecodeError> {
    // A field takes two bytes at the least.
    let mut most = MOST_FIELDS;
    while bytes.len() / 2 > most {
        if most == 0 {
            return Ok(true);
        }
        most -= 1;
        let (tag, wire_type) = decode_key(&mut bytes)?;
        skip_field(wire_type, tag, &mut bytes, DecodeContext::default())?;
    }
    Ok(false)
}

/// The encoder of [`LeanCodec`].
pub struct LeanEncoder<T>(PhantomData<T>);

impl<T: Message> Encoder for LeanEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(item.encoded_len());
        item.encode(out)
            .map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        // tonic divides by it where it compresses.
        BufferSettings::new(1, YIELD_BYTES)
    }
}
