"""Tests of siem_publish against a server that rejects on demand."""

from __future__ import annotations

import unittest
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from unittest import mock

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

import siem_publish
from siem.v1 import error_pb2, event_pb2, event_pb2_grpc


class Server(event_pb2_grpc.EventServiceServicer):
    """Rejects events with OVERLOADED as often as planned, and invalid ones finally."""

    def __init__(self, overloads: dict[str, int], failures: list[status_pb2.Status] | None = None) -> None:
        self.overloads = Counter(overloads)
        self.failures = failures or []
        self.requests: list[list[str]] = []
        self.accepted: list[str] = []

    def Publish(
        self, request: event_pb2.PublishRequest, context: grpc.ServicerContext
    ) -> event_pb2.PublishResponse:
        """Answers one request."""
        self.requests.append([event.event_id for event in request.events])
        if self.failures:
            failure = self.failures.pop(0)
            context.set_trailing_metadata((("grpc-status-details-bin", failure.SerializeToString()),))
            codes = {code.value[0]: code for code in grpc.StatusCode}
            context.abort(codes[failure.code], "planned")
        response = event_pb2.PublishResponse()
        for index, event in enumerate(request.events):
            if self.overloads[event.event_id] > 0:
                self.overloads[event.event_id] -= 1
                response.rejections.add(index=index, reason=error_pb2.ERROR_REASON_OVERLOADED)
            elif event.device_id == "invalid":
                response.rejections.add(index=index, reason=error_pb2.ERROR_REASON_INVALID_FIELD)
            else:
                response.accepted += 1
                self.accepted.append(event.event_id)
        return response

    def PublishStream(
        self, request_iterator: Iterator[event_pb2.PublishStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[event_pb2.PublishStreamResponse]:
        """Not used."""
        raise NotImplementedError


@contextmanager
def serving(server: Server) -> Iterator[event_pb2_grpc.EventServiceStub]:
    """Serves on a free port."""
    running = grpc.server(futures.ThreadPoolExecutor(1))
    event_pb2_grpc.add_EventServiceServicer_to_server(server, running)
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield event_pb2_grpc.EventServiceStub(channel)
    running.stop(None).wait()


def event(name: str, device: str = "device") -> event_pb2.Event:
    """An event with a recognisable id."""
    return event_pb2.Event(event_id=name, device_id=device)


def failure(code: grpc.StatusCode, detail: error_details_pb2.RetryInfo | None = None) -> status_pb2.Status:
    """A status, with a RetryInfo if there is one."""
    status = status_pb2.Status(code=code.value[0])
    if detail is not None:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


class PublishTest(unittest.TestCase):
    """Each test has a clock of its own, which only waits advance."""

    def setUp(self) -> None:
        self.waits: list[float] = []
        patch = mock.patch("siem_publish.time")
        clock = patch.start()
        self.addCleanup(patch.stop)
        clock.sleep = self.waits.append
        clock.monotonic = lambda: sum(self.waits)

    def test_sends_again_until_accepted_in_order(self) -> None:
        server = Server({"b": 2, "c": 2, "d": 3})
        with serving(server) as stub:
            answer = siem_publish.publish(stub, [event(name) for name in "abcd"])
        self.assertEqual(answer, event_pb2.PublishResponse(accepted=4))
        self.assertEqual(server.requests, [list("abcd"), list("bcd"), list("bcd"), list("d")])
        self.assertEqual(server.accepted, list("abcd"))
        first, second, third = self.waits
        self.assertTrue(0.05 <= first <= 0.1 <= second <= 0.2, self.waits)
        self.assertTrue(0.05 <= third <= 0.1, "after progress the wait is short")

    def test_reports_final_rejections_with_their_index(self) -> None:
        server = Server({"a": 1, "b": 1})
        with serving(server) as stub:
            answer = siem_publish.publish(stub, [event("a"), event("b", "invalid"), event("c", "invalid")])
        self.assertEqual(answer.accepted, 1)
        self.assertEqual([rejection.index for rejection in answer.rejections], [1, 2])
        self.assertEqual({r.reason for r in answer.rejections}, {error_pb2.ERROR_REASON_INVALID_FIELD})
        self.assertEqual(server.requests, [list("abc"), list("ab")])

    def test_returns_temporary_rejections_at_the_deadline(self) -> None:
        server = Server({"b": 1_000_000})
        with serving(server) as stub:
            answer = siem_publish.publish(stub, [event("a"), event("b")], give_up_after=20)
        self.assertEqual(answer.accepted, 1)
        rejections = [(rejection.index, rejection.reason) for rejection in answer.rejections]
        self.assertEqual(rejections, [(1, error_pb2.ERROR_REASON_OVERLOADED)])
        self.assertGreater(len(server.requests), 3)
        self.assertTrue(10 < sum(self.waits) < 20, self.waits)

    def test_sends_a_failed_request_again(self) -> None:
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromSeconds(2)
        server = Server({}, [failure(grpc.StatusCode.RESOURCE_EXHAUSTED, info), failure(grpc.StatusCode.UNAVAILABLE)])
        with serving(server) as stub:
            self.assertEqual(siem_publish.publish(stub, [event("a")]).accepted, 1)
        asked, own = self.waits
        self.assertTrue(2 <= asked <= 2.5 and own <= 0.2, self.waits)

    def test_raises_other_errors(self) -> None:
        server = Server({}, [failure(grpc.StatusCode.INVALID_ARGUMENT)])
        with serving(server) as stub, self.assertRaises(grpc.RpcError):
            siem_publish.publish(stub, [event("a")])
        self.assertEqual(len(server.requests), 1)


if __name__ == "__main__":
    unittest.main()
