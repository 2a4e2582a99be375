//! Rights that RPCs need: the only table of them. A path that is not in it is refused.

use crate::domain::rights::Scope;

/// Requirement of an RPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// The scope. The handler checks the organizations.
    Scope(Scope),
    /// Nothing. The handler decides by the content of the request.
    Nothing,
}

/// RPC with its requirement.
#[derive(Debug)]
pub(super) struct Rpc {
    /// Path of its requests, exactly.
    pub(super) path: &'static str,
    pub(super) need: Need,
    /// Its answer may go on for long, so its rights are checked again.
    pub(super) is_stream: bool,
}

const fn unary(path: &'static str, scope: Scope) -> Rpc {
    Rpc {
        path,
        need: Need::Scope(scope),
        is_stream: false,
    }
}

const fn stream(path: &'static str, scope: Scope) -> Rpc {
    Rpc {
        is_stream: true,
        ..unary(path, scope)
    }
}

const TABLE: [Rpc; 15] = [
    unary("/siem.v1.EventService/Publish", Scope::Publish),
    stream("/siem.v1.EventService/PublishStream", Scope::Publish),
    unary("/siem.v1.SiemIntegrationService/Configure", Scope::Write),
    // It stores a new external ID.
    unary(
        "/siem.v1.SiemIntegrationService/GenerateExternalId",
        Scope::Write,
    ),
    unary("/siem.v1.SiemIntegrationService/Get", Scope::Read),
    // It reads nothing but the account of this service.
    unary("/siem.v1.SiemIntegrationService/GetOnboarding", Scope::Read),
    unary(
        "/siem.v1.SiemIntegrationService/ListAuditEntries",
        Scope::Audit,
    ),
    unary("/siem.v1.SiemIntegrationService/List", Scope::Read),
    unary("/siem.v1.SiemIntegrationService/Delete", Scope::Write),
    // It writes an event into the customer's stream, and sets the status.
    unary("/siem.v1.SiemIntegrationService/SendTest", Scope::Write),
    stream("/siem.v1.SiemIntegrationService/StreamStatus", Scope::Read),
    // Probes have no identity; the handler answers them for the server as a whole only.
    Rpc {
        path: "/grpc.health.v1.Health/Check",
        need: Need::Nothing,
        is_stream: false,
    },
    Rpc {
        path: "/grpc.health.v1.Health/Watch",
        need: Need::Nothing,
        is_stream: true,
    },
    stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        Scope::Read,
    ),
    stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        Scope::Read,
    ),
];

/// Whether the answer of an RPC, or its request, lasts as long as the client wants.
pub(in crate::api) fn is_stream(path: &str) -> bool {
    find(path).is_some_and(|rpc| rpc.is_stream)
}

/// Finds the RPC with this path, byte for byte.
pub(super) fn find(path: &str) -> Option<&'static Rpc> {
    TABLE.iter().find(|rpc| rpc.path == path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;
    use crate::proto::DESCRIPTOR_SET;

    /// Paths of all RPCs that the server has, and whether their answers are streams.
    fn served() -> BTreeMap<String, bool> {
        let mut served = BTreeMap::new();
        for set in [
            DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ] {
            for file in FileDescriptorSet::decode(set).unwrap().file {
                for service in &file.service {
                    let service_path = format!("/{}.{}", file.package(), service.name());
                    let methods = service.method.iter();
                    served.extend(methods.map(|method| {
                        (
                            format!("{service_path}/{}", method.name()),
                            method.client_streaming() || method.server_streaming(),
                        )
                    }));
                }
            }
        }
        served
    }

    #[test]
    fn each_rpc_has_exactly_one_entry() {
        let served = served();
        let listed: BTreeMap<String, bool> = TABLE
            .iter()
            .map(|rpc| (rpc.path.to_owned(), rpc.is_stream))
            .collect();
        assert_eq!(listed, served);
        assert_eq!(TABLE.len(), served.len());
    }

    #[test]
    fn other_forms_of_a_path_are_unknown() {
        let path = "/siem.v1.SiemIntegrationService/Get";
        assert_eq!(find(path).unwrap().need, Need::Scope(Scope::Read));
        for other in [
            format!("/{path}"),
            format!("{path}/"),
            path.to_lowercase(),
            path.replace("Get", "%47et"),
            path.replace('/', "//"),
            path[1..].to_owned(),
            format!("{path}?"),
            format!("/.{path}"),
            String::new(),
        ] {
            assert!(find(&other).is_none(), "{other}");
        }
    }
}
