//! Connections: TLS, limits, and peers that send half of something or read nothing.

mod hostile;
mod limits;
mod tls;

use prost::Message;
use siem_client::v1;

use crate::harness::framed;

const GET: &str = "siem.v1.SiemIntegrationService/Get";
const LIST: &str = "siem.v1.SiemIntegrationService/List";
const CONFIGURE: &str = "siem.v1.SiemIntegrationService/Configure";
const STREAM_STATUS: &str = "siem.v1.SiemIntegrationService/StreamStatus";
const PUBLISH: &str = "siem.v1.EventService/Publish";
const REFLECTION: &str = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// Body of a Publish whose answer is large: each event is rejected with a description.
fn rejected_events() -> Vec<u8> {
    let events = vec![v1::Event::default(); 1000];
    framed(0, &v1::PublishRequest { events }.encode_to_vec())
}

/// Body of a StreamStatus for organizations without an integration.
fn subscription(organizations: usize) -> Vec<u8> {
    let names = (0..organizations).map(|number| format!("{number:064}"));
    let request = v1::StreamStatusRequest {
        organization_ids: names.collect(),
        ..v1::StreamStatusRequest::default()
    };
    framed(0, &request.encode_to_vec())
}

/// Body of a Get.
fn get() -> Vec<u8> {
    let request = v1::GetRequest {
        organization_id: "acme".to_owned(),
    };
    framed(0, &request.encode_to_vec())
}
