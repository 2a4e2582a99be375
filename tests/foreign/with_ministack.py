"""Delivers into ministack, an independent STS, IAM and Kinesis, and reads the stream with boto3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from eve import Json, expected_data, parse, samples
from harness import Failure, Report, binary, clean_environment, run
from ministack_aws import Aws, error_code
from relay import Relay
from service import NETWORK, TIMEOUT_SECONDS, Service, proto_event
from stream import Reader, check_record

from siem_client.v1 import error_pb2, event_pb2, integration_pb2

EXTERNAL_ID = "example-external-id-of-acme"
REFUSED = "Unauthorized - check your Role ARN and External ID"


def check_enforcement(report: Report, aws: Aws, role: str, stream: str) -> None:
    """Checks that ministack enforces, without which the other checks prove nothing."""
    report.section("ministack enforces")
    sts = aws.client("sts", *aws.key)

    def assume(**more: str) -> Any:
        return sts.assume_role(RoleArn=role, RoleSessionName="by-hand", **more)

    report.check(error_code(lambda: assume(ExternalId="wrong-" + EXTERNAL_ID)) == "AccessDenied", "a wrong external ID is denied")
    report.check(error_code(lambda: assume()) == "AccessDenied", "no external ID is denied")
    session = assume(ExternalId=EXTERNAL_ID)["Credentials"]
    kinesis = aws.client("kinesis", session["AccessKeyId"], session["SecretAccessKey"], session["SessionToken"])
    report.check(error_code(lambda: kinesis.list_shards(StreamARN=stream)) == "AccessDeniedException", "the role may only write")
    forged = aws.client("sts", aws.key[0], "not-the-secret")
    code = error_code(lambda: forged.assume_role(RoleArn=role, RoleSessionName="by-hand", ExternalId=EXTERNAL_ID))
    report.check(code == "SignatureDoesNotMatch", "signatures are verified", code)


def deliver_samples(report: Report, service: Service, reader: Reader, integration_id: str) -> int:
    """Publishes events of several devices over both RPCs, and checks each record. Returns the last sequence."""
    report.section("detections arrive")
    lines = samples()
    devices = [str(uuid.UUID(int=0x018F3C1A000070008000000000000000 + n)) for n in range(5)]
    sent = [(devices[n % len(devices)], line) for n, line in enumerate(lines * 4)]
    events = [proto_event("acme", device, line) for device, line in sent]
    service.publish(events[:30])
    service.publish_stream([events[at : at + 7] for at in range(30, len(events), 7)])
    active = service.until_status("acme", integration_pb2.STATUS_ACTIVE)
    report.check(active.HasField("last_delivery_time"), "the status turns ACTIVE")
    records = reader.until_sequences(integration_id, 1, len(sent))
    for sequence, (record, (device, line)) in enumerate(zip(records, sent), 1):
        check_record(record, sequence, integration_id, NETWORK, device, json.loads(line)["timestamp"], expected_data(line))
    report.check(True, f"{len(sent)} events are in the stream, in order, with every attribute and field")
    ids: dict[tuple[str, str], set[str]] = {}
    for record, (device, line) in zip(records, sent):
        ids.setdefault((device, line), set()).add(record.event["id"])
    report.check(all(len(same) == 1 for same in ids.values()), "the same detection has the same id")
    every = {next(iter(same)) for same in ids.values()}
    report.check(len(every) == len(ids), "different detections have different ids")
    reader.check_arrival_order()
    report.check(True, "each device's records are in order")
    report.check(len({record.shard for record in reader.records}) > 1, "more than one shard was written")
    return len(sent)


def send_test(report: Report, service: Service, reader: Reader, integration_id: str) -> None:
    """Checks that SendTest's receipt is that of its record."""
    report.section("SendTest")
    verdict = service.test("acme")
    report.check(verdict.delivered, "it is delivered", verdict)
    reader.read()
    found = [r for r in reader.records if r.number == verdict.receipt.sequence_number and r.shard == verdict.receipt.shard_id]
    report.check(len(found) == 1, "the receipt's record is in its shard", verdict.receipt)
    event = found[0].event
    report.check(event["id"] == verdict.receipt.event_id, "its id is the receipt's")
    report.check(event["type"] == "TYPE_TEST" and event["data"]["type"] == "TYPE_TEST", "it says that it is a test", event)
    report.check("sequence" not in event and event["integrationid"] == integration_id, "it has no sequence", event)
    report.check(found[0].key == integration_id == event["subject"], "its key is the integration", event)


