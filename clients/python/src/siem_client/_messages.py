"""Helpers for messages: enums, whose values may be newer than this package, and times."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Optional

from google.protobuf.timestamp_pb2 import Timestamp

from siem_client import v1

_NO_RESULT = (v1.STATUS_UNSPECIFIED, v1.STATUS_UNKNOWN)


def status_of(status: v1.IntegrationStatus) -> v1.Status.ValueType:
    """Returns the status of an integration; `v1.STATUS_UNKNOWN` for one that this version does not know."""
    known: Any = v1.Status
    if status.status in _NO_RESULT or status.status not in known.values():
        return v1.STATUS_UNKNOWN
    return status.status


def enum_name(enum: Any, value: int) -> str:
    """Returns the name of a value of an enum, such as `enum_name(v1.StatusReason, reason)`; the number as text if
    this version does not know it. Unlike the enum's own `Name` it never raises."""
    try:
        name: str = enum.Name(value)
    except ValueError:
        return str(value)
    return name


def timestamp(when: Optional[datetime] = None) -> Timestamp:
    """Returns a time for a message, such as `observed_time`.

    Args:
        when: Time with a time zone; now if absent.
    """
    when = datetime.now(timezone.utc) if when is None else when
    if when.tzinfo is None:
        raise ValueError("the time has no time zone; use datetime.now(timezone.utc)")
    result = Timestamp()
    result.FromDatetime(when)
    return result
