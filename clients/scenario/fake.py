"""A server of the `siem.v1` API that answers as planned, for cases that the real one does not have."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import trustme
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2
from siem_client import v1

INTEGRATIONS = "siem.v1.SiemIntegrationService"
EVENTS = "siem.v1.EventService"
UNARY = {
    "Configure": v1.ConfigureResponse,
    "GenerateExternalId": v1.GenerateExternalIdResponse,
    "Get": v1.GetResponse,
    "List": v1.ListResponse,
    "Delete": v1.DeleteResponse,
    "SendTest": v1.SendTestResponse,
    "GetOnboarding": v1.GetOnboardingResponse,
}
REQUESTS: dict[str, Any] = {
    "Configure": v1.ConfigureRequest,
    "GenerateExternalId": v1.GenerateExternalIdRequest,
    "Get": v1.GetRequest,
    "List": v1.ListRequest,
    "Delete": v1.DeleteRequest,
    "SendTest": v1.SendTestRequest,
    "GetOnboarding": v1.GetOnboardingRequest,
    "StreamStatus": v1.StreamStatusRequest,
    "Publish": v1.PublishRequest,
    "PublishStream": v1.PublishStreamRequest,
}
CODES = {code.name: code for code in grpc.StatusCode}
MAX_STREAM_SECONDS = 120


def status(plan: dict[str, Any]) -> status_pb2.Status:
    """Returns the status of a planned error: `code`, `message`, `reason`, `retry_after`, `violations`."""
    result = status_pb2.Status(code=CODES[plan["code"]].value[0], message=plan.get("message", "planned"))
    if "reason" in plan:
        result.details.add().Pack(error_details_pb2.ErrorInfo(domain="siem.v1", reason=plan["reason"]))
    if "retry_after" in plan:
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromNanoseconds(int(plan["retry_after"] * 1e9))
        result.details.add().Pack(info)
    if "violations" in plan:
        bad = error_details_pb2.BadRequest()
        for field in plan["violations"]:
            bad.field_violations.add(field=field, description="planned")
        result.details.add().Pack(bad)
    return result


def encoded(plan: dict[str, Any], message: Any) -> bytes:
    """Returns a planned message: `message` in the JSON form of protobuf, and `append`, bytes in hexadecimal."""
    filled = json_format.ParseDict(plan.get("message", {}), message())
    return bytes(filled.SerializeToString()) + bytes.fromhex(plan.get("append", ""))


class Fake(grpc.GenericRpcHandler):
    """The server. Each call takes the next answer of its method's plan; without one it is UNIMPLEMENTED, and
    PublishStream accepts all."""

    def __init__(self, directory: Path, tls: bool = False, client_certificate: bool = False) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self._plans: dict[str, deque[dict[str, Any]]] = defaultdict(deque)
        self._poison = -1
        self.calls: list[dict[str, Any]] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(16))
        self._server.add_generic_rpc_handlers((self,))
        self.values: dict[str, str] = {}
        if tls:
            credentials = self._certificates(client_certificate)
            self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        else:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def _certificates(self, client_certificate: bool) -> grpc.ServerCredentials:
        """Makes authorities and certificates; returns the server's."""
        authority, other = trustme.CA(), trustme.CA()
        server = authority.issue_cert("localhost", "127.0.0.1")
        client = authority.issue_cert("client@example.com")
        for name, blob in (
            ("ca", authority.cert_pem),
            ("other_ca", other.cert_pem),
            ("certificate", client.cert_chain_pems[0]),
            ("key", client.private_key_pem),
        ):
            path = self.directory / f"{name}.pem"
            blob.write_to_path(path)
            self.values[name] = str(path)
        pair = (server.private_key_pem.bytes(), server.cert_chain_pems[0].bytes())
        roots = authority.cert_pem.bytes() if client_certificate else None
        return grpc.ssl_server_credentials([pair], roots, client_certificate)

    def stop(self) -> None:
        """Ends all calls."""
        self._server.stop(None).wait()

    def plan(self, method: str, answers: list[dict[str, Any]]) -> None:
        """Replaces the plan of a method, and forgets its calls."""
        with self._lock:
            self._plans[method] = deque(answers)
            self.calls = [call for call in self.calls if call["method"] != method]

    def poison(self, number: int) -> None:
        """Refuses requests of PublishStream as a whole that carry this event."""
        self._poison = number

    def seen(self, method: str) -> list[dict[str, Any]]:
        """Returns the calls of a method, oldest first; those of PublishStream are its requests."""
        with self._lock:
            return [call for call in self.calls if call["method"] == method]

    def _record(self, method: str, request: bytes, context: grpc.ServicerContext) -> dict[str, Any]:
        """Notes a call; returns its planned answer."""
        metadata = {key: value for key, value in context.invocation_metadata() or ()}
        message = REQUESTS[method].FromString(request)
        call = {
            "method": method,
            "time": time.monotonic(),
            "authorization": metadata.get("authorization", ""),
            "request": json_format.MessageToDict(message, preserving_proto_field_name=True),
        }
        with self._lock:
            self.calls.append(call)
            plan = self._plans[method]
            default = {} if method == "PublishStream" else {"error": {"code": "UNIMPLEMENTED", "message": "no plan"}}
            return plan.popleft() if plan else default

    def _abort(self, context: grpc.ServicerContext, planned: dict[str, Any]) -> None:
        error = status(planned)
        if error.details:
            context.set_trailing_metadata((("grpc-status-details-bin", error.SerializeToString()),))
        context.abort(CODES[planned["code"]], error.message)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """Returns the handler of a method, with messages as bytes."""
        method = str(handler_call_details.method).rpartition("/")[2]
        if method in UNARY or method == "Publish":
            return grpc.unary_unary_rpc_method_handler(lambda request, context: self._unary(method, request, context))
        if method == "StreamStatus":
            return grpc.unary_stream_rpc_method_handler(self._stream_status)
        if method == "PublishStream":
            return grpc.stream_stream_rpc_method_handler(self._publish_stream)
        return None

    def _unary(self, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        planned = self._record(method, request, context)
        if "error" in planned:
            self._abort(context, planned["error"])
        return encoded(planned, UNARY.get(method, v1.PublishResponse))

    def _stream_status(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        planned = self._record("StreamStatus", request, context)
        for each in planned.get("messages", []):
            yield encoded(each, v1.StreamStatusResponse)
        if "error" in planned:
            self._abort(context, planned["error"])
        if planned.get("open"):
            ended = threading.Event()
            context.add_callback(ended.set)
            ended.wait(MAX_STREAM_SECONDS)

    def _publish_stream(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for request in requests:
            planned = self._record("PublishStream", request, context)
            message = v1.PublishStreamRequest.FromString(request)
            if planned.get("silent"):
                continue
            if "end" in planned:
                self._abort(context, planned["end"])
            answer = v1.PublishStreamResponse(request_id=message.request_id)
            if any(event.ids_detection.signature == f"detection {self._poison}" for event in message.events):
                planned = {"error": {"code": "INVALID_ARGUMENT", "reason": "MALFORMED_REQUEST"}}
            if "error" in planned:
                answer.error.CopyFrom(status(planned["error"]))
            else:
                json_format.ParseDict({"rejections": planned.get("rejections", [])}, answer.result)
                answer.result.unconfigured = planned.get("unconfigured", 0)
                answer.result.filtered = planned.get("filtered", 0)
                others = len(answer.result.rejections) + answer.result.unconfigured + answer.result.filtered
                answer.result.accepted = len(message.events) - others
            yield answer.SerializeToString()
