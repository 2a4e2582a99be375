use super::*;
use crate::domain::event::{
    Timestamp,
    tests::{event, full, text},
};

#[test]
fn each_problem_names_its_field() {
    use RejectionReason::{InvalidField, MissingField};
    let refused = |edit: fn(&mut Event<'_>), reason, field: &str| {
        let mut event = event(full());
        edit(&mut event);
        let rejection = event.validate().unwrap_err();
        assert_eq!((rejection.reason, &*rejection.field), (reason, field));
    };
    refused(|e| e.organization_id = "", MissingField, "organization_id");
    refused(
        |e| e.organization_id = "a b",
        InvalidField,
        "organization_id",
    );
    refused(|e| e.network_id = "", MissingField, "network_id");
    refused(|e| e.network_id = "acme", InvalidField, "network_id");
    refused(|e| e.device_id = "", MissingField, "device_id");
    for form in [
        "0198c0de7a1170008000000000000000",
        "{0198c0de-7a11-7000-8000-000000000000}",
        "urn:uuid:0198c0de-7a11-7000-8000-000000000000",
        "0198c0de-7a11-7000-8000-00000000000g",
        "0198c0de-7a1170-00-8000-000000000000",
        "0198c0de-7a11-7000-8000-0000000000é",
    ] {
        let mut event = event(full());
        event.device_id = form;
        assert_eq!(event.validate().unwrap_err().field, "device_id", "{form}");
    }
    refused(|e| e.observed_time = None, MissingField, "observed_time");
    refused(
        |e| {
            e.observed_time = Some(Timestamp {
                seconds: i64::MAX,
                nanos: 0,
            });
        },
        InvalidField,
        "observed_time",
    );
    refused(|e| e.event_id = Some(""), InvalidField, "event_id");
    refused(|e| e.payload = None, MissingField, "payload");
}

#[test]
fn each_problem_of_a_detection_names_its_field() {
    let refused = |detection: Detection<'_>, field: &str| {
        let rejection = text(&event(detection)).unwrap_err();
        assert_eq!(rejection.reason, RejectionReason::InvalidField);
        assert_eq!(rejection.field, format!("ids_detection.{field}"));
    };
    for ip in ["acme", "192.0.2.256", "192.0.2.1:80", "[2001:db8::1]", " "] {
        let with_source = Detection {
            src_ip: ip,
            ..full()
        };
        refused(with_source, "src_ip");
        let with_destination = Detection {
            dest_ip: ip,
            ..full()
        };
        refused(with_destination, "dest_ip");
    }
    let port = Some(65_536);
    let with_port = Detection {
        src_port: port,
        ..full()
    };
    refused(with_port, "src_port");
    let with_port = Detection {
        dest_port: port,
        ..full()
    };
    refused(with_port, "dest_port");
    let mut vlan = Vlans::default();
    (0..9).for_each(|id| vlan.push(id));
    refused(Detection { vlan, ..full() }, "vlan");
    let mut vlan = Vlans::default();
    [4_095, 4_096].into_iter().for_each(|id| vlan.push(id));
    refused(Detection { vlan, ..full() }, "vlan[1]");
    for context_json in ["[]", "{", "{} {}", "x"] {
        let with_context = Detection {
            context_json,
            ..full()
        };
        refused(with_context, "context_json");
    }
}
