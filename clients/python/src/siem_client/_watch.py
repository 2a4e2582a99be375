"""Follows StreamStatus over disconnects and restarts of the server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional, Union

import grpc

from siem_client import v1
from siem_client._errors import SiemError
from siem_client._retry import RetryOptions, asked_wait, backoff

# Failures that come again however often the stream is opened.
_FINAL = frozenset(
    {
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.FAILED_PRECONDITION,
    }
)


@dataclass(frozen=True)
class StatusSnapshot:
    """The complete current statuses. It replaces everything that the watch returned before.

    Attributes:
        statuses: Current status of each integration, by organization.
        absent: Those of the named organizations that have no integration.
    """

    statuses: dict[str, v1.StatusCurrent] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()


#: An event of a watch: a new picture, or a change of it.
StatusEvent = Union[StatusSnapshot, v1.StatusCurrent, v1.StatusDeleted, v1.StatusAbsent]


class WatchState:
    """State of a watch between messages. No I/O."""

    def __init__(self, organization_ids: list[str], resume_token: str, retry: RetryOptions) -> None:
        self._organization_ids = organization_ids
        self._retry = retry
        # Token of the last message. That of the last returned event is `resume_token`.
        self._token = resume_token
        self.resume_token = resume_token
        # The incomplete picture; None while changes are returned one by one.
        self._statuses: Optional[dict[str, v1.StatusCurrent]] = None
        self._absent: set[str] = set()
        self._failures = 0
        self._refreshed = False
        self._sent_token = ""
        if not resume_token:
            self._start_snapshot()

    def _start_snapshot(self) -> None:
        self._statuses, self._absent = {}, set()

    def request(self) -> v1.StreamStatusRequest:
        """Returns the request of the next stream."""
        self._sent_token = self._token
        return v1.StreamStatusRequest(organization_ids=self._organization_ids, resume_token=self._token)

    def received(self, message: v1.StreamStatusResponse) -> Optional[StatusEvent]:
        """Takes a message; returns the event to return, if there is one."""
        self._failures, self._refreshed = 0, False
        kind = message.WhichOneof("event")
        if kind == "reset":
            # The token that was sent has been refused, and must not be sent again.
            self._token = "" if message.resume_token == self._sent_token else message.resume_token
            self._start_snapshot()
            return None
        if message.resume_token:
            self._token = message.resume_token
        if self._statuses is None:
            self.resume_token = self._token
            if kind == "current":
                return message.current
            if kind == "deleted":
                return message.deleted
            if kind == "absent":
                return message.absent
            return None
        if kind == "current":
            self._statuses[message.current.organization_id] = message.current
            self._absent.discard(message.current.organization_id)
        elif kind == "deleted":
            self._statuses.pop(message.deleted.organization_id, None)
            if message.deleted.organization_id in self._organization_ids:
                self._absent.add(message.deleted.organization_id)
        elif kind == "absent":
            self._statuses.pop(message.absent.organization_id, None)
            self._absent.add(message.absent.organization_id)
        elif kind == "synced":
            snapshot = StatusSnapshot(self._statuses, frozenset(self._absent))
            self._statuses = None
            self.resume_token = self._token
            return snapshot
        return None

    def failed(self, error: SiemError, token_can_change: bool) -> Optional[float]:
        """Returns the wait until the next stream, or `None` if it follows at once with a new bearer token.

        Raises:
            SiemError: The stream would be refused again.
        """
        if error.code == grpc.StatusCode.UNAUTHENTICATED and token_can_change and not self._refreshed:
            self._refreshed = True
            return None
        if error.code == grpc.StatusCode.INVALID_ARGUMENT and any(
            violation.field == "resume_token" for violation in error.violations
        ):
            # Nothing is known of the changes since then: a new picture.
            if self._sent_token:
                self._token = ""
                self._start_snapshot()
                return 0.0
        if error.code in _FINAL or (error.code == grpc.StatusCode.RESOURCE_EXHAUSTED and error.retry_delay is None):
            raise error
        wait = backoff(self._retry, self._failures)
        if error.retry_delay is not None:
            wait = max(wait, asked_wait(error.retry_delay))
        self._failures += 1
        return wait

    def silent(self) -> SiemError:
        """Returns the failure of a stream without messages."""
        return SiemError(grpc.StatusCode.UNAVAILABLE, "the server is silent")

    def ended(self) -> SiemError:
        """Returns the failure of a stream that the server ended without an error."""
        return SiemError(grpc.StatusCode.UNAVAILABLE, "the server ended the stream")
