"""Drives each RPC with the real grpcurl, through reflection, with good and bad input, and runs docs/grpcurl.md.

grpcurl shares no code with the server and has none of its proto files: it calls the methods that reflection
reports. Bad input must give the canonical code, every violated field at once in BadRequest, and an ErrorInfo
with a reason of the domain `siem.v1`; and after each call the server must be alive.

The AWS endpoint is a port on which nothing listens: none of these calls may need AWS.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import grpc
from grpcurl import ABORTED, INVALID_ARGUMENT, NOT_FOUND, OK, Answer, Grpcurl, Json
from harness import Failure, Process, Report, accepts, binary, clean_environment, free_port, run
from inputs import (
    BAD_EXTERNAL_IDS,
    BAD_ORGANIZATIONS,
    BAD_ROLE_ARNS,
    BAD_STREAM_ARNS,
    EXTERNAL_ID,
    GOOD_ROLE_PATHS,
    MIB,
    REJECTIONS,
    ROLE,
    configuration,
    detection,
    event,
)
from page import perform, read
from relay import Relay

PAGE = Path(__file__).parents[2] / "docs" / "grpcurl.md"
INTEGRATIONS = "siem.v1.SiemIntegrationService"
EVENTS = "siem.v1.EventService"
INTEGRATION_RPCS = {
    "Configure",
    "GenerateExternalId",
    "GetOnboarding",
    "Get",
    "List",
    "Delete",
    "SendTest",
    "StreamStatus",
    "ListAuditEntries",
}
EVENT_RPCS = {"Publish", "PublishStream"}


def expect(answer: Answer, code: int, reason: str, fields: Iterable[str] = ()) -> None:
    """Checks code and reason of an error, and that it describes exactly these violated fields."""
    if answer.code != code or answer.reason != f"siem.v1/{reason}":
        raise Failure(f"should be code {code} siem.v1/{reason}, was {answer}")
    if set(answer.violations) != set(fields):
        raise Failure(f"should name exactly {sorted(fields)}, was {answer}")
    if not all(answer.violations.values()):
        raise Failure(f"a violation has no description: {answer}")
    if not answer.message:
        raise Failure(f"the error has no message: {answer}")


def test_reflection(report: Report, grpcurl: Grpcurl) -> None:
    """Checks what a client without proto files sees."""
    report.section("reflection and health")
    services = grpcurl.reflect("list").split()
    for service in (INTEGRATIONS, EVENTS, "grpc.health.v1.Health"):
        report.check(service in services, f"list names {service}", services)
    methods = {name.rsplit(".", 1)[-1] for name in grpcurl.reflect("list", INTEGRATIONS).split()}
    report.check(methods == INTEGRATION_RPCS, "the integration service has its nine RPCs", methods)
    methods = {name.rsplit(".", 1)[-1] for name in grpcurl.reflect("list", EVENTS).split()}
    report.check(methods == EVENT_RPCS, "the event service has its two RPCs", methods)
    report.check("IdsDetection ids_detection = 6" in grpcurl.reflect("describe", "siem.v1.Event"), "describe shows a message")
    report.check(
        grpcurl.call("grpc.health.v1.Health/Check", {}).only()["status"] == "SERVING", "health says SERVING"
    )


def test_configure(report: Report, grpcurl: Grpcurl) -> None:
    """Calls Configure with good requests, a replacement, and each field bad."""
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
        expect(grpcurl.call(configure, configuration(organization_id="other")), INVALID_ARGUMENT, "INVALID_FIELD", ["external_id"])

    def validate_only() -> None:
        request = configuration(external_id="example-external-id-9", validate_only=True)
        answer = grpcurl.call(configure, request).only()
        results = {check["name"]: check["result"] for check in answer["checks"]}
        wanted = {"CHECK_NAME_ASSUME_ROLE", "CHECK_NAME_EXTERNAL_ID_REQUIRED", "CHECK_NAME_WRITE_RECORD"}
        if not wanted <= set(results) or results["CHECK_NAME_ASSUME_ROLE"] != "CHECK_RESULT_FAILED":
            raise Failure(f"each check should be reported, and the role's fail without AWS: {answer}")
        if answer["integration"]["integration_id"]:
            raise Failure(f"an integration that is not saved has no integration_id: {answer}")

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
    """Calls Get, List, SendTest and StreamStatus."""
    report.section("Get, SendTest, List")
    got = grpcurl.call(f"{INTEGRATIONS}/Get", {"organization_id": "good"}).only()["integration"]
    report.check(got["counts"]["accepted"] == "0", "counts start at 0", got)
    verdict = grpcurl.call(f"{INTEGRATIONS}/SendTest", {"organization_id": "good"}).only()
    results = {check["name"]: check for check in verdict["checks"]}
    report.check(not verdict["delivered"] and verdict["message"] != "", "an unreachable AWS is a verdict, not an error", verdict)
    report.check(results["CHECK_NAME_ASSUME_ROLE"]["result"] == "CHECK_RESULT_FAILED", "the role's check failed", verdict)
    report.check(results["CHECK_NAME_ASSUME_ROLE"]["remedy"] != "", "it has a remedy", verdict)
    report.check(results["CHECK_NAME_WRITE_RECORD"]["result"] == "CHECK_RESULT_SKIPPED", "the write was not attempted", verdict)

    issued = [
        grpcurl.call(f"{INTEGRATIONS}/GenerateExternalId", {"organization_id": "issued"}).only()["external_id"]
        for _ in range(2)
    ]
    fresh = len(set(issued)) == 2 and all(len(one) == 64 for one in issued)
    report.check(fresh, "each issued external ID is new")

    for method in ("Get", "SendTest", "Delete", "GenerateExternalId"):
        path = f"{INTEGRATIONS}/{method}"
        for value in BAD_ORGANIZATIONS:

            def malformed(path: str = path, value: str = value) -> None:
                answer = grpcurl.call(path, {"organization_id": value})
                expect(answer, INVALID_ARGUMENT, "INVALID_FIELD", ["organization_id"])

            report.attempt(f"{method}, organization_id {value[:10]!r}", malformed)

        def absent(path: str = path) -> None:
            expect(grpcurl.call(path, {"organization_id": "nobody"}), NOT_FOUND, "INTEGRATION_NOT_FOUND")

        if method != "GenerateExternalId":
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

    def unknown_token() -> None:
        answer = grpcurl.call(f"{INTEGRATIONS}/List", {"page_token": "é*nobody's"})
        expect(answer, INVALID_ARGUMENT, "INVALID_FIELD", ["page_token"])

    def unknown_status() -> None:
        answer = grpcurl.call(f"{INTEGRATIONS}/List", {"statuses": [99]})
        expect(answer, INVALID_ARGUMENT, "INVALID_FIELD", ["statuses[0]"])

    report.attempt("List, an invalid page_token", unknown_token)
    report.attempt("List, an unknown status", unknown_status)

    report.section("StreamStatus")
    path = f"{INTEGRATIONS}/StreamStatus"
    snapshot = grpcurl.stream_until(path, {}, "synced")
    listed = sorted(message["current"]["organization_id"] for message in snapshot[:-1])
    report.check(listed == seen, "the snapshot holds every integration, then synced", snapshot)
    named = grpcurl.stream_until(path, {"organization_ids": ["good", "nobody"]}, "synced")
    kinds = sorted(next(key for key in message if key != "resume_token") for message in named)
    report.check(kinds == ["absent", "current", "synced"], "a named organization without integration is absent", named)
    resumed = grpcurl.stream_until(path, {"resume_token": "nobody's"}, "synced")
    report.check("reset" in resumed[0], "an unknown token gives a reset, then a snapshot", resumed[:1])
    report.check(len(resumed) == len(snapshot) + 1, "the snapshot after a reset is full", resumed)

    def malformed_name() -> None:
        answer = grpcurl.call(path, {"organization_ids": ["good", "a b", "c/d"]})
        expect(answer, INVALID_ARGUMENT, "INVALID_FIELD", ["organization_ids[1]", "organization_ids[2]"])

    def too_many() -> None:
        answer = grpcurl.call(path, {"organization_ids": [f"o{n}" for n in range(1001)]})
        expect(answer, INVALID_ARGUMENT, "INVALID_FIELD", ["organization_ids"])

    report.attempt("malformed names", malformed_name)
    report.attempt("1,001 organizations", too_many)


def test_publish(report: Report, grpcurl: Grpcurl) -> None:
    """Calls Publish with events that are rejected one by one, and with requests that are refused."""
    path = f"{EVENTS}/Publish"
    report.section("Publish")
    empty = grpcurl.call(path, {}).only()
    report.check(empty["accepted"] == 0 and empty["rejections"] == [], "no events are no error", empty)
    good = grpcurl.call(path, {"events": [event(), event(organization_id="nobody"), event()]}).only()
    report.check(good["accepted"] == 2 and good["unconfigured"] == 1, "good events are accepted, those without an integration counted", good)
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
    report.check([m["request_id"] for m in answers.messages] == ["a", "b", "c", "d"], "acks are in order", answers)
    a, b, c, d = answers.messages
    report.check(a["result"]["accepted"] == 1, "the first is accepted", a)
    report.check(b["error"]["code"] == INVALID_ARGUMENT, "a bad request gets an ack with a status, and the stream continues", b)
    reasons = [detail.get("reason") for detail in b["error"]["details"]]
    report.check("TOO_MANY_EVENTS" in reasons, "its status has the reason", b)
    report.check(c["result"]["accepted"] == 1 and len(c["result"]["rejections"]) == 1, "a rejection is in its ack", c)
    report.check(d["result"]["accepted"] == 0, "an empty request is acked", d)


def test_raw_bytes(report: Report, relay: Relay) -> None:
    """Sends bytes that no client library would send."""
    report.section("malformed messages")
    with grpc.insecure_channel(relay.address) as channel:
        call = channel.unary_unary(f"/{EVENTS}/Publish", lambda request: request, lambda answer: answer)
        for what, request in {
            "a cut message": b"\x0a\xff\x01abc",
            "an event that is not protobuf": b"\x0a\x03\xff\xff\xff",
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
    """Calls Delete, and checks its counts and the state after it."""
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
    report.check(again["counts"]["accepted"] == "0", "its external ID is available again, and a new integration starts at 0", again)


def test_audit(report: Report, grpcurl: Grpcurl) -> None:
    """Calls ListAuditEntries, after the other parts have made entries."""
    path = f"{INTEGRATIONS}/ListAuditEntries"
    report.section("ListAuditEntries")
    page = grpcurl.call(path, {"organization_id": "good", "page_size": 2}).only()
    actions = [entry["action"] for entry in page["entries"]]
    wanted = ["AUDIT_ACTION_CREATE", "AUDIT_ACTION_DELETE"]
    report.check(actions == wanted and page["next_page_token"] != "", "the newest entries come first", page)
    entries = grpcurl.call(path, {"page_size": 1000}).only()["entries"]
    report.check({"good", "list-0", "issued"} <= {entry["organization_id"] for entry in entries}, "all organizations are listed")
    report.check(EXTERNAL_ID not in json.dumps(entries), "no external ID is in it")

    def reversed_times() -> None:
        request = {"start_time": "2026-01-02T00:00:00Z", "end_time": "2026-01-01T00:00:00Z"}
        expect(grpcurl.call(path, request), INVALID_ARGUMENT, "INVALID_FIELD", ["end_time"])

    report.attempt("an end before the start", reversed_times)


def test_page(report: Report, directory: Path) -> None:
    """Runs the commands of docs/grpcurl.md in order, against a sandbox with TLS and tokens."""
    report.section("docs/grpcurl.md")
    setup, steps = read(PAGE)
    port = free_port()
    log = directory / "sandbox.log"

    def printed(pattern: str) -> str:
        found = re.search(pattern, log.read_text())
        return found[1] if found else ""

    def ready() -> bool:
        # The first event makes it ACTIVE.
        return accepts(port) and "acme ACTIVE" in log.read_text()

    command: list[str | Path] = [binary(), "sandbox", "--secure", "--port", str(port)]
    with Process(command, log, clean_environment(), ready):
        values = {
            "S": f"127.0.0.1:{port}",
            "DEV": printed(r"-cacert (\S+)/ca\.pem"),
            # The one of the last Configure, which is the right one.
            "EXTERNAL_ID": re.findall(r'"external_id":"([^"]+)"', log.read_text())[-1],
        }
        report.check(all(values.values()), "the sandbox prints what the page needs")
        # The first block has the values that the sandbox prints.
        own = [line.split("=")[0] for line in setup[0].splitlines()]
        report.check(own == list(values), "the page names them", own)
        given = [f"{name}='{value}'\n" for name, value in values.items()]
        prologue = "".join([*given, *setup[1:]])
        report.check(all(step.kind for step in steps), "each command has its answer")
        for step in steps:
            first = step.commands.splitlines()[0]
            report.attempt(
                f"line {step.line}: {first}",
                lambda step=step: perform(step, prologue, clean_environment()),  # type: ignore[misc]
            )
    called = "".join(step.commands for step in steps)
    served = {f"{INTEGRATIONS}/{name}" for name in INTEGRATION_RPCS} | {f"{EVENTS}/{name}" for name in EVENT_RPCS}
    served |= {"grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch"}
    for rpc in sorted(served):
        report.check(rpc in called, f"the page calls {rpc}")


def test(report: Report) -> None:
    """Runs all parts against one server, and the page against another."""
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
        test_audit(report, grpcurl)
        report.section("shutdown")
        code = relay.stop()
        report.check(code == 0, "it ends with 0 after SIGTERM", code)
        log = relay.log.read_text()
        report.check(EXTERNAL_ID not in log, "no external ID is in the log")
        report.check("panicked" not in log, "nothing panicked")
    with tempfile.TemporaryDirectory() as directory:
        test_page(report, Path(directory))


if __name__ == "__main__":
    sys.exit(run(test))
