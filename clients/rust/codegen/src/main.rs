//! Generates `clients/rust/src/gen/siem.v1.rs`; run by `clients/generate`.
//!
//! ```text
//! siem-client-codegen OUTPUT_DIRECTORY
//! ```
//!
//! The generated code is committed, so that users of `siem-client` compile no generator.

use std::{env, error::Error};

const FILES: [&str; 3] = [
    "siem/v1/error.proto",
    "siem/v1/event.proto",
    "siem/v1/integration.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let out = env::args_os().nth(1).ok_or("OUTPUT_DIRECTORY is missing")?;
    let proto = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../proto");
    tonic_prost_build::configure()
        .out_dir(&out)
        .extern_path(".google.rpc.Status", "::tonic_types::Status")
        // Sorted keys: equal events are encoded to equal bytes.
        .btree_map(".siem.v1.IdsDetection.metadata")
        // They hold the external ID in clear, which must not be printed.
        .skip_debug([
            "siem.v1.ConfigureRequest",
            "siem.v1.GenerateExternalIdResponse",
        ])
        .server_mod_attribute("siem.v1", "#[cfg(feature = \"testing\")]")
        .compile_fds(protox::compile(FILES, [proto])?)?;
    Ok(())
}
