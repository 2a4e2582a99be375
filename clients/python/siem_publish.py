"""Publishes events until the answer to each is final."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import grpc
from google.rpc import error_details_pb2, status_pb2

from siem.v1 import error_pb2, event_pb2, event_pb2_grpc

MIN_WAIT_SECONDS = 0.1
MAX_WAIT_SECONDS = 5.0


def publish(
    stub: event_pb2_grpc.EventServiceStub, events: Sequence[event_pb2.Event], give_up_after: float = 300.0
) -> event_pb2.PublishResponse:
    """Publishes at most 1,000 events and 4 MiB, and sends those again that are rejected temporarily.

    Returns one answer for all events, with the indices of `events`. It has a rejection with the reason
    OVERLOADED only for an event that was rejected until `give_up_after` seconds had passed. A request that
    fails as UNAVAILABLE, or with a RetryInfo, is sent again too; other errors are raised, and so is the last
    one at the end. Events may have been accepted before an error: publish all of them again, unchanged.

    Events are sent again unchanged, so their CloudEvents ids remain the same. To keep the events of a device
    in order, publish its later events after this function has returned. Other devices do not have to wait if
    they are published from other threads.
    """
    deadline = time.monotonic() + give_up_after
    total = event_pb2.PublishResponse()
    waiting = list(enumerate(events))
    failures = 0
    while True:
        request = event_pb2.PublishRequest(events=[event for _, event in waiting])
        try:
            answer = stub.Publish(request, timeout=max(deadline - time.monotonic(), 0))
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call), "an error of a stub is a call"
            asked = _asked_wait(error)
            wait = _wait(failures, asked)
            is_retriable = asked is not None or error.code() == grpc.StatusCode.UNAVAILABLE
            if not is_retriable or time.monotonic() + wait >= deadline:
                raise
        else:
            total.accepted += answer.accepted
            total.unconfigured += answer.unconfigured
            overloaded = []
            again = []
            for rejection in answer.rejections:
                index, event = waiting[rejection.index]
                rejection.index = index
                if rejection.reason == error_pb2.ERROR_REASON_OVERLOADED:
                    overloaded.append(rejection)
                    again.append((index, event))
                else:
                    total.rejections.append(rejection)
            if len(again) < len(waiting):
                failures = 0
            wait = _wait(failures)
            if not again or time.monotonic() + wait >= deadline:
                total.rejections.extend(overloaded)
                total.rejections.sort(key=lambda rejection: rejection.index)
                return total
            waiting = again
        failures += 1
        time.sleep(wait)


def _wait(failures: int, asked: float | None = None) -> float:
    """Seconds until the next attempt. Jitter spreads the attempts of many clients."""
    if asked is not None:
        return min(asked * random.uniform(1, 1.25), MAX_WAIT_SECONDS)
    return min(MIN_WAIT_SECONDS * 2.0 ** min(failures, 16), MAX_WAIT_SECONDS) * random.uniform(0.5, 1)


def _asked_wait(error: grpc.Call) -> float | None:
    """Seconds that the server asks for in a RetryInfo."""
    info = error_details_pb2.RetryInfo()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(info):
                    return info.retry_delay.ToTimedelta().total_seconds()
    return None
