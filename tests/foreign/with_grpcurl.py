"""Drives each RPC with the real grpcurl, through reflection, with good and bad input.

grpcurl shares no code with the server and knows no proto file of it: what it can call is
what the server's reflection tells. Bad input must give the canonical code, every
violated field at once in BadRequest, and an ErrorInfo with a reason of the domain
`siem.v1`; and after each call the server must be alive.

AWS is a port that nobody listens on: none of this may need it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
from harness import Failure, Relay, Report, free_port, run

INTEGRATIONS = "siem.v1.SiemIntegrationService"
EVENTS = "siem.v1.EventService"

STREAM = "arn:aws:kinesis:us-west-2:111122223333:stream/detections"
ROLE = "arn:aws:iam::111122223333:role/siem"
EXTERNAL_ID = "example-external-id-1"
NETWORK = "018f3c1a-0000-7000-8000-000000000001"
DEVICE = "018f3c1a-0000-7000-8000-0000000000a1"
MIB = 1 << 20

OK, INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, ABORTED = 0, 3, 5, 6, 10

Json = dict[str, Any]


class Answer:
    """What grpcurl printed: the messages, and the status with its details."""

    def __init__(self, code: int, messages: list[Json], status: Json) -> None:
        self.code = code
        self.messages = messages
        self.message = status.get("message", "")
        details = {detail["@type"].rsplit(".", 1)[-1]: detail for detail in status.get("details", [])}
        info = details.get("ErrorInfo", {})
        self.reason = f"{info.get('domain', '')}/{info.get('reason', '')}"
        violations = details.get("BadRequest", {})
        self.violations = {
            v["field"]: v.get("description", "")
            for v in violations.get("field_violations", [])
        }

    def __str__(self) -> str:
        return f"code {self.code} {self.reason} {self.message!r} {self.violations} {json.dumps(self.messages)[:400]}"

    def only(self) -> Json:
        """The one message of a call that went well."""
        if self.code != OK or len(self.messages) != 1:
            raise Failure(f"should have answered OK with one message, was {self}")
        return self.messages[0]


def json_values(text: str) -> Iterator[Json]:
    """The JSON values that stand one after another."""
    decoder = json.JSONDecoder()
    position = 0
    while (position := len(text) - len(text[position:].lstrip())) < len(text):
        value, position = decoder.raw_decode(text, position)
        yield proto_names(value)


def proto_names(value: Any) -> Any:
    """With the fields' names as in the proto files; grpcurl prints them in camelCase where reflection tells json_name."""
    if isinstance(value, dict):
        return {re.sub("[A-Z]", lambda m: "_" + m[0].lower(), key): proto_names(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [proto_names(inner) for inner in value]
    return value


class Grpcurl:
    """grpcurl against one server."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.flags = ["grpcurl", "-plaintext", "-max-time", "60"]

    def tell(self, *arguments: str) -> str:
        """What `list` or `describe` print."""
        command = [*self.flags, self.relay.address, *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL).stdout

    def call(self, method: str, *requests: Json) -> Answer:
        """Calls with the requests (of a unary method: one), and sees that the server lives on."""
        command = [*self.flags, "-format-error", "-emit-defaults", "-d", "@", self.relay.address, method]
        text = "".join(json.dumps(request) for request in requests)
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        self.relay.expect_alive()
        if done.returncode == 0:
            return Answer(OK, list(json_values(done.stdout)), {})
        # grpcurl ends with 64 and the status code where the server answered with one.
        if done.returncode < 64:
            raise Failure(f"grpcurl itself failed: {done.stderr}")
        status = next(json_values(done.stderr[done.stderr.index("{") :]))
        if status["code"] != done.returncode - 64:
            raise Failure(f"exit code {done.returncode} with {status}")
        return Answer(status["code"], list(json_values(done.stdout)), status)

    def stream_until(self, method: str, request: Json, last: str) -> list[Json]:
        """The messages of a server stream up to one that has the field `last`."""
        command = [*self.flags, "-emit-defaults", "-d", json.dumps(request), self.relay.address, method]
        got: list[Json] = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            lines: list[str] = []
            for line in process.stdout:
                lines.append(line)
                # grpcurl prints a message over many lines; the brace alone closes it.
                if line.rstrip() == "}":
                    got.extend(json_values("".join(lines)))
                    lines = []
                    if last in got[-1]:
                        process.terminate()
                        return got
        raise Failure(f"{method} ended without {last}: {got}")


def expect(answer: Answer, code: int, reason: str, fields: Iterable[str] = ()) -> None:
    """The code, the reason of our domain, and exactly these violated fields, each described."""
    if answer.code != code or answer.reason != f"siem.v1/{reason}":
        raise Failure(f"should be code {code} siem.v1/{reason}, was {answer}")
    if set(answer.violations) != set(fields):
        raise Failure(f"should name exactly {sorted(fields)}, was {answer}")
    if not all(answer.violations.values()):
        raise Failure(f"a violation has no description: {answer}")
    if not answer.message:
        raise Failure(f"the error has no message: {answer}")


def configuration(**changes: Any) -> Json:
    """A good Configure request, with changes."""
    good = {
        "organization_id": "bad-input",
        "kinesis_stream_arn": STREAM,
        "role_arn": ROLE,
        "external_id": EXTERNAL_ID,
    }
    return {**good, **changes}


def event(**changes: Any) -> Json:
    """A good event, with changes; a change to None leaves the field out."""
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
    """A good event whose detection is changed."""
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


def test_reflection(report: Report, grpcurl: Grpcurl) -> None:
    """What a foreigner sees without any file."""
    report.section("reflection and health")
    services = grpcurl.tell("list").split()
    for service in (INTEGRATIONS, EVENTS, "grpc.health.v1.Health"):
        report.check(service in services, f"list names {service}", services)
    methods = {name.rsplit(".", 1)[-1] for name in grpcurl.tell("list", INTEGRATIONS).split()}
    wanted = {"Configure", "Get", "List", "Delete", "SendTest", "StreamStatus"}
    report.check(methods == wanted, "the integration service has its six RPCs", methods)
    methods = {name.rsplit(".", 1)[-1] for name in grpcurl.tell("list", EVENTS).split()}
    report.check(methods == {"Publish", "PublishStream"}, "the event service has its two RPCs", methods)
    report.check("IdsDetection ids_detection = 6" in grpcurl.tell("describe", "siem.v1.Event"), "describe tells a message")
    report.check(
        grpcurl.call("grpc.health.v1.Health/Check", {}).only()["status"] == "SERVING", "health says SERVING"
    )


def test_configure(report: Report, grpcurl: Grpcurl) -> None:
    """Configure: good, replaced, and each field bad."""
    configure = f"{INTEGRATIONS}/Configure"
    report.section("Configure, good")
    made = grpcurl.call(configure, configuration(organization_id="good")).only()["integration"]
    report.check(made["external_id_hint"] == EXTERNAL_ID[-4:], "the hint is the last four characters", made)
    report.check(EXTERNAL_ID not in json.dumps(made), "the external ID is not returned")
    report.check(made["status"]["status"] == "STATUS_UNKNOWN", "a new integration is UNKNOWN", made)
    again = grpcurl.call(configure, configuration(organization_id="good", external_id="", etag=made["etag"])).only()
    report.check(
        again["integration"]["integration_id"] == made["integration_id"]
        and again["integration"]["external_id_hint"] == made["external_id_hint"],
        "a replacement without external ID keeps integration and external ID",
        again,
    )
    for role in GOOD_ROLE_PATHS:
        kept = grpcurl.call(configure, configuration(organization_id="good", external_id="", role_arn=role)).only()
        report.check(kept["integration"]["role_arn"] == role, f"it takes {role}", kept)

    report.section("Configure, bad")

    def bad(request: Json, fields: Iterable[str]) -> None:
        expect(grpcurl.call(configure, request), INVALID_ARGUMENT, "INVALID_FIELD", fields)

    everything = ["organization_id", "kinesis_stream_arn", "role_arn", "external_id"]
    report.attempt("every field missing", lambda: bad({}, everything))
    report.attempt(
        "every field malformed",
        lambda: bad({"organization_id": "a b", "kinesis_stream_arn": "x", "role_arn": "y", "external_id": "z"}, everything),
    )
    for value in BAD_ORGANIZATIONS:
        request = configuration(organization_id=value)
        report.attempt(f"organization_id {value[:10]!r}", lambda r=request: bad(r, ["organization_id"]))  # type: ignore[misc]
    for what, value in BAD_STREAM_ARNS.items():
        request = configuration(kinesis_stream_arn=value)
        report.attempt(f"kinesis_stream_arn: {what}", lambda r=request: bad(r, ["kinesis_stream_arn"]))  # type: ignore[misc]
    for what, value in BAD_ROLE_ARNS.items():
        request = configuration(role_arn=value)
        report.attempt(f"role_arn: {what}", lambda r=request: bad(r, ["role_arn"]))  # type: ignore[misc]
    for what, value in BAD_EXTERNAL_IDS.items():
        request = configuration(external_id=value)
        report.attempt(f"external_id: {what}", lambda r=request: bad(r, ["external_id"]))  # type: ignore[misc]

    def partitions() -> None:
        answer = grpcurl.call(configure, configuration(role_arn=ROLE.replace("arn:aws:", "arn:aws-cn:")))
        if answer.code != INVALID_ARGUMENT or not set(answer.violations) & {"role_arn", "kinesis_stream_arn"}:
            raise Failure(f"a role of another partition than the stream's: {answer}")

    report.attempt("role and stream of different partitions", partitions)

    def stale() -> None:
        request = configuration(organization_id="good", external_id="", etag=made["etag"])
        expect(grpcurl.call(configure, request), ABORTED, "ETAG_MISMATCH")

    def of_another() -> None:
        expect(grpcurl.call(configure, configuration(organization_id="other")), ALREADY_EXISTS, "EXTERNAL_ID_IN_USE")

    def validate_only() -> None:
        request = configuration(external_id="example-external-id-9", validate_only=True)
        answer = grpcurl.call(configure, request).only()
        results = {check["name"]: check["result"] for check in answer["checks"]}
        wanted = {"CHECK_NAME_ASSUME_ROLE", "CHECK_NAME_EXTERNAL_ID_REQUIRED", "CHECK_NAME_WRITE_RECORD"}
        if not wanted <= set(results) or results["CHECK_NAME_ASSUME_ROLE"] != "CHECK_RESULT_FAILED":
            raise Failure(f"each check should be told, and the role's fail without AWS: {answer}")
        if answer["integration"]["integration_id"]:
            raise Failure(f"what is not saved has no integration_id: {answer}")

    def validate_only_and_bad() -> None:
        expect(grpcurl.call(configure, {"validate_only": True}), INVALID_ARGUMENT, "INVALID_FIELD", everything)

    report.attempt("a stale etag", stale)
    report.attempt("an external ID of another organization", of_another)
    report.attempt("validate_only", validate_only)
    report.attempt("validate_only with every field missing", validate_only_and_bad)

    def nothing_saved() -> None:
        for organization in ("bad-input", "other"):
            answer = grpcurl.call(f"{INTEGRATIONS}/Get", {"organization_id": organization})
            expect(answer, NOT_FOUND, "INTEGRATION_NOT_FOUND")

    report.attempt("nothing of these requests was saved", nothing_saved)


def test_reads(report: Report, grpcurl: Grpcurl) -> None:
    """Get, List, SendTest and StreamStatus."""
    report.section("Get, SendTest, List")
    got = grpcurl.call(f"{INTEGRATIONS}/Get", {"organization_id": "good"}).only()["integration"]
    report.check(got["counts"]["accepted"] == "0", "counts start at 0", got)
    verdict = grpcurl.call(f"{INTEGRATIONS}/SendTest", {"organization_id": "good"}).only()
    results = {check["name"]: check for check in verdict["checks"]}
    report.check(not verdict["delivered"] and verdict["message"] != "", "an unreachable AWS is a verdict, not an error", verdict)
    report.check(results["CHECK_NAME_ASSUME_ROLE"]["result"] == "CHECK_RESULT_FAILED", "the role's check failed", verdict)
    report.check(results["CHECK_NAME_ASSUME_ROLE"]["remedy"] != "", "it has a remedy", verdict)
    report.check(results["CHECK_NAME_WRITE_RECORD"]["result"] == "CHECK_RESULT_SKIPPED", "the write was not tried", verdict)

    for method in ("Get", "SendTest", "Delete"):
        path = f"{INTEGRATIONS}/{method}"
        for value in BAD_ORGANIZATIONS:

            def malformed(path: str = path, value: str = value) -> None:
                answer = grpcurl.call(path, {"organization_id": value})
                expect(answer, INVALID_ARGUMENT, "INVALID_FIELD", ["organization_id"])

            report.attempt(f"{method}, organization_id {value[:10]!r}", malformed)

        def absent(path: str = path) -> None:
            expect(grpcurl.call(path, {"organization_id": "nobody"}), NOT_FOUND, "INTEGRATION_NOT_FOUND")

        report.attempt(f"{method}, an unknown organization", absent)

    for number in range(4):
        request = configuration(organization_id=f"list-{number}", external_id=f"example-external-id-list-{number}")
        grpcurl.call(f"{INTEGRATIONS}/Configure", request).only()
    seen: list[str] = []
    token = ""
    pages = 0
    while pages == 0 or token:
        page = grpcurl.call(f"{INTEGRATIONS}/List", {"page_size": 2, "page_token": token}).only()
        report.check(len(page["integrations"]) <= 2, "a page holds no more than asked for", page)
        seen += [integration["organization_id"] for integration in page["integrations"]]
        token = page["next_page_token"]
        pages += 1
    report.check(seen == sorted(seen) == ["good", *(f"list-{n}" for n in range(4))], "the pages give each once, in order", seen)
    none = grpcurl.call(f"{INTEGRATIONS}/List", {"statuses": ["STATUS_ACTIVE"]}).only()
    report.check(none["integrations"] == [], "the status filter filters", none)

    def token_of_nobody() -> None:
        answer = grpcurl.call(f"{INTEGRATIONS}/List", {"page_token": "é*nobody's"})
        expect(answer, INVALID_ARGUMENT, "INVALID_FIELD", ["page_token"])

    def unknown_status() -> None:
        answer = grpcurl.call(f"{INTEGRATIONS}/List", {"statuses": [99]})
        expect(answer, INVALID_ARGUMENT, "INVALID_FIELD", ["statuses[0]"])

    report.attempt("List, a page_token that is none", token_of_nobody)
    report.attempt("List, an unknown status", unknown_status)

    report.section("StreamStatus")
    path = f"{INTEGRATIONS}/StreamStatus"
    snapshot = grpcurl.stream_until(path, {}, "synced")
    told = sorted(message["current"]["organization_id"] for message in snapshot[:-1])
    report.check(told == seen, "the snapshot holds every integration, then synced", snapshot)
    named = grpcurl.stream_until(path, {"organization_ids": ["good", "nobody"]}, "synced")
    kinds = sorted(next(key for key in message if key != "resume_token") for message in named)
    report.check(kinds == ["absent", "current", "synced"], "a named organization without integration is absent", named)
    resumed = grpcurl.stream_until(path, {"resume_token": "nobody's"}, "synced")
    report.check("reset" in resumed[0], "a token of nobody gives a reset, then a snapshot", resumed[:1])
    report.check(len(resumed) == len(snapshot) + 1, "the snapshot after a reset is full", resumed)

    def malformed_name() -> None:
        answer = grpcurl.call(path, {"organization_ids": ["good", "a b", "c/d"]})
        expect(answer, INVALID_ARGUMENT, "INVALID_FIELD", ["organization_ids[1]", "organization_ids[2]"])

    def too_many() -> None:
        answer = grpcurl.call(path, {"organization_ids": [f"o{n}" for n in range(1001)]})
        expect(answer, INVALID_ARGUMENT, "INVALID_FIELD", ["organization_ids"])

    report.attempt("malformed names", malformed_name)
    report.attempt("1,001 organizations", too_many)


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


def test_publish(report: Report, grpcurl: Grpcurl) -> None:
    """Publish: per-event rejections, and requests that are refused whole."""
    path = f"{EVENTS}/Publish"
    report.section("Publish")
    empty = grpcurl.call(path, {}).only()
    report.check(empty["accepted"] == 0 and empty["rejections"] == [], "no events are no error", empty)
    good = grpcurl.call(path, {"events": [event(), event(organization_id="nobody"), event()]}).only()
    report.check(good["accepted"] == 2 and good["unconfigured"] == 1, "good events are accepted, strays are counted", good)
    icmp = detection(proto="IPv6-ICMP", src_ip="2001:db8::1", dest_ip="2001:db8::2", signature="Prüfung ✓ 検出")
    del icmp["ids_detection"]["src_port"], icmp["ids_detection"]["dest_port"]
    edge = detection(src_port=0, dest_port=65535, flow_id="18446744073709551615", vlan=[0, 4095], context_json="{}")
    answer = grpcurl.call(path, {"events": [icmp, edge]}).only()
    report.check(answer["accepted"] == 2, "IPv6, no ports, unicode, and the ends of each range are accepted", answer)

    for what, (bad, reason, field) in REJECTIONS.items():

        def rejected(bad: Json = bad, reason: str = reason, field: str = field) -> None:
            answer = grpcurl.call(path, {"events": [event(), bad, event()]}).only()
            if answer["accepted"] != 2 or len(answer["rejections"]) != 1:
                raise Failure(f"the two good ones should be accepted and one rejected: {json.dumps(answer)[:400]}")
            rejection = answer["rejections"][0]
            if (rejection["index"], rejection["reason"], rejection["field"]) != (1, f"ERROR_REASON_{reason}", field):
                raise Failure(f"should be index 1 {reason} {field!r}: {rejection}")
            if not rejection["message"]:
                raise Failure(f"the rejection has no message: {rejection}")

        report.attempt(f"rejected: {what}", rejected)

    def all_at_once() -> None:
        events = [bad for bad, _, _ in list(REJECTIONS.values())[:18]]
        answer = grpcurl.call(path, {"events": events}).only()
        if [rejection["index"] for rejection in answer["rejections"]] != list(range(18)) or answer["accepted"]:
            raise Failure(f"each should be rejected, in order: {answer}")

    def exactly_1000() -> None:
        answer = grpcurl.call(path, {"events": [event()] * 1000}).only()
        if answer["accepted"] != 1000:
            raise Failure(f"1,000 should be accepted: {answer}")

    def too_many() -> None:
        answer = grpcurl.call(path, {"events": [event()] * 1001})
        expect(answer, INVALID_ARGUMENT, "TOO_MANY_EVENTS", answer.violations)

    def too_large(size: int) -> None:
        answer = grpcurl.call(path, {"events": [detection(signature="x" * (size // 8))] * 8})
        expect(answer, INVALID_ARGUMENT, "REQUEST_TOO_LARGE", answer.violations)

    def beyond_decoding() -> None:
        answer = grpcurl.call(path, {"events": [detection(signature="x" * MIB)] * 12})
        if answer.code == OK:
            raise Failure(f"12 MiB should not be taken: {answer}")

    report.attempt("many problems in one request", all_at_once)
    report.attempt("1,000 events", exactly_1000)
    report.attempt("1,001 events", too_many)
    report.attempt("5 MiB", lambda: too_large(5 * MIB))
    report.attempt("7.5 MiB", lambda: too_large(7 * MIB + MIB // 2))
    report.attempt("12 MiB", beyond_decoding)

    report.section("PublishStream")
    answers = grpcurl.call(
        f"{EVENTS}/PublishStream",
        {"request_id": "a", "events": [event()]},
        {"request_id": "b", "events": [event()] * 1001},
        {"request_id": "c", "events": [event(), detection(src_port=65536)]},
        {"request_id": "d"},
    )
    report.check(answers.code == OK, "the stream ends well", answers)
    report.check([m["request_id"] for m in answers.messages] == ["a", "b", "c", "d"], "acks come in order", answers)
    a, b, c, d = answers.messages
    report.check(a["result"]["accepted"] == 1, "the first is accepted", a)
    report.check(b["error"]["code"] == INVALID_ARGUMENT, "a bad request is an ack with a status, and the stream goes on", b)
    reasons = [detail.get("reason") for detail in b["error"]["details"]]
    report.check("TOO_MANY_EVENTS" in reasons, "its status has the reason", b)
    report.check(c["result"]["accepted"] == 1 and len(c["result"]["rejections"]) == 1, "a rejection is in its ack", c)
    report.check(d["result"]["accepted"] == 0, "an empty request is acked", d)


def test_raw_bytes(report: Report, relay: Relay) -> None:
    """What no client library would send."""
    report.section("bytes that are no message")
    with grpc.insecure_channel(relay.address) as channel:
        call = channel.unary_unary(f"/{EVENTS}/Publish", lambda request: request, lambda answer: answer)
        for what, request in {
            "a cut message": b"\x0a\xff\x01abc",
            "an event that is no event": b"\x0a\x03\xff\xff\xff",
            "an event whose text is not UTF-8": b"\x0a\x04\x0a\x02\xff\xfe",
            "random bytes": bytes(range(256)),
        }.items():

            def sent(request: bytes = request) -> None:
                try:
                    call(request, timeout=30)
                except grpc.RpcError as error:
                    code = error.code() if isinstance(error, grpc.Call) else None
                    if code not in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL):
                        raise Failure(f"{error}") from None
                relay.expect_alive()

            report.attempt(what, sent)
        unknown = channel.unary_unary(f"/{EVENTS}/Nothing", lambda request: request, lambda answer: answer)

        def no_such_rpc() -> None:
            try:
                unknown(b"", timeout=30)
            except grpc.RpcError as error:
                if isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.UNIMPLEMENTED:
                    return
                raise Failure(f"{error}") from None
            raise Failure("an unknown RPC answered")

        report.attempt("an unknown RPC", no_such_rpc)


def test_delete(report: Report, grpcurl: Grpcurl) -> None:
    """Delete, its counts, and what is left."""
    path = f"{INTEGRATIONS}/Delete"
    report.section("Delete")
    before = grpcurl.call(f"{INTEGRATIONS}/Get", {"organization_id": "good"}).only()["integration"]["counts"]
    report.check(int(before["accepted"]) > 1000 and before["delivered"] == "0", "all that was accepted is pending", before)
    counts = grpcurl.call(path, {"organization_id": "good"}).only()["counts"]
    report.check(
        counts["discarded"] == before["accepted"] and counts["pending"] == "0", "Delete discards what is pending", counts
    )

    def gone() -> None:
        expect(grpcurl.call(path, {"organization_id": "good"}), NOT_FOUND, "INTEGRATION_NOT_FOUND")

    report.attempt("a second Delete", gone)
    missing = grpcurl.call(path, {"organization_id": "good", "allow_missing": True}).only()
    report.check(missing.get("counts") is None, "allow_missing makes it OK, without counts", missing)
    late = grpcurl.call(f"{EVENTS}/Publish", {"events": [event()]}).only()
    report.check(late["unconfigured"] == 1, "events after it are unconfigured", late)
    again = grpcurl.call(f"{INTEGRATIONS}/Configure", configuration(organization_id="good")).only()["integration"]
    report.check(again["counts"]["accepted"] == "0", "its external ID is free, and a new integration starts anew", again)


def test(report: Report) -> None:
    """The whole test."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    aws = {
        "AWS_REGION": "us-west-2",
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "AWS_ENDPOINT_URL_STS": nowhere,
        "AWS_ENDPOINT_URL_KINESIS": nowhere,
    }
    with tempfile.TemporaryDirectory() as directory, Relay(Path(directory), aws) as relay:
        grpcurl = Grpcurl(relay)
        test_reflection(report, grpcurl)
        test_configure(report, grpcurl)
        test_reads(report, grpcurl)
        test_publish(report, grpcurl)
        test_raw_bytes(report, relay)
        test_delete(report, grpcurl)
        report.section("shutdown")
        code = relay.stop()
        report.check(code == 0, "it ends with 0 after SIGTERM", code)
        log = relay.log.read_text()
        report.check(EXTERNAL_ID not in log, "no external ID is in the log")
        report.check("panicked" not in log, "nothing panicked")


if __name__ == "__main__":
    sys.exit(run(test))
