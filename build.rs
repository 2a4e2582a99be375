//! Compiles `proto/` with protox, so that a build needs no protoc.

use std::{env, error::Error, fs, path::PathBuf, process::Command};

use prost_types::{FileDescriptorSet, field_descriptor_proto::Type};
use protox::prost::Message;

const FILES: [&str; 3] = [
    "siem/v1/error.proto",
    "siem/v1/event.proto",
    "siem/v1/integration.proto",
];

/// Requests whose `events` stay encoded, so that the server decodes events without building
/// structs. `bytes` and messages have the same wire format.
const OPAQUE_EVENTS: [&str; 2] = ["PublishRequest", "PublishStreamRequest"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rustc-env=BUILD_COMMIT={}", commit());
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
        // Sorted keys, so that equal events have equal bytes.
        .btree_map(".siem.v1.IdsDetection.metadata")
        // They contain the external ID, which must not be printed; src/proto.rs redacts it.
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

/// Commit that is built: the variable `BUILD_COMMIT` if it is set, for builds of an archive;
/// otherwise that of the working tree.
fn commit() -> String {
    println!("cargo:rerun-if-env-changed=BUILD_COMMIT");
    let given = env::var("BUILD_COMMIT").unwrap_or_default();
    if !given.is_empty() {
        return given;
    }
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = output.status.success().then_some(output.stdout)?;
        Some(String::from_utf8(text).ok()?.trim().to_owned())
    };
    // Its last line changes with each commit and checkout.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && fs::exists(&log).unwrap_or(false)
    {
        println!("cargo:rerun-if-changed={log}");
    }
    git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned())
}
