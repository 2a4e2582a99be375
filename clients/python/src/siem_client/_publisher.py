"""The publisher for threads."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from types import TracebackType
from typing import TYPE_CHECKING, Any, Optional

import grpc

from siem_client import v1
from siem_client._errors import ClosedError, ForkedError, SiemError, UnacknowledgedError, from_rpc
from siem_client._publish_core import (
    Broken,
    Item,
    PublishCore,
    PublisherOptions,
    PublisherStats,
    PublishResult,
    Results,
)

if TYPE_CHECKING:
    from typing_extensions import Self

    from siem_client._client import Client

LOG = logging.getLogger("siem_client")
PATH = "/siem.v1.EventService/PublishStream"
DEFAULT_CLOSE_TIMEOUT = 30.0
_TOKEN_SECONDS = 30.0
# Time that the server has to end a stream whose requests are all answered.
_END_SECONDS = 1.0


def stream_of(channel: Any) -> Any:
    """Returns PublishStream of a channel of either kind, with requests that are encoded already."""
    return channel.stream_stream(
        PATH,
        request_serializer=None,
        response_deserializer=v1.PublishStreamResponse.FromString,
    )


def resolve(results: Results) -> None:
    """Hands answers to the callers."""
    for item, result in results:
        # Futures may be cancelled; the event is answered all the same.
        if not item.future.done():
            with contextlib.suppress(InvalidStateError):
                item.future.set_result(result)


class Publisher:
    """Publishes events over PublishStream, and opens the stream again whenever it breaks. `Client.publisher` makes it.

    Unanswered events are kept and sent again, unchanged and so under the same CloudEvents ids: none is lost, and
    consumers drop those that were accepted twice. Events of a device keep their order. A temporary rejection
    (OVERLOADED, RATE_LIMITED) defers the event and later ones of its device; other devices go on.

    It may be used by several threads. A `with` statement closes it, and so waits for all answers.
    """

    def __init__(self, client: Client, options: PublisherOptions) -> None:
        self._client = client
        self._core = PublishCore(options)
        # Guards the core and everything below.
        self._changed = threading.Condition()
        self._thread: Optional[threading.Thread] = None
        self._pid = os.getpid()
        self._call: Any = None
        self._closing = False
        self._failure: Optional[Exception] = None
        # Changes with each stream, so that the requests of an old one end.
        self._stream_number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    @property
    def stats(self) -> PublisherStats:
        """Returns the counts so far."""
        with self._changed:
            return PublisherStats(**self._core.stats.__dict__)

    def send(self, event: v1.Event, *, timeout: Optional[float] = None) -> Future[PublishResult]:
        """Queues an event. Waits while too many are unanswered.

        Args:
            event: The event. Later changes of the object have no effect.
            timeout: Longest wait in seconds; `None` for no limit.

        Returns:
            A future with the final answer to the event. It may be dropped.

        Raises:
            TimeoutError: There was no capacity in time; the event was not queued.
            ClosedError: The publisher is closed or has ended; `__cause__` has the reason.
        """
        self._check_process()
        future: Future[PublishResult] = Future()
        item = Item(event, future)
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._core.has_capacity(item.weight):
                self._check_open()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"no capacity for the event within {timeout} s")
                # Events that linger would be waited for in vain.
                if self._core.lingers:
                    self._core.flush()
                    self._changed.notify_all()
                self._changed.wait(left)
            self._check_open()
            is_due = self._core.add(item, time.monotonic())
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="siem-client-publisher", daemon=True)
                self._thread.start()
            elif is_due:
                self._changed.notify_all()
        return future

    def flush(self, timeout: Optional[float] = None) -> None:
        """Waits until every event that was sent before has its final answer.

        Args:
            timeout: Longest wait in seconds; `None` for no limit.

        Raises:
            UnacknowledgedError: Some have none; the publisher continues, unless it has ended.
        """
        self._check_process()
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            last = self._core.flush()
            self._changed.notify_all()
            while True:
                oldest = self._core.oldest()
                if oldest is None or oldest > last:
                    if self._failure is not None and self._core.stats.pending:
                        raise self._unacknowledged(str(self._failure))
                    return
                if self._failure is not None:
                    raise self._unacknowledged(str(self._failure))
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise self._unacknowledged(f"not flushed within {timeout} s")
                self._changed.wait(left)

    def close(self, timeout: float = DEFAULT_CLOSE_TIMEOUT) -> None:
        """Flushes and ends the publisher.

        Args:
            timeout: Longest wait in seconds.

        Raises:
            UnacknowledgedError: Some events have no final answer. Their futures have the same error.
        """
        if self._pid != os.getpid():
            return
        deadline = time.monotonic() + timeout
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._core.flush()
            self._changed.notify_all()
            while self._thread is not None and not self._core.is_done and self._failure is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            error: Optional[UnacknowledgedError] = None
            if not self._core.is_done:
                problem = str(self._failure) if self._failure else f"not closed within {timeout} s"
                error = self._unacknowledged(problem)
                if self._failure is None:
                    self._failure = error
            items = self._core.unanswered() if error else []
            self._changed.notify_all()
        self._fail(items, error)
        if self._thread is not None and self._thread is not threading.current_thread():
            if error is None:
                self._thread.join(_END_SECONDS)
            if self._call is not None:
                self._call.cancel()
        if error is not None:
            raise error

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise ForkedError("this publisher was made before the process was forked; make one in each process")

    def _check_open(self) -> None:
        if self._failure is not None:
            raise ClosedError(f"the publisher has ended: {self._failure}") from self._failure
        if self._closing:
            raise ClosedError("the publisher is closed")

    def _unacknowledged(self, problem: str) -> UnacknowledgedError:
        error = UnacknowledgedError(problem, [item.event() for item in self._core.unanswered()])
        error.__cause__ = self._failure
        return error

    def _fail(self, items: list[Item], error: Optional[Exception]) -> None:
        for item in items:
            if error is not None and not item.future.done():
                with contextlib.suppress(InvalidStateError):
                    item.future.set_exception(error)

    @property
    def _is_over(self) -> bool:
        return self._failure is not None or (self._closing and self._core.is_done)

    def _run(self) -> None:
        """Runs streams until the publisher is closed or fails; the body of its thread."""
        try:
            while True:
                with self._changed:
                    # No stream is opened before there is something to send.
                    while self._core.is_done and not self._is_over:
                        self._changed.wait()
                    if self._is_over:
                        return
                self._stream()
        except Exception as error:  # noqa: BLE001 (a defect here must reach the callers, who would wait for ever)
            with self._changed:
                if self._failure is None:
                    self._failure = error
                items = self._core.unanswered()
                self._changed.notify_all()
            self._fail(items, error)

    def _stream(self) -> None:
        """Runs one stream, and waits before the next one."""
        token = ""
        try:
            metadata, token = self._client._authorize(_TOKEN_SECONDS)
            stub = stream_of(self._client._open().channel)
            with self._changed:
                if self._is_over:
                    return
                self._stream_number += 1
                call = self._call = stub(self._requests(self._stream_number), metadata=metadata)
            try:
                error = self._read(call)
            finally:
                with self._changed:
                    self._stream_number += 1
                    self._call = None
                    self._changed.notify_all()
                call.cancel()
        except SiemError as failure:
            error = failure
        with self._changed:
            if self._is_over:
                return
            idle = self._core.is_done
            results, wait = self._core.broke(error, time.monotonic(), self._client._token_can_change)
            self._changed.notify_all()
        resolve(results)
        if wait is None:
            self._client._token_refused(token)
            return
        if not idle:
            LOG.warning("the publish stream broke, next in %.2f s: %s", wait, error)
        self._pause(wait)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        with self._changed:
            while not self._is_over and time.monotonic() < until:
                self._changed.wait(max(until - time.monotonic(), 0))

    def _read(self, call: Any) -> SiemError:
        """Reads answers until the stream ends, for whatever reason. Returns that."""
        try:
            for answer in call:
                with self._changed:
                    results = self._core.answered(answer, time.monotonic())
                    # The answers are there before `flush` returns.
                    resolve(results)
                    self._changed.notify_all()
        except grpc.RpcError as failure:
            error = from_rpc(failure)
            with self._changed:
                if self._core.is_overdue(time.monotonic()):
                    error = SiemError(grpc.StatusCode.DEADLINE_EXCEEDED, "the server does not answer")
            return error
        except Broken as broken:
            return broken.error
        return SiemError(grpc.StatusCode.UNAVAILABLE, "the server ended the stream")

    def _requests(self, number: int) -> Iterator[bytes]:
        """Returns the requests of one stream, for gRPC's thread."""
        while True:
            with self._changed:
                while True:
                    if self._stream_number != number or self._is_over:
                        return
                    now = time.monotonic()
                    if self._core.is_overdue(now):
                        if self._call is not None:
                            self._call.cancel()
                        return
                    request = self._core.next_request(now)
                    if request is not None:
                        break
                    wakeup = self._core.next_wakeup()
                    self._changed.wait(None if wakeup is None else max(wakeup - now, 0.001))
            yield request
