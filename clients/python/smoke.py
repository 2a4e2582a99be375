"""Runs the Python stubs against a server: Configure, StreamStatus, Publish, SendTest, Get and Delete.

Options are arguments or environment variables; see --help. Exits with 0 if every answer was correct.
"""

from __future__ import annotations

import argparse
import os
import sys
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from siem.v1 import event_pb2, event_pb2_grpc, integration_pb2, integration_pb2_grpc
from siem_publish import publish

TIMEOUT_SECONDS = 60


def check(ok: bool, what: str) -> None:
    """Prints a passed check, or raises."""
    if not ok:
        raise AssertionError(what)
    print(f"  ok: {what}")


def detection(organization: str, device: uuid.UUID, number: int) -> event_pb2.Event:
    """Returns a detection with addresses for documentation; each number gives a different one."""
    observed = Timestamp()
    observed.FromDatetime(datetime.now(timezone.utc))
    return event_pb2.Event(
        organization_id=organization,
        network_id=str(uuid.UUID(int=1)),
        device_id=str(device),
        observed_time=observed,
        ids_detection=event_pb2.IdsDetection(
            src_ip="2001:db8::7" if number % 2 else "192.0.2.7",
            src_port=40000 + number,
            dest_ip="2001:db8::80" if number % 2 else "198.51.100.80",
            dest_port=80,
            proto="TCP",
            app_proto="http",
            action="allowed",
            gid=1,
            signature_id=1000000 + number,
            rev=1,
            signature=f"Example détection {number}",
            category="Misc activity",
            severity=3,
            metadata={"confidence": event_pb2.MetadataValues(values=["High"])},
            context_json='{"http":{"hostname":"www.example.com"}}',
        ),
    )


def details(error: grpc.RpcError) -> status_pb2.Status:
    """Returns the google.rpc.Status of a failed call."""
    assert isinstance(error, grpc.Call)
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            assert isinstance(value, bytes)
            return status_pb2.Status.FromString(value)
    raise AssertionError(f"no details in {error}")


def reason(status: status_pb2.Status) -> str:
    """Returns `domain/reason` of the ErrorInfo."""
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return f"{info.domain}/{info.reason}"
    return ""


def violated(status: status_pb2.Status) -> set[str]:
    """Returns the fields in the BadRequest."""
    bad = error_details_pb2.BadRequest()
    for detail in status.details:
        if detail.Unpack(bad):
            return {violation.field for violation in bad.field_violations}
    return set()


def until_active(stream: Iterator[integration_pb2.StreamStatusResponse]) -> None:
    """Reads changes until the status is ACTIVE; the call's deadline ends it otherwise."""
    for message in stream:
        check(message.resume_token != "", "each message carries a resume token")
        if message.WhichOneof("event") == "heartbeat":
            continue
        check(message.WhichOneof("event") == "current", "a change is the current status")
        if message.current.status.status == integration_pb2.STATUS_ACTIVE:
            check(message.current.status.HasField("last_delivery_time"), "an ACTIVE status has the time of its last delivery")
            return
    raise AssertionError("the stream ended before the status was ACTIVE")


