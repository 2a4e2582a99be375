//! Protobuf codec with two differences from tonic's: it encodes into a buffer of the message's
//! size, and it refuses messages with too many fields. tonic's encoder allocates 8 KiB for each
//! call and keeps them until it ends, which would be most of the memory of an idle status
//! stream.

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

use super::DECODE_FAILURE;

/// Encoded bytes after which tonic sends without waiting for further messages.
const YIELD_BYTES: usize = 32 << 10;
/// Fields of a message, not counting those of nested messages. An empty entry of a repeated
/// field takes 2 bytes on the wire and 32 in memory.
const MAX_FIELDS: usize = 1 << 16;

/// Replacement of [`tonic_prost::ProstCodec`].
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

/// Decoder of [`LeanCodec`].
pub struct LeanDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for LeanDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let problem = match has_too_many_fields(bytes.chunk()) {
            Ok(false) => return self.0.decode(bytes),
            Ok(true) => format!("{DECODE_FAILURE}: it has more than {MAX_FIELDS} fields"),
            Err(error) => error.to_string(),
        };
        Err(Status::internal(problem))
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

fn has_too_many_fields(mut bytes: &[u8]) -> Result<bool, DecodeError> {
    let mut fields_left = MAX_FIELDS;
    // A field takes at least two bytes: fewer bytes cannot exceed the limit and are not parsed.
    while bytes.len() / 2 > fields_left {
        if fields_left == 0 {
            return Ok(true);
        }
        fields_left -= 1;
        let (tag, wire_type) = decode_key(&mut bytes)?;
        skip_field(wire_type, tag, &mut bytes, DecodeContext::default())?;
    }
    Ok(false)
}

/// Encoder of [`LeanCodec`].
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
        // Not 0: tonic divides by the buffer size when it compresses.
        BufferSettings::new(1, YIELD_BYTES)
    }
}
