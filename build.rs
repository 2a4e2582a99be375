//! Compiles `proto/` with protox, so that a fresh machine needs no protoc.

use std::{env, error::Error, fs, path::PathBuf};

use prost_types::{FileDescriptorSet, field_descriptor_proto::Type};
use protox::prost::Message;

const FILES: [&str; 3] = [
    "siem/v1/error.proto",
    "siem/v1/event.proto",
    "siem/v1/integration.proto",
];

/// Requests whose `events` stay encoded: `bytes` and a message are the same on
/// the wire, and the server then walks the events without building structs.
const OPAQUE_EVENTS: [&str; 2] = ["PublishRequest", "PublishStreamRequest"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(
        out.join("siem_v1_descriptor.bin"),
        descriptors.encode_to_vec(),
    )?;
    tonic_prost_build::configure()
        .build_client(false)
        .bytes(".siem.v1")
        .codec_path("crate::proto::codec::LeanCodec")
        .extern_path(".google.rpc.Status", "::tonic_types::Status")
        // Sorted keys: equal events have equal bytes.
        .btree_map(".siem.v1.IdsDetection.metadata")
        // It holds the external ID in clear, which must not be printable.
        .skip_debug([
            "siem.v1.ConfigureRequest",
            "siem.v1.GenerateExternalIdResponse",
        ])
        .compile_fds(with_opaque_events(descriptors))?;
    Ok(())
}

fn with_opaque_events(mut set: FileDescriptorSet) -> FileDescriptorSet {
    let fields = set
        .file
        .iter_mut()
        .filter(|file| file.package() == "siem.v1")
        .flat_map(|file| &mut file.message_type)
        .filter(|message| OPAQUE_EVENTS.contains(&message.name()))
        .flat_map(|message| &mut message.field)
        .filter(|field| field.name() == "events");
    for field in fields {
        field.set_type(Type::Bytes);
        field.type_name = None;
    }
    set
}