def external_id_required(report: Report, aws: Aws, service: Service, stream: str) -> None:
    """Checks that SendTest finds roles that can be assumed without the customer's external ID."""
    report.section("the external ID is required")
    for name, condition, wanted in (
        ("strict", {"StringEquals": {"sts:ExternalId": "example-external-id-strict"}}, integration_pb2.CHECK_RESULT_PASSED),
        ("open", {}, integration_pb2.CHECK_RESULT_FAILED),
        ("wildcard", {"StringLike": {"sts:ExternalId": "*"}}, integration_pb2.CHECK_RESULT_FAILED),
    ):
        role = aws.role_with(f"siem-{name}", condition)
        service.configure(f"trust-{name}", stream, role, f"example-external-id-{name}")
        verdict = service.test(f"trust-{name}")
        strict = wanted == integration_pb2.CHECK_RESULT_PASSED
        report.check(verdict.delivered == strict, f"{name}: the test event is delivered only to a role that requires the external ID", verdict)
        check = next(c for c in verdict.checks if c.name == integration_pb2.CHECK_NAME_EXTERNAL_ID_REQUIRED)
        report.check(check.result == wanted, f"{name}: {integration_pb2.CheckResult.Name(wanted)}", check)
        report.check((check.remedy != "") == (wanted == integration_pb2.CHECK_RESULT_FAILED), f"{name}: a remedy if needed", check)


class Scenario:
    """Faults and recoveries of the integration `acme`; `last` is the last accepted sequence."""

    def __init__(self, report: Report, aws: Aws, service: Service, role: str, integration_id: str, last: int) -> None:
        self.report = report
        self.aws = aws
        self.service = service
        self.role = role
        self.integration_id = integration_id
        self.last = last
        self.sent: list[str] = []

    def publish(self, count: int) -> None:
        """Publishes further events."""
        lines = [samples()[(self.last + n) % 20] for n in range(count)]
        device = str(uuid.UUID(int=7))
        self.service.publish([proto_event("acme", device, line) for line in lines])
        self.last += count

    def wrong_external_id(self, stream: str, reader: Reader) -> None:
        """A wrong external ID gives UNAUTHORIZED; the right one repairs it, and nothing is lost."""
        self.report.section("a wrong external ID, and the right one")
        first = self.last + 1
        changed = self.service.configure("acme", stream, self.role, "wrong-" + EXTERNAL_ID)
        self.report.check(changed.integration_id == self.integration_id, "a replacement keeps the integration_id")
        self.report.check(changed.status.status == integration_pb2.STATUS_UNKNOWN, "it is UNKNOWN again")
        self.publish(3)
        status = self.service.until_status(
            "acme", integration_pb2.STATUS_UNAUTHORIZED, integration_pb2.STATUS_REASON_ASSUME_ROLE_DENIED
        )
        self.report.check(status.message != "", "it turns UNAUTHORIZED, ASSUME_ROLE_DENIED, with a message")
        self.report.check(status.aws_error_code == "AccessDenied", "it has AWS's error code", status)
        verdict = self.service.test("acme")
        self.report.check(not verdict.delivered and verdict.message == REFUSED, f"SendTest says {REFUSED!r}", verdict)
        self.publish(2)
        counts = self.service.get("acme").counts
        self.report.check(counts.pending == 5, "events published meanwhile are pending", counts)
        self.service.configure("acme", stream, self.role, EXTERNAL_ID)
        self.service.until_status("acme", integration_pb2.STATUS_ACTIVE)
        reader.until_sequences(self.integration_id, first, self.last)
        self.report.check(True, "the right one repairs it, and pending events arrive")

    def writes_denied(self, reader: Reader) -> None:
        """A role without write permission gives UNAUTHORIZED, until it is granted."""
        self.report.section("a role that may not write")
        first = self.last + 1
        self.aws.forbid_writes("siem")
        self.publish(2)
        status = self.service.until_status(
            "acme", integration_pb2.STATUS_UNAUTHORIZED, integration_pb2.STATUS_REASON_WRITE_DENIED
        )
        self.report.check(status.aws_error_code.startswith("AccessDenied"), "it turns UNAUTHORIZED, WRITE_DENIED", status)
        self.aws.allow_writes("siem")
        self.report.check(self.service.test("acme").delivered, "a passed SendTest ends the backoff")
        reader.until_sequences(self.integration_id, first, self.last)
        self.report.check(True, "pending events arrive")

    def deleted_stream(self, stream: str) -> Reader:
        """A deleted stream gives FAILING; another stream repairs it and gets the pending events."""
        self.report.section("a deleted stream")
        first = self.last + 1
        self.aws.kinesis.delete_stream(StreamARN=stream)
        self.publish(3)
        status = self.service.until_status(
            "acme", integration_pb2.STATUS_FAILING, integration_pb2.STATUS_REASON_STREAM_NOT_FOUND
        )
        self.report.check("ResourceNotFound" in status.aws_error_code, "it turns FAILING, STREAM_NOT_FOUND", status)
        other = self.aws.stream("detections-2", 1)
        reader = Reader(self.aws.kinesis, other)
        self.service.configure("acme", other, self.role)
        self.service.until_status("acme", integration_pb2.STATUS_ACTIVE)
        reader.until_sequences(self.integration_id, first, self.last)
        self.report.check(True, "another stream repairs it and gets the pending events, without a hole in the sequence")
        return reader


