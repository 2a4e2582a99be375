"""Good requests, and bad values of each field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from grpcurl import Json

STREAM = "arn:aws:kinesis:us-west-2:111122223333:stream/detections"
ROLE = "arn:aws:iam::111122223333:role/siem"
EXTERNAL_ID = "example-external-id-1"
NETWORK = "018f3c1a-0000-7000-8000-000000000001"
DEVICE = "018f3c1a-0000-7000-8000-0000000000a1"
MIB = 1 << 20


def configuration(**changes: Any) -> Json:
    """Returns a good Configure request, with changes."""
    good = {
        "organization_id": "bad-input",
        "kinesis_stream_arn": STREAM,
        "role_arn": ROLE,
        "external_id": EXTERNAL_ID,
    }
    return {**good, **changes}


def event(**changes: Any) -> Json:
    """Returns a good event, with changes; a change to None removes the field."""
    good: Json = {
        "organization_id": "good",
        "network_id": NETWORK,
        "device_id": DEVICE,
        "observed_time": "2026-02-03T04:05:06.123456Z",
        "ids_detection": {
            "src_ip": "192.0.2.1",
            "src_port": 40000,
            "dest_ip": "198.51.100.2",
            "dest_port": 443,
            "proto": "TCP",
            "signature_id": 1000001,
            "signature": "Example",
        },
    }
    return {key: value for key, value in {**good, **changes}.items() if value is not None}


def detection(**changes: Any) -> Json:
    """Returns a good event with changes of its detection."""
    return event(ids_detection={**event()["ids_detection"], **changes})


BAD_ORGANIZATIONS = ["", "a b", "a/b", "é", "x" * 65, "a\n"]

BAD_STREAM_ARNS = {
    "missing": "",
    "no ARN": "detections",
    "another service": "arn:aws:firehose:us-west-2:111122223333:deliverystream/detections",
    "another service's resource": "arn:aws:s3:::detections",
    "a consumer": STREAM + "/consumer/reader:1",
    "an unknown partition": STREAM.replace("arn:aws:", "arn:aws-mars:"),
    "no partition": STREAM.replace("arn:aws:", "arn::"),
    "no region": STREAM.replace("us-west-2", ""),
    "a region that is none": STREAM.replace("us-west-2", "US_WEST"),
    "no account": STREAM.replace("111122223333", ""),
    "a short account": STREAM.replace("111122223333", "11112222333"),
    "an account of letters": STREAM.replace("111122223333", "a1112222333b"),
    "another resource type": STREAM.replace("stream/", "table/"),
    "no name": STREAM.replace("detections", ""),
    "a path": STREAM.replace("detections", "team/detections"),
    "a name with a blank": STREAM.replace("detections", "detec tions"),
    "a name of 129": STREAM.replace("detections", "x" * 129),
    "a wildcard": STREAM.replace("detections", "*"),
    "a blank behind": STREAM + " ",
    "64 KiB": STREAM + "x" * 65536,
}

BAD_ROLE_ARNS = {
    "missing": "",
    "no ARN": "siem",
    "another service": ROLE.replace(":iam:", ":sts:"),
    "an assumed role": "arn:aws:sts::111122223333:assumed-role/siem/session",
    "a user": ROLE.replace("role/", "user/"),
    "the account": "arn:aws:iam::111122223333:root",
    "a region": ROLE.replace("iam::", "iam:us-west-2:"),
    "an unknown partition": ROLE.replace("arn:aws:", "arn:aws-mars:"),
    "no account": ROLE.replace("111122223333", ""),
    "a long account": ROLE.replace("111122223333", "1111222233334"),
    "no name": ROLE.replace("role/siem", "role/"),
    "a name of 65": ROLE.replace("siem", "x" * 65),
    "a name with a blank": ROLE.replace("siem", "si em"),
    "a path that ends": ROLE.replace("siem", "team/"),
    "a path of 600": ROLE.replace("siem", "x" * 600 + "/siem"),
    "a wildcard": ROLE.replace("siem", "*"),
    "64 KiB": ROLE + "x" * 65536,
}

BAD_EXTERNAL_IDS = {
    "missing": "",
    "one character": "x",
    "1,225 characters": "x" * 1225,
    "a blank": "an id",
    "a wildcard": "ab*",
    "not ASCII": "geheimé",
    "a line end": "ab\n",
}

GOOD_ROLE_PATHS = ["arn:aws:iam::111122223333:role/team/network/siem", "arn:aws:iam::111122223333:role/a+=,.@-_b"]

REJECTIONS: Mapping[str, tuple[Json, str, str]] = {
    "organization_id missing": (event(organization_id=None), "INVALID_FIELD", "organization_id"),
    "organization_id malformed": (event(organization_id="a b"), "INVALID_FIELD", "organization_id"),
    "network_id missing": (event(network_id=None), "INVALID_FIELD", "network_id"),
    "network_id malformed": (event(network_id="n1"), "INVALID_FIELD", "network_id"),
    "device_id missing": (event(device_id=None), "INVALID_FIELD", "device_id"),
    "device_id malformed": (event(device_id=DEVICE[:-1]), "INVALID_FIELD", "device_id"),
    "observed_time missing": (event(observed_time=None), "INVALID_FIELD", "observed_time"),
    "event_id malformed": (event(event_id="7"), "INVALID_FIELD", "event_id"),
    "payload missing": (event(ids_detection=None), "INVALID_FIELD", "payload"),
    "src_ip malformed": (detection(src_ip="192.0.2.256"), "INVALID_FIELD", "ids_detection.src_ip"),
    "dest_ip malformed": (detection(dest_ip="2001:db8::g"), "INVALID_FIELD", "ids_detection.dest_ip"),
    "src_port too large": (detection(src_port=65536), "INVALID_FIELD", "ids_detection.src_port"),
    "dest_port too large": (detection(dest_port=4294967295), "INVALID_FIELD", "ids_detection.dest_port"),
    "vlan too large": (detection(vlan=[4096]), "INVALID_FIELD", "ids_detection.vlan[0]"),
    "context is an array": (detection(context_json="[1]"), "INVALID_FIELD", "ids_detection.context_json"),
    "context is cut": (detection(context_json='{"a":'), "INVALID_FIELD", "ids_detection.context_json"),
    "context is two": (detection(context_json="{} {}"), "INVALID_FIELD", "ids_detection.context_json"),
    "context is too deep": (
        detection(context_json='{"a":' * 65 + "1" + "}" * 65),
        "INVALID_FIELD",
        "ids_detection.context_json",
    ),
    "a signature of 1.1 MiB": (detection(signature="x" * int(1.1 * MIB)), "RECORD_TOO_LARGE", ""),
    "a context of 3 MiB": (detection(context_json=json.dumps({"a": "x" * 3 * MIB})), "RECORD_TOO_LARGE", ""),
}
