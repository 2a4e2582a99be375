"""Calls of the server through the generated Python stubs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import grpc
from eve import expected_data, instant
from google.protobuf.timestamp_pb2 import Timestamp
from harness import Failure
from relay import Relay

import siem_client
from siem_client.v1 import error_pb2, event_pb2, event_pb2_grpc, integration_pb2, integration_pb2_grpc

NETWORK = "018f3c1a-0000-7000-8000-000000000001"
TIMEOUT_SECONDS = 90


class Service:
    """A client of one server."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.channel = grpc.insecure_channel(relay.address, options=[("grpc.enable_http_proxy", 0)])
        self.integrations = integration_pb2_grpc.SiemIntegrationServiceStub(self.channel)
        self.events = event_pb2_grpc.EventServiceStub(self.channel)

    def configure(self, organization: str, stream: str, role: str, external_id: str = "") -> integration_pb2.Integration:
        """Calls Configure."""
        request = integration_pb2.ConfigureRequest(
            organization_id=organization, kinesis_stream_arn=stream, role_arn=role, external_id=external_id
        )
        return self.integrations.Configure(request, timeout=TIMEOUT_SECONDS).integration

    def get(self, organization: str) -> integration_pb2.Integration:
        """Calls Get."""
        return self.integrations.Get(
            integration_pb2.GetRequest(organization_id=organization), timeout=TIMEOUT_SECONDS
        ).integration

    def test(self, organization: str) -> integration_pb2.SendTestResponse:
        """Calls SendTest."""
        return self.integrations.SendTest(
            integration_pb2.SendTestRequest(organization_id=organization), timeout=TIMEOUT_SECONDS
        )

    def publish(self, events: list[event_pb2.Event]) -> None:
        """Publishes events, all of which must be accepted."""
        with siem_client.connect(self.relay.address) as client, client.publisher() as publisher:
            for event in events:
                publisher.send(event)
            publisher.flush(TIMEOUT_SECONDS)
        if publisher.stats.accepted != len(events):
            raise Failure(f"not all of {len(events)} were accepted: {publisher.stats}")

    def publish_stream(self, batches: list[list[event_pb2.Event]]) -> None:
        """Publishes batches over PublishStream, without waiting for answers in between."""

        def requests() -> Iterator[event_pb2.PublishStreamRequest]:
            for number, batch in enumerate(batches):
                yield event_pb2.PublishStreamRequest(request_id=str(number), events=batch)

        acks = list(self.events.PublishStream(requests(), timeout=TIMEOUT_SECONDS))
        if [ack.request_id for ack in acks] != [str(number) for number in range(len(batches))]:
            raise Failure(f"the acks are not in order: {acks}")
        for ack, batch in zip(acks, batches):
            rejections = ack.result.rejections
            again = [batch[r.index] for r in rejections if r.reason == error_pb2.ERROR_REASON_OVERLOADED]
            if ack.result.accepted + len(again) != len(batch):
                raise Failure(f"{ack.result.accepted} of {len(batch)} were accepted: {ack}")
            if again:
                self.publish(again)

    def until_status(
        self,
        organization: str,
        status: integration_pb2.Status.ValueType,
        reason: integration_pb2.StatusReason.ValueType = integration_pb2.STATUS_REASON_UNSPECIFIED,
    ) -> integration_pb2.IntegrationStatus:
        """Reads StreamStatus until the status is this one."""
        call = self.integrations.StreamStatus(
            integration_pb2.StreamStatusRequest(organization_ids=[organization]), timeout=TIMEOUT_SECONDS
        )
        seen = []
        try:
            for message in call:
                if message.WhichOneof("event") != "current":
                    continue
                now = message.current.status
                seen.append(f"{integration_pb2.Status.Name(now.status)} {integration_pb2.StatusReason.Name(now.reason)}")
                if now.status == status and now.reason == reason:
                    return now
        except grpc.RpcError as error:
            raise Failure(f"{organization} did not become {status} {reason}; seen: {seen}; {error}") from None
        finally:
            call.cancel()
        raise Failure(f"the stream ended before {organization} was {status} {reason}; seen: {seen}")


def proto_event(organization: str, device: str, line: str) -> event_pb2.Event:
    """Returns the request's event for an EVE line."""
    data = expected_data(line)
    seconds, nanos = instant(json.loads(line)["timestamp"])
    detection = event_pb2.IdsDetection()
    for name, value in data.items():
        if name in ("type", "context", "metadata"):
            continue
        if name == "vlan":
            detection.vlan.extend(value)
        else:
            setattr(detection, name, value)
    for key, values in data.get("metadata", {}).items():
        detection.metadata[key].values.extend(values)
    if "context" in data:
        detection.context_json = context_text(line)
    return event_pb2.Event(
        organization_id=organization,
        network_id=NETWORK,
        device_id=device,
        observed_time=Timestamp(seconds=seconds, nanos=nanos),
        ids_detection=detection,
    )


def context_text(line: str) -> str:
    """Returns the context of a line as JSON text, with every digit of its numbers."""
    numbers: list[str] = []

    def keep(digits: str) -> str:
        numbers.append(digits)
        return f"number-{len(numbers) - 1}-"

    raw = json.loads(line, parse_float=keep)
    # The structure is that of expected_data, with the numbers' text restored.
    text = json.dumps(expected_data(json.dumps(raw))["context"], ensure_ascii=False)
    for index, digits in enumerate(numbers):
        text = text.replace(f'"number-{index}-"', digits)
    return text
