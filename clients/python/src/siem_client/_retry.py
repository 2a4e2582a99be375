"""Decisions about failed attempts, and the waits between them. No I/O; times are arguments."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

import grpc

from siem_client import v1
from siem_client._errors import SiemError, is_transport_loss, was_never_sent

# The server says that it did nothing. SHUTTING_DOWN may end a test event that is already written.
_NOTHING_DONE = frozenset({v1.ERROR_REASON_STORAGE_FAILED})


@dataclass(frozen=True)
class RetryOptions:
    """Waits between attempts.

    Attributes:
        min_wait: Seconds after the first failure; doubled with each further one in a row.
        max_wait: Longest wait in seconds, unless the server asks for a longer one.
    """

    min_wait: float = 0.1
    max_wait: float = 5.0


def backoff(options: RetryOptions, failures: int, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """Returns the wait after this number of earlier failures in a row. The jitter follows the limit, so that
    clients stay spread once they have reached it."""
    return min(options.min_wait * 2.0 ** min(failures, 60), options.max_wait) * uniform(0.5, 1.0)


def asked_wait(asked: float, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """Returns a wait that is never shorter than the one that the server asked for."""
    return asked * uniform(1.0, 1.25)


def is_temporary(error: SiemError, resend: bool) -> bool:
    """Whether the same call can succeed later.

    Args:
        error: The failure.
        resend: Whether the call may be sent twice although the first one may have taken effect.
    """
    if error.code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        # The server refused the request before it did anything.
        return error.retry_delay is not None
    if error.code == grpc.StatusCode.UNAVAILABLE or is_transport_loss(error):
        return resend or was_never_sent(error) or error.reason in _NOTHING_DONE
    return False


class Attempts:
    """The attempts of one call, which share one deadline."""

    def __init__(self, options: RetryOptions, now: float, timeout: float, resend: bool) -> None:
        self._options = options
        self._deadline = now + timeout
        self._resend = resend
        self._failures = 0
        self._refreshed = False
        self._last: Optional[SiemError] = None

    @property
    def number(self) -> int:
        """Number of the current attempt, from 1."""
        return self._failures + 1

    def left(self, now: float) -> float:
        """Returns the seconds until the deadline, at least 0."""
        return max(self._deadline - now, 0.0)

    def failed(self, error: SiemError, now: float, token_can_change: bool) -> Optional[float]:
        """Returns the wait until the next attempt, or `None` if it follows at once with a new token.

        Raises:
            SiemError: The call has failed for good.
        """
        error.attempts = self.number
        if error.code == grpc.StatusCode.DEADLINE_EXCEEDED and self._last and not error.reason_name:
            # The deadline of all attempts says less than the failure that used it up.
            error.message = f"{error.message}; the attempt before failed: {self._last}"
        if error.code == grpc.StatusCode.UNAUTHENTICATED and token_can_change and not self._refreshed:
            self._refreshed = True
            self._failures += 1
            return None
        if not is_temporary(error, self._resend):
            raise error
        asked = error.retry_delay
        wait = backoff(self._options, self._failures)
        if asked is not None:
            wait = max(wait, asked_wait(asked))
        if wait >= self.left(now):
            raise error
        self._failures += 1
        self._last = error
        return wait