def run(address: str, organization: str, stream_arn: str, role_arn: str, external_id: str) -> None:
    """Runs the test over one channel, which compresses."""
    with grpc.insecure_channel(address.removeprefix("http://"), compression=grpc.Compression.Gzip) as channel:
        integrations = integration_pb2_grpc.SiemIntegrationServiceStub(channel)
        events = event_pb2_grpc.EventServiceStub(channel)

        print("Configure, malformed")
        try:
            integrations.Configure(integration_pb2.ConfigureRequest(organization_id=organization), timeout=TIMEOUT_SECONDS)
            raise AssertionError("a Configure without ARNs was accepted")
        except grpc.RpcError as error:
            status = details(error)
            check(status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0], "it is INVALID_ARGUMENT")
            check(reason(status) == "siem.v1/INVALID_FIELD", "its reason is INVALID_FIELD")
            check(violated(status) == {"kinesis_stream_arn", "role_arn", "external_id"}, "it names every field at once")

        print("StreamStatus, 1,000 malformed names")
        names = [f"not a name {number} \u200b" for number in range(1000)]
        try:
            for _ in integrations.StreamStatus(
                integration_pb2.StreamStatusRequest(organization_ids=names), timeout=TIMEOUT_SECONDS
            ):
                raise AssertionError("a StreamStatus of malformed names was accepted")
            raise AssertionError("a StreamStatus of malformed names ended without an error")
        except grpc.RpcError as error:
            status = details(error)
            check(status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0], "it is INVALID_ARGUMENT")
            check(reason(status) == "siem.v1/INVALID_FIELD", "its reason is INVALID_FIELD")
            check(violated(status) == {f"organization_ids[{n}]" for n in range(20)}, "it names the first 20")
            check(status.message.endswith("and 995 more"), f"it counts the rest: {status.message[-40:]}")

        print("Configure")
        configured = integrations.Configure(
            integration_pb2.ConfigureRequest(
                organization_id=organization, kinesis_stream_arn=stream_arn, role_arn=role_arn, external_id=external_id
            ),
            timeout=TIMEOUT_SECONDS,
        ).integration
        check(configured.organization_id == organization, "it answers with the integration")
        check(uuid.UUID(configured.integration_id).version == 7, "integration_id is a UUIDv7")
        check(configured.kinesis_stream_arn == stream_arn and configured.role_arn == role_arn, "the ARNs are kept")
        check(external_id.endswith(configured.external_id_hint), "the hint is the external ID's end")
        check(external_id not in str(configured), "the external ID is not returned")
        check(configured.status.status == integration_pb2.STATUS_UNKNOWN, "a new integration is UNKNOWN")

        print("StreamStatus")
        call = integrations.StreamStatus(
            integration_pb2.StreamStatusRequest(organization_ids=[organization]), timeout=TIMEOUT_SECONDS
        )
        stream = iter(call)
        first = next(stream)
        check(first.WhichOneof("event") == "current", "the snapshot comes first")
        check(first.current.integration_id == configured.integration_id, "it is of this integration")
        check(first.current.status.status == integration_pb2.STATUS_UNKNOWN, "it is UNKNOWN")
        check(next(stream).WhichOneof("event") == "synced", "then the synced marker")

        print("Publish")
        device = uuid.uuid4()
        batch = [detection(organization, device, number) for number in range(3)]
        stray = detection(organization, device, 3)
        stray.organization_id = f"{organization}-absent"
        bad = detection(organization, device, 4)
        bad.ids_detection.src_ip = "192.0.2.256"
        published = publish(events, [*batch, stray, bad], TIMEOUT_SECONDS)
        check(published.accepted == 3, "3 events are accepted")
        check(published.unconfigured == 1, "1 is of an organization without integration")
        check([r.index for r in published.rejections] == [4], "1 is rejected")
        check(published.rejections[0].field == "ids_detection.src_ip", "the rejection names the field")

        print("StreamStatus, a change")
        until_active(stream)

        print("SendTest")
        verdict = integrations.SendTest(
            integration_pb2.SendTestRequest(organization_id=organization), timeout=TIMEOUT_SECONDS
        )
        check(verdict.delivered, f"the test event is delivered {verdict.message}")
        passed = {c.name for c in verdict.checks if c.result == integration_pb2.CHECK_RESULT_PASSED}
        check(
            passed >= {integration_pb2.CHECK_NAME_ASSUME_ROLE, integration_pb2.CHECK_NAME_WRITE_RECORD},
            "role and write are checked",
        )
        check(verdict.receipt.shard_id != "" and verdict.receipt.sequence_number != "", "the receipt names shard and number")
        check(verdict.status.status == integration_pb2.STATUS_ACTIVE, "the status is ACTIVE")

        print("Get")
        got = integrations.Get(integration_pb2.GetRequest(organization_id=organization), timeout=TIMEOUT_SECONDS).integration
        counts = got.counts
        check(counts.accepted == 3, "3 events are counted")
        check(
            counts.accepted == counts.delivered + counts.expired + counts.discarded + counts.pending, "the counts add up"
        )

        print("Delete")
        final = integrations.Delete(
            integration_pb2.DeleteRequest(organization_id=organization), timeout=TIMEOUT_SECONDS
        ).counts
        check(final.accepted == 3 and final.pending == 0, "the final counts have nothing pending")
        check(final.delivered + final.expired + final.discarded == 3, "they add up")
        for message in stream:
            if message.WhichOneof("event") == "deleted":
                check(message.deleted.integration_id == configured.integration_id, "the deletion is of this integration")
                break
        else:
            raise AssertionError("the stream ended without the deletion")
        call.cancel()
        try:
            integrations.Get(integration_pb2.GetRequest(organization_id=organization), timeout=TIMEOUT_SECONDS)
            raise AssertionError("Get found a deleted integration")
        except grpc.RpcError as error:
            status = details(error)
            check(status.code == grpc.StatusCode.NOT_FOUND.value[0], "Get is NOT_FOUND")
            check(reason(status) == "siem.v1/INTEGRATION_NOT_FOUND", "its reason is INTEGRATION_NOT_FOUND")


def main() -> int:
    """Reads the arguments and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    for flag, variable, default in (
        ("--address", "SIEM_RELAY_ADDRESS", "http://127.0.0.1:50051"),
        ("--organization", "SMOKE_ORGANIZATION", "smoke-python"),
        ("--stream-arn", "SMOKE_STREAM_ARN", None),
        ("--role-arn", "SMOKE_ROLE_ARN", None),
        ("--external-id", "SMOKE_EXTERNAL_ID", None),
    ):
        value = os.environ.get(variable, default)
        parser.add_argument(flag, default=value, required=value is None, help=f"or environment variable {variable}")
    arguments = parser.parse_args()
    run(
        arguments.address,
        arguments.organization,
        arguments.stream_arn,
        arguments.role_arn,
        arguments.external_id,
    )
    print("the Python client works")
    return 0


if __name__ == "__main__":
    sys.exit(main())
