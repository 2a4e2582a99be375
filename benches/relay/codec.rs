//! gRPC codecs for requests that stay encoded: the loader sends bytes that were encoded
//! beforehand, and the intake stores the bytes that it receives. Responses are messages.

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};
use tonic_prost::{ProstDecoder, ProstEncoder};

/// Codec of a client whose responses are of type `T`.
pub type EncodedRequests<T> = CodecOf<BytesEncoder, ProstDecoder<T>>;
/// Codec of a server whose responses are of type `T`.
pub type UndecodedRequests<T> = CodecOf<ProstEncoder<T>, BytesDecoder>;

/// Codec made of an encoder and a decoder.
pub struct CodecOf<E, D>(PhantomData<(E, D)>);

impl<E, D> Default for CodecOf<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E, D> Codec for CodecOf<E, D>
where
    E: Encoder<Error = Status, Item: Send + 'static> + Default + Send + 'static,
    D: Decoder<Error = Status, Item: Send + 'static> + Default + Send + 'static,
{
    type Encode = E::Item;
    type Decode = D::Item;
    type Encoder = E;
    type Decoder = D;

    fn encoder(&mut self) -> E {
        E::default()
    }

    fn decoder(&mut self) -> D {
        D::default()
    }
}

#[derive(Default)]
pub struct BytesEncoder;

impl Encoder for BytesEncoder {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(item.len());
        out.put(item);
        Ok(())
    }
}

#[derive(Default)]
pub struct BytesDecoder;

impl Decoder for BytesDecoder {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