def publish_file(
    report: Report, aws: Aws, service: Service, name: str, file: Path, alerts: list[str], exit_code: int
) -> None:
    """Publishes an EVE file with `siem-relay publish`, and checks the record of each alert."""
    report.section(f"publish --eve {file.name}: {len(alerts)} alerts")
    external_id = f"example-external-id-of-{name}"
    stream = aws.stream(f"eve-{name}", 2)
    integration = service.configure(name, stream, aws.role(f"siem-{name}", external_id), external_id)
    device = str(uuid.uuid4())
    began = time.monotonic()
    done = subprocess.run(
        [
            binary(), "publish", "--address", f"http://{service.relay.address}", "--eve", file, "--organization", name,
            "--network", NETWORK, "--device", device,
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=300,
        check=False,
    )  # fmt: skip
    print(done.stdout, done.stderr, f"({time.monotonic() - began:.1f} s)", sep="")
    report.check(done.returncode == exit_code, f"it ends with {exit_code}", done.returncode)
    reader = Reader(aws.kinesis, stream)
    records = reader.until_sequences(integration.integration_id, 1, len(alerts))
    for sequence, (record, line) in enumerate(zip(records, alerts), 1):
        check_record(
            record, sequence, integration.integration_id, NETWORK, device, parse(line)["timestamp"], expected_data(line)
        )
    reader.read()
    report.check(
        set(reader.by_sequence(integration.integration_id)) == set(range(1, len(alerts) + 1)),
        "every alert arrives, in the file's order, field by field, and nothing else",
    )
    ids = {record.event["id"] for record in records}
    report.check(len(ids) == len(set(alerts)), "each has its own id, and equal lines have the same", (len(ids), len(set(alerts))))
    reader.check_arrival_order()
    report.check(True, "the device's records are in order")


def restart(report: Report, aws: Aws, directory: Path, scenario: Scenario, reader: Reader) -> Relay:
    """Ends the server and starts it again on the same directory, where it continues."""
    report.section("a restart")
    code = scenario.service.relay.stop()
    report.check(code == 0, "it ends with 0 after SIGTERM", code)
    relay = Relay(directory, aws.settings())
    scenario.service = Service(relay)
    status = scenario.service.get("acme").status
    report.check(status.status == integration_pb2.STATUS_ACTIVE, "the status is kept", status)
    first = scenario.last + 1
    scenario.publish(4)
    reader.until_sequences(scenario.integration_id, first, scenario.last)
    report.check(True, "events published afterwards arrive, and the sequence continues")
    return relay


def publish_until_killed(service: Service, relay: Relay, kill_after: int) -> set[str]:
    """Publishes batches, and kills the server after a number of acks. Returns the ids of acked events."""
    line = samples()[0]
    sent: list[list[str]] = []

    def requests() -> Iterator[event_pb2.PublishStreamRequest]:
        while len(sent) < 100 * kill_after:
            batch = [proto_event("killed", str(uuid.UUID(int=n % 5)), line) for n in range(20)]
            for event in batch:
                event.event_id = str(uuid.uuid4())
            sent.append([event.event_id for event in batch])
            yield event_pb2.PublishStreamRequest(request_id=str(len(sent) - 1), events=batch)

    acked: set[str] = set()
    acks = 0
    try:
        for ack in service.events.PublishStream(requests(), timeout=TIMEOUT_SECONDS):
            rejections = ack.result.rejections
            overloaded = {r.index for r in rejections if r.reason == error_pb2.ERROR_REASON_OVERLOADED}
            if ack.result.accepted + len(overloaded) != 20:
                raise Failure(f"not all were accepted: {ack}")
            ids = sent[int(ack.request_id)]
            acked.update(event_id for index, event_id in enumerate(ids) if index not in overloaded)
            acks += 1
            if acks == kill_after:
                relay.kill()
    except grpc.RpcError as error:
        if isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.UNAVAILABLE:
            return acked
        raise Failure(f"{error}") from None
    raise Failure("the stream ended without an error, although the server was killed")


def kills(report: Report, aws: Aws, directory: Path) -> None:
    """Kills the server during load: every acked event arrives, and no sequence changes its event."""
    report.section("kill -9 during load")
    directory.mkdir()
    external_id = "example-external-id-of-killed"
    stream = aws.stream("killed", 2)
    role = aws.role("siem-killed", external_id)
    acked: set[str] = set()
    integration_id = ""
    for kill_after in (3, 11, 40):
        with Relay(directory, aws.settings()) as relay:
            service = Service(relay)
            if not acked:
                integration_id = service.configure("killed", stream, role, external_id).integration_id
            acked |= publish_until_killed(service, relay, kill_after)
    with Relay(directory, aws.settings()) as relay:
        service = Service(relay)
        accepted = service.get("killed").counts.accepted
        reader = Reader(aws.kinesis, stream)
        records = reader.until_sequences(integration_id, 1, accepted)
        delivered = {record.event["id"] for record in records}
        report.check(acked <= delivered, f"each of {len(acked)} acked events arrives after 3 kills", len(acked - delivered))
        report.check(len(delivered) == accepted, "no sequence is missing, and none is two events", accepted)
        reader.check_arrival_order()
        report.check(True, "each device's records are in order")
        report.check(relay.stop() == 0, "it ends with 0 after SIGTERM")


def secrets_stay_secret(report: Report, directory: Path, external_ids: list[str]) -> None:
    """Checks that no external ID is in the files of the database or in the logs."""
    report.section("external IDs")
    for file in sorted(directory.rglob("*")):
        if not file.is_file() or file.name == "ministack.log":
            continue
        content = file.read_bytes()
        for external_id in external_ids:
            if external_id.encode() in content:
                raise Failure(f"{file.relative_to(directory)} holds an external ID in clear")
    report.check(True, "no external ID is in a file of the server")


def own_file(directory: Path) -> tuple[Path, list[str]]:
    """Writes the samples to a file, with other records and a broken line; returns it and its alerts."""
    alerts = samples()
    lines = list(alerts)
    lines.insert(3, '{"timestamp":"2026-02-03T04:00:00.000000+0000","event_type":"flow","src_ip":"192.0.2.1"}')
    lines.insert(9, '{"timestamp":"2026-02-03T04:00:00.0000')
    lines.insert(12, "")
    file = directory / "samples.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file, alerts


def alerts_of(file: Path) -> list[str]:
    """Returns the alert lines of an EVE file."""
    # splitlines would also split at characters that JSON allows inside a text.
    lines = file.read_text(encoding="utf-8").split("\n")
    records: list[tuple[str, Json]] = [(line, json.loads(line)) for line in lines if line.strip()]
    return [line for line, record in records if record.get("event_type") == "alert"]


def test(report: Report) -> None:
    """Runs all parts."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        aws = Aws(directory)
        with aws.process:
            stream = aws.stream("detections", 3)
            role = aws.role("siem", EXTERNAL_ID)
            check_enforcement(report, aws, role, stream)
            with Relay(directory, aws.settings()) as relay:
                service = Service(relay)
                integration = service.configure("acme", stream, role, EXTERNAL_ID)
                reader = Reader(aws.kinesis, stream)
                last = deliver_samples(report, service, reader, integration.integration_id)
                send_test(report, service, reader, integration.integration_id)
                external_id_required(report, aws, service, stream)
                scenario = Scenario(report, aws, service, role, integration.integration_id, last)
                scenario.wrong_external_id(stream, reader)
                scenario.writes_denied(reader)
                reader = scenario.deleted_stream(stream)
                again = restart(report, aws, directory, scenario, reader)
            with again:
                service = scenario.service
                file, alerts = own_file(directory)
                publish_file(report, aws, service, "samples", file, alerts, 1)
                given = os.environ.get("SIEM_RELAY_TEST_EVE")
                if given:
                    publish_file(report, aws, service, "real", Path(given), alerts_of(Path(given)), 0)
                counts = service.get("acme").counts
                report.check(counts.accepted == counts.delivered == scenario.last, "the counts are those of the stream", counts)
                report.section("shutdown")
                code = again.stop()
                report.check(code == 0, "it ends with 0 after SIGTERM", code)
                report.check("panicked" not in again.log.read_text(), "nothing panicked")
            kills(report, aws, directory / "killed")
            external_ids = [EXTERNAL_ID, "example-external-id-of-samples", "example-external-id-of-killed"]
            secrets_stay_secret(report, directory, external_ids)


if __name__ == "__main__":
    sys.exit(run(test))
