"""Errors of the client, and their extraction from gRPC errors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import grpc
from google.rpc import error_details_pb2, status_pb2

from siem_client import v1

DOMAIN = "siem.v1"
DETAILS_KEY = "grpc-status-details-bin"
CODES = {code.value[0]: code for code in grpc.StatusCode}

# Messages of gRPC's own transport. A server's handler that fails has other messages.
_TRANSPORT = re.compile(
    r"rst_stream|goaway|socket closed|broken pipe|stream removed|end of (file|stream)|\beof\b|connection|transport"
    r"|internal error from core|keepalive|ping timeout|http2|\bh2\b",
    re.IGNORECASE,
)
#: Start of the message of a call whose token could not be fetched.
TOKEN_PROBLEM = "the token could not be fetched"
# The call ended before a connection was there, so that no server has seen it.
_NEVER_SENT = ("failed to connect to all addresses", "dns resolution failed", TOKEN_PROBLEM)


class ConfigurationError(ValueError):
    """An argument of `connect` or of a publisher cannot be used; the message says why."""


class ClosedError(RuntimeError):
    """The client, the watch or the publisher is closed."""


class ForkedError(RuntimeError):
    """The client was used before this process was forked from its parent; a connection cannot be shared."""


class WrongLoopError(RuntimeError):
    """The asyncio client belongs to another event loop."""


@dataclass(frozen=True)
class Violation:
    """One violated field of a request.

    Attributes:
        field: Path of the field, such as `kinesis_stream_arn`.
        description: Problem and remedy, in English.
    """

    field: str
    description: str


class SiemError(Exception):
    """A call failed.

    Attributes:
        code: gRPC code.
        message: Message of the server, or of gRPC if no server answered.
        reason: Value of `v1.ErrorReason`; `v1.ERROR_REASON_UNSPECIFIED` if there is none, or one that
            this version does not know.
        reason_name: Reason as sent, such as `ETAG_MISMATCH`, also if it is unknown; empty without one.
        violations: Every violated field that the server names, at most 20.
        retry_delay: Seconds after which the server asks to try again; `None` if it does not.
        attempts: Number of attempts that were made.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason_name: str = "",
        violations: Sequence[Violation] = (),
        retry_delay: Optional[float] = None,
        attempts: int = 1,
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.reason_name = reason_name
        self.reason = _reason(reason_name)
        self.violations = tuple(violations)
        self.retry_delay = retry_delay
        self.attempts = attempts

    def __str__(self) -> str:
        name = f"{self.code.name}/{self.reason_name}" if self.reason_name else self.code.name
        # The server's message repeats the violations.
        return f"{name}: {self.message}"

    def __reduce__(self) -> Any:
        return _restore, (type(self), self.__dict__.copy())


def _restore(kind: type[SiemError], fields: dict[str, Any]) -> SiemError:
    error = kind(fields["code"], fields["message"])
    error.__dict__.update(fields)
    return error


class UnacknowledgedError(Exception):
    """A publisher has events without a final answer; the server may have accepted them.

    `__cause__` is the failure that ended the publisher, if it was not the time-out.

    Attributes:
        unacknowledged: The events, in the order of sending. Publish them again, unchanged: consumers drop
            duplicates.
    """

    def __init__(self, problem: str, unacknowledged: Sequence[v1.Event]) -> None:
        self.unacknowledged = list(unacknowledged)
        names = [_name(event) for event in self.unacknowledged[:5]]
        if len(self.unacknowledged) > len(names):
            names.append(f"and {len(self.unacknowledged) - len(names)} more")
        super().__init__(f"{problem}; {len(self.unacknowledged)} unacknowledged events: {', '.join(names)}")


def _name(event: v1.Event) -> str:
    """Returns attributes that identify an event for a person."""
    ident = event.event_id if event.HasField("event_id") else event.observed_time.ToJsonString()
    return f"{event.organization_id}/{event.device_id}/{ident}"


def _reason(name: str) -> v1.ErrorReason.ValueType:
    known: Any = v1.ErrorReason
    try:
        value: v1.ErrorReason.ValueType = known.Value(f"ERROR_REASON_{name}")
    except ValueError:
        return v1.ERROR_REASON_UNSPECIFIED
    return value


def from_status(status: status_pb2.Status, attempts: int = 1) -> SiemError:
    """Returns the error that a `google.rpc.Status` describes. Details that cannot be read are ignored."""
    reason_name, violations, delay = "", [], None
    for detail in status.details:
        kind = detail.type_url.rpartition("/")[2]
        try:
            if kind == "google.rpc.ErrorInfo":
                info = error_details_pb2.ErrorInfo.FromString(detail.value)
                if info.domain == DOMAIN:
                    reason_name = info.reason
            elif kind == "google.rpc.BadRequest":
                bad = error_details_pb2.BadRequest.FromString(detail.value)
                violations += [Violation(each.field, each.description) for each in bad.field_violations]
            elif kind == "google.rpc.RetryInfo":
                asked = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
                delay = max(asked.seconds + asked.nanos / 1e9, 0.0)
        except Exception:  # noqa: BLE001 (protobuf's DecodeError differs between its implementations)
            continue
    return SiemError(
        CODES.get(status.code, grpc.StatusCode.UNKNOWN),
        status.message,
        reason_name=reason_name,
        violations=violations,
        retry_delay=delay,
        attempts=attempts,
    )


def from_rpc(error: grpc.RpcError, attempts: int = 1) -> SiemError:
    """Returns the error of a failed call, of grpc or of grpc.aio."""
    call: Any = error
    code = call.code() or grpc.StatusCode.UNKNOWN
    message = call.details() or ""
    metadata: Iterable[tuple[str, Any]] = call.trailing_metadata() or ()
    status = status_pb2.Status()
    for key, value in metadata:
        if key == DETAILS_KEY:
            try:
                status.ParseFromString(value)
            except Exception:  # noqa: BLE001 (as above)
                status.Clear()
    status.code, status.message = code.value[0], message
    result = from_status(status, attempts)
    result.__cause__ = error
    return result


def is_transport_loss(error: SiemError) -> bool:
    """Whether the connection failed, rather than the server answered."""
    if error.reason_name:
        return False
    if error.code == grpc.StatusCode.UNAVAILABLE:
        return True
    lost = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL)
    # grpcio reports exceptions of its own callbacks with "Exception …".
    return error.code in lost and not error.message.startswith("Exception") and bool(_TRANSPORT.search(error.message))


def was_never_sent(error: SiemError) -> bool:
    """Whether no server can have seen the call."""
    return error.code == grpc.StatusCode.UNAVAILABLE and error.message.lower().startswith(_NEVER_SENT)
