"""Decisions about failures, and waits."""

from __future__ import annotations

import pickle

import grpc
import pytest

from siem_client import RetryOptions, SiemError, Violation, v1
from siem_client._errors import from_status, is_transport_loss
from siem_client._retry import Attempts, backoff, is_temporary

Code = grpc.StatusCode


def test_the_jitter_follows_the_limit() -> None:
    waits = [backoff(RetryOptions(0.1, 5.0), 50) for _ in range(200)]
    assert all(2.5 <= wait <= 5.0 for wait in waits) and max(waits) - min(waits) > 1
    assert all(0.05 <= backoff(RetryOptions(0.1, 5.0), 0) <= 0.1 for _ in range(50))


@pytest.mark.parametrize(
    ("code", "message", "reason", "lost"),
    [
        (Code.UNAVAILABLE, "Socket closed", "", True),
        (Code.UNKNOWN, "Stream removed", "", True),
        (Code.CANCELLED, "Received RST_STREAM with error code 8", "", True),
        (Code.INTERNAL, "Received RST_STREAM with error code 2", "", True),
        (Code.INTERNAL, "Internal error from Core", "", True),
        (Code.INTERNAL, "a defect", "INTERNAL", False),
        (Code.INTERNAL, "planned", "", False),
        (Code.UNKNOWN, "Exception calling application: connection", "", False),
        (Code.CANCELLED, "Locally cancelled by application!", "", False),
        (Code.NOT_FOUND, "connection", "", False),
    ],
)
def test_lost_transports(code: grpc.StatusCode, message: str, reason: str, lost: bool) -> None:
    error = SiemError(code, message, reason_name=reason)
    assert is_transport_loss(error) is lost
    assert is_temporary(error, resend=True) is lost
    assert not is_temporary(error, resend=False)


def test_calls_that_are_never_sent_twice() -> None:
    def temporary(code: grpc.StatusCode, message: str = "", reason: str = "", delay: float | None = None) -> bool:
        return is_temporary(SiemError(code, message, reason_name=reason, retry_delay=delay), resend=False)

    assert not temporary(Code.UNAVAILABLE, "Socket closed")
    assert not temporary(Code.UNAVAILABLE, "", "SHUTTING_DOWN", 1.0)
    assert not temporary(Code.UNAVAILABLE, "", "OUTCOME_UNKNOWN", 1.0)
    assert not temporary(Code.RESOURCE_EXHAUSTED, "", "RATE_LIMITED")
    assert temporary(Code.RESOURCE_EXHAUSTED, "", "RATE_LIMITED", 1.0)
    assert temporary(Code.UNAVAILABLE, "", "STORAGE_FAILED", 1.0)
    assert temporary(Code.UNAVAILABLE, "failed to connect to all addresses; last error: refused")


def test_one_deadline_over_all_attempts() -> None:
    attempts = Attempts(RetryOptions(1.0, 1.0), 0.0, 10.0, True)
    now, waits = 0.0, 0
    with pytest.raises(SiemError) as failure:
        while True:
            wait = attempts.failed(SiemError(Code.UNAVAILABLE, "Socket closed"), now, False)
            assert wait is not None and wait < attempts.left(now)
            now += wait
            waits += 1
    assert failure.value.attempts == waits + 1 and 9 < now < 10


def test_the_end_of_the_deadline_says_why_it_was_used_up() -> None:
    attempts = Attempts(RetryOptions(), 0.0, 10.0, True)
    attempts.failed(SiemError(Code.UNAVAILABLE, "Socket closed"), 0.0, False)
    with pytest.raises(SiemError, match="the attempt before failed: UNAVAILABLE: Socket closed"):
        attempts.failed(SiemError(Code.DEADLINE_EXCEEDED, "Deadline Exceeded"), 9.0, False)


def test_details_are_read_whatever_they_are() -> None:
    from google.rpc import error_details_pb2, status_pb2

    status = status_pb2.Status(code=99, message="planned")
    status.details.add(type_url="type.googleapis.com/google.rpc.BadRequest", value=b"\xff\xff")
    status.details.add(type_url="type.googleapis.com/of.another.Type", value=b"\xff")
    status.details.add().Pack(error_details_pb2.ErrorInfo(domain="siem.v1", reason="FROM_THE_FUTURE"))
    bad = error_details_pb2.BadRequest()
    for name in "ab":
        bad.field_violations.add(field=name, description=f"{name} is missing")
    status.details.add().Pack(bad)
    error = from_status(status)
    assert error.code == Code.UNKNOWN
    assert (error.reason, error.reason_name) == (v1.ERROR_REASON_UNSPECIFIED, "FROM_THE_FUTURE")
    assert error.violations == (Violation("a", "a is missing"), Violation("b", "b is missing"))
    known = SiemError(Code.ABORTED, "stale", reason_name="ETAG_MISMATCH")
    assert known.reason == v1.ERROR_REASON_ETAG_MISMATCH and str(known) == "ABORTED/ETAG_MISMATCH: stale"
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.violations, copy.reason_name) == (error.violations, error.reason_name)
