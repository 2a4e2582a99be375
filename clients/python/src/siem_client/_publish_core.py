"""Requests, acknowledgements and order of a publisher. No I/O and no clock; `now` is in seconds of a monotonic clock.

Events pass through: pending (not yet in a request), the window (requests that are to be sent or unanswered), and
deferred (rejected temporarily, or behind such an event of their device).
"""

from __future__ import annotations

import enum
import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Optional, Protocol

import grpc

from siem_client import v1
from siem_client._errors import ConfigurationError, SiemError, from_status
from siem_client._retry import RetryOptions, asked_wait, backoff

MAX_EVENTS = 1_000
MAX_BYTES = 4 << 20
#: Memory of one event beside its encoded bytes: the item, its future and its place in the queues.
EVENT_OVERHEAD_BYTES = 1_024
# Bytes of a request_id with its tag and length; the id is a number.
_REQUEST_ID_BYTES = 24
# Up to this many organizations at a time, each request carries events of one, since an answer only counts the events
# of organizations without an integration.
_SEPARATE_ORGANIZATIONS = 8
_TEMPORARY = frozenset({v1.ERROR_REASON_OVERLOADED, v1.ERROR_REASON_RATE_LIMITED})
_STOP = frozenset(
    {
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.NOT_FOUND,
    }
)
_AT_FAULT = frozenset(
    {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.FAILED_PRECONDITION}
)


@dataclass(frozen=True)
class PublisherOptions:
    """Limits and waits of a publisher. Times are in seconds.

    Attributes:
        max_requests_in_flight: Unanswered requests, 1 to 64.
        max_bytes_in_flight: Memory for unanswered events; `send` waits beyond it. Each event counts 1 KiB more than
            its encoded size. One event alone may exceed it.
        max_batch_events: Events of one request, 1 to 1,000.
        max_batch_bytes: Bytes of one request with its framing, at most 4 MiB. A larger event is sent alone.
        linger: Longest time for which the first event of a request waits for further ones.
        min_retry_wait: Wait after the first failure, or the first temporary rejection of an event of a device;
            doubled with each further one in a row.
        max_retry_wait: Longest wait, unless the server asks for a longer one.
        give_up_after: Time without any final answer after which the publisher ends with an error; `None` for never.
        answer_timeout: Time without an answer after which the stream is opened again.
    """

    max_requests_in_flight: int = 16
    max_bytes_in_flight: int = 16 << 20
    max_batch_events: int = MAX_EVENTS
    max_batch_bytes: int = MAX_BYTES
    linger: float = 0.01
    min_retry_wait: float = 0.1
    max_retry_wait: float = 5.0
    give_up_after: Optional[float] = 300.0
    answer_timeout: float = 60.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_requests_in_flight", 1, 64),
            ("max_bytes_in_flight", 1, None),
            ("max_batch_events", 1, MAX_EVENTS),
            ("max_batch_bytes", 1, MAX_BYTES),
            ("answer_timeout", 0.001, None),
            ("linger", 0, None),
        ):
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                raise ConfigurationError(f"{name}: {value} is not in the range from {low} to {high or 'any'}")


class Outcome(enum.Enum):
    """Final answer to an event."""

    #: It is durable.
    ACCEPTED = "accepted"
    #: Its organization has no integration; it is not stored.
    UNCONFIGURED = "unconfigured"
    #: A filter of its integration left it out; it is not stored.
    FILTERED = "filtered"
    #: One of these three: the answer only counts, and differs between the events of the request.
    UNDETERMINED = "undetermined"
    #: It is invalid; see the rejection.
    REJECTED = "rejected"


@dataclass(frozen=True)
class PublishResult:
    """Final answer to one event.

    Attributes:
        outcome: The answer.
        rejection: Reason, field and message of a rejected event. Its index is 0.
    """

    outcome: Outcome
    rejection: Optional[v1.Rejection] = None


@dataclass
class PublisherStats:
    """Counts since the publisher was made.

    Attributes:
        accepted: Events that are durable.
        unconfigured: Events of organizations without an integration.
        rejected: Events that were rejected for good.
        filtered: Events that a filter left out.
        undetermined: Events with `Outcome.UNDETERMINED`.
        deferred: Temporary rejections; each event counts as often as it was rejected.
        reconnects: Streams that broke while events were unanswered.
        pending: Events without a final answer.
    """

    accepted: int = 0
    unconfigured: int = 0
    rejected: int = 0
    filtered: int = 0
    undetermined: int = 0
    deferred: int = 0
    reconnects: int = 0
    pending: int = 0


class Future(Protocol):
    """The part of both kinds of futures that is used here."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: BaseException, /) -> None: ...


def _varint_len(value: int) -> int:
    return (max(value.bit_length(), 1) + 6) // 7


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


class Item:
    """One encoded event."""

    __slots__ = ("data", "device", "framed", "future", "organization", "order")

    def __init__(self, event: v1.Event, future: Future) -> None:
        self.data = event.SerializeToString()
        self.organization = event.organization_id
        self.device = (event.organization_id, event.network_id, event.device_id)
        #: Bytes within a request.
        self.framed = len(self.data) + 1 + _varint_len(len(self.data))
        self.future = future
        #: Number in the order of sending.
        self.order = 0

    @property
    def weight(self) -> int:
        """Memory that it takes."""
        return len(self.data) + EVENT_OVERHEAD_BYTES

    def event(self) -> v1.Event:
        """Returns the event."""
        return v1.Event.FromString(self.data)


#: Events with their final answers, to be handed to the callers.
Results = list[tuple[Item, PublishResult]]


def encode_request(request_id: str, items: Iterable[Item]) -> bytes:
    """Returns a `PublishStreamRequest` of events that are encoded already."""
    parts = [b"\x0a", _varint(len(request_id)), request_id.encode()]
    for item in items:
        parts += (b"\x12", _varint(len(item.data)), item.data)
    return b"".join(parts)


class Broken(Exception):
    """A stream cannot continue."""

    def __init__(self, error: SiemError) -> None:
        super().__init__(error)
        self.error = error


class _Device:
    """A device with deferred events. At most one request at a time carries events of it."""

    __slots__ = ("failures", "in_window", "progress", "rejected", "resent", "waiting")

    def __init__(self) -> None:
        #: Its deferred events.
        self.waiting: list[Item] = []
        #: Its events in the window.
        self.in_window = 0
        #: Those in the window were sent again, so that they precede all deferred ones.
        self.resent = False
        #: One of those that were last in the window was rejected temporarily, or got its final answer.
        self.rejected = False
        self.progress = False
        #: Attempts in a row without progress.
        self.failures = 0


Batch = list[Item]
_Key = tuple[str, str, str]


class PublishCore:
    """The state of a publisher, which its driver guards by a lock."""

    def __init__(self, options: PublisherOptions, jitter: Callable[[int], float] | None = None) -> None:
        self.options = options
        self.stats = PublisherStats()
        retry = RetryOptions(options.min_retry_wait, options.max_retry_wait)
        self._wait = jitter or (lambda failures: backoff(retry, failures))
        self.bytes = 0
        self._orders = 0
        self._pending: deque[Item] = deque()
        self._pending_bytes = 0
        self._linger_until = 0.0
        # Events up to this order do not linger.
        self._flushed = 0
        self._window: deque[Batch] = deque()
        self._sent = 0
        self._front_id = 1
        # Requests with smaller ids are sent one at a time, to find the one that breaks the stream.
        self._singly_below = 0
        self._devices: dict[_Key, _Device] = {}
        self._due: list[tuple[float, int, _Key]] = []
        self._failures = 0
        self._refreshed = False
        self._progress_at = 0.0
        self._answer_due: Optional[float] = None

    # Input.

    def has_capacity(self, weight: int) -> bool:
        """Whether memory is left for an event."""
        return self.bytes == 0 or self.bytes + weight <= self.options.max_bytes_in_flight

    def add(self, item: Item, now: float) -> bool:
        """Takes an event. Returns whether that changes the time of the next request."""
        if self.is_done:
            self._progress_at = now
        self._orders += 1
        item.order = self._orders
        is_first = not self._pending
        if is_first:
            self._linger_until = now + self.options.linger
        self._pending.append(item)
        self._pending_bytes += item.framed
        self.bytes += item.weight
        self.stats.pending += 1
        return is_first or self.is_full()

    def flush(self) -> int:
        """Ends the linger of what is pending. Returns the order of the last event."""
        self._flushed = self._orders
        return self._orders

    @property
    def lingers(self) -> bool:
        """Whether a flush would have an effect."""
        return bool(self._pending) and self._pending[-1].order > self._flushed

    @property
    def is_done(self) -> bool:
        """Whether every event has its final answer."""
        return self.stats.pending == 0

    def unanswered(self) -> list[Item]:
        """Returns all events without a final answer, in the order of sending."""
        items = [item for batch in self._window for item in batch]
        items += self._pending
        for device in self._devices.values():
            items += device.waiting
        return sorted(items, key=lambda item: item.order)

    def oldest(self) -> Optional[int]:
        """Returns the order of the oldest event without a final answer."""
        orders = [batch_item.order for batch in self._window for batch_item in batch]
        if self._pending:
            orders.append(self._pending[0].order)
        for device in self._devices.values():
            orders += (item.order for item in device.waiting)
        return min(orders, default=None)

    # Output.

    def is_full(self) -> bool:
        """Whether the pending events fill a request."""
        limit = self.options.max_batch_bytes - _REQUEST_ID_BYTES
        return len(self._pending) >= self.options.max_batch_events or self._pending_bytes >= limit

    def _is_ready(self, now: float) -> bool:
        if not self._pending:
            return False
        return self.is_full() or now >= self._linger_until or self._pending[0].order <= self._flushed

    def _take_pending(self, now: float) -> None:
        """Moves the pending events of one request, or of a few, to the window."""
        batch: Batch = []
        size = _REQUEST_ID_BYTES
        while self._pending and len(batch) < self.options.max_batch_events:
            size += self._pending[0].framed
            if batch and size > self.options.max_batch_bytes:
                break
            item = self._pending.popleft()
            self._pending_bytes -= item.framed
            device = self._devices.get(item.device) if self._devices else None
            if device is not None:
                device.waiting.append(item)
                size -= item.framed
            else:
                batch.append(item)
        self._linger_until = now + self.options.linger
        groups: dict[str, Batch] = {}
        for item in batch:
            groups.setdefault(item.organization, []).append(item)
        if len(groups) <= _SEPARATE_ORGANIZATIONS:
            self._window.extend(groups.values())
        else:
            self._window.append(batch)

    def next_request(self, now: float) -> Optional[bytes]:
        """Returns the next request to send on the current stream, if there is one."""
        while len(self._window) < self.options.max_requests_in_flight:
            if self._due and self._due[0][0] <= now:
                batch = self._take_due(now)
                if batch:
                    self._window.append(batch)
                continue
            if not self._is_ready(now):
                break
            self._take_pending(now)
        if self._sent >= min(len(self._window), self.options.max_requests_in_flight):
            return None
        if self._front_id < self._singly_below and self._sent > 0:
            return None
        request_id = self._front_id + self._sent
        batch = self._window[self._sent]
        if self._sent == 0:
            self._answer_due = now + self.options.answer_timeout
        self._sent += 1
        return encode_request(str(request_id), batch)

    def next_wakeup(self) -> Optional[float]:
        """Returns the time of the next change that needs no answer and no event."""
        times = []
        if len(self._window) < self.options.max_requests_in_flight:
            if self._due:
                times.append(self._due[0][0])
            if self._pending:
                times.append(self._linger_until)
        if self._sent and self._answer_due is not None:
            times.append(self._answer_due)
        return min(times, default=None)

    def is_overdue(self, now: float) -> bool:
        """Whether the server has not answered for too long."""
        return self._sent > 0 and self._answer_due is not None and now >= self._answer_due

    # Answers.

    def answered(self, answer: v1.PublishStreamResponse, now: float) -> Results:
        """Takes an answer.

        Raises:
            Broken: The stream cannot continue.
        """
        if self._sent == 0 or answer.request_id != str(self._front_id):
            raise Broken(SiemError(grpc.StatusCode.INTERNAL, "the server sent an answer to another request"))
        self._answer_due = now + self.options.answer_timeout
        self._refreshed = False
        outcome = answer.WhichOneof("outcome")
        if outcome == "result":
            self._failures = 0
            results = self._settle(answer.result, now)
            if not results and self._left(now) <= 0:
                message = "the server rejected events temporarily until the publisher gave up"
                raise Broken(SiemError(grpc.StatusCode.RESOURCE_EXHAUSTED, message, retry_delay=0.0))
            return results
        if outcome != "error":
            raise Broken(SiemError(grpc.StatusCode.INTERNAL, "the server sent an answer without an outcome"))
        error = from_status(answer.error)
        batch = self._window[0]
        if not self._is_refusal(error, answered=True):
            raise Broken(error)
        if len(batch) > 1:
            # The next stream carries both halves, so that the others are not refused with the event at fault.
            self._split()
            raise Broken(SiemError(grpc.StatusCode.UNAVAILABLE, f"a request was refused as a whole: {error}"))
        self._failures = 0
        return self._refuse(error, now)

    def broke(self, error: SiemError, now: float, token_can_change: bool) -> tuple[Results, Optional[float]]:
        """Takes the end of a stream. Returns events that are refused for good, and the wait until the next stream;
        `None` if that follows at once with a new bearer token.

        Raises:
            SiemError: The publisher must end.
        """
        in_flight, self._sent, self._answer_due = self._sent, 0, None
        results: Results = []
        if error.code == grpc.StatusCode.UNAUTHENTICATED and token_can_change and not self._refreshed:
            self._refreshed = True
            self._reclaim(now)
            return results, None
        if error.code in _STOP:
            raise error
        if self._is_refusal(error, answered=False) and in_flight:
            if in_flight > 1:
                self._singly_below = self._front_id + in_flight
            elif len(self._window[0]) > 1:
                self._split()
            else:
                results = self._refuse(error, now)
        if self.is_done:
            self._reclaim(now)
            return results, 0.0
        self.stats.reconnects += 1
        left = self._left(now)
        if left <= 0:
            stalled = now - self._progress_at
            failure = SiemError(
                error.code, f"gave up after {stalled:.0f} s without progress: {error}", reason_name=error.reason_name
            )
            failure.__cause__ = error
            raise failure
        wait = self._wait(self._failures)
        if error.retry_delay is not None:
            wait = max(wait, asked_wait(error.retry_delay))
        elif wait > left:
            wait = left
        self._failures += 1
        self._reclaim(now)
        return results, wait

    def _left(self, now: float) -> float:
        limit = self.options.give_up_after
        return float("inf") if limit is None else limit - (now - self._progress_at)

    def _is_refusal(self, error: SiemError, answered: bool) -> bool:
        """Whether the request is at fault and would fail again."""
        if error.retry_delay is not None:
            return False
        if error.code in _AT_FAULT or error.code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            return True
        return answered and (error.code in _STOP or error.code == grpc.StatusCode.ALREADY_EXISTS)

    def _split(self) -> None:
        batch = self._window.popleft()
        half = len(batch) // 2
        self._window.appendleft(batch[half:])
        self._window.appendleft(batch[:half])
        self._singly_below = self._front_id + 2

    def _refuse(self, error: SiemError, now: float) -> Results:
        """Settles the oldest request, of one event, with an error."""
        violation = error.violations[0] if error.violations else None
        rejection = v1.Rejection(
            index=0,
            reason=error.reason,
            field=violation.field if violation else "",
            message=violation.description if violation else str(error),
        )
        # The reason is final here, whatever it is for single events.
        return self._settle(v1.PublishResponse(rejections=[rejection]), now, final=True)

    def _settle(self, response: v1.PublishResponse, now: float, final: bool = False) -> Results:
        """Settles the oldest request. Events that were rejected temporarily are deferred."""
        batch = self._window.popleft()
        self._front_id += 1
        self._sent = max(self._sent - 1, 0)
        rejections = {rejection.index: rejection for rejection in response.rejections}
        temporary = set()
        if not final:
            temporary = {index for index, each in rejections.items() if each.reason in _TEMPORARY}
        valid = len(batch) - sum(index < len(batch) for index in rejections)
        kept = PublishResult(Outcome.ACCEPTED)
        if response.unconfigured or response.filtered:
            outcome = Outcome.UNDETERMINED
            if response.unconfigured >= valid:
                outcome = Outcome.UNCONFIGURED
            elif response.filtered >= valid:
                outcome = Outcome.FILTERED
            kept = PublishResult(outcome)
        results: Results = []
        if not self._devices and not temporary and not rejections:
            results = [(item, kept) for item in batch]
        else:
            self._settle_each(batch, rejections, temporary, kept, now, results)
        for item, result in results:
            self.bytes -= item.weight
            self._count(result)
        self.stats.pending -= len(results)
        self.stats.deferred += len(temporary)
        if results:
            self._progress_at = now
        return results

    def _count(self, result: PublishResult) -> None:
        if result.outcome is Outcome.ACCEPTED:
            self.stats.accepted += 1
        elif result.outcome is Outcome.UNCONFIGURED:
            self.stats.unconfigured += 1
        elif result.outcome is Outcome.REJECTED:
            self.stats.rejected += 1
        elif result.outcome is Outcome.FILTERED:
            self.stats.filtered += 1
        else:
            self.stats.undetermined += 1

    def _settle_each(
        self,
        batch: Batch,
        rejections: dict[int, v1.Rejection],
        temporary: set[int],
        kept: PublishResult,
        now: float,
        results: Results,
    ) -> None:
        for item in batch:
            known = self._devices.get(item.device)
            if known is not None:
                known.in_window -= 1
        touched: set[_Key] = set()
        opened: set[_Key] = set()
        rejected_again = False
        for index, item in enumerate(batch):
            touched.add(item.device)
            if index in temporary:
                device = self._devices.get(item.device)
                if device is None:
                    device = self._devices[item.device] = _Device()
                    opened.add(item.device)
                # The second half of a request that was split must not precede it.
                rejected_again = rejected_again or device.resent
                device.resent = False
                device.rejected = True
                device.waiting.append(item)
                continue
            rejection = rejections.get(index)
            if rejection is None:
                results.append((item, kept))
            else:
                rejection.index = 0
                results.append((item, PublishResult(Outcome.REJECTED, rejection)))
            device = self._devices.get(item.device)
            if device is not None:
                device.progress = True
        if opened:
            for waiting in self._window:
                for item in waiting:
                    if item.device in opened:
                        self._devices[item.device].in_window += 1
        if opened or rejected_again:
            touched |= self._withdraw()
        self._schedule(touched, now)

    # Deferred events.

    def _reclaim(self, now: float) -> None:
        """Defers events that must be sent again although earlier ones of their device are deferred."""
        if self._devices:
            self._schedule(self._withdraw(), now)

    def _withdraw(self) -> set[_Key]:
        """Moves events that must not be sent now out of the window. Returns their devices."""
        touched: set[_Key] = set()
        requests = list(self._window)
        unsent: list[Batch] = []
        for batch in requests[self._sent :]:
            staying: Batch = []
            for item in batch:
                device = self._devices.get(item.device)
                if device is None or device.resent:
                    staying.append(item)
                    continue
                device.in_window -= 1
                device.waiting.append(item)
                touched.add(item.device)
            if staying:
                unsent.append(staying)
        self._window = deque(requests[: self._sent] + unsent)
        return touched

    def _schedule(self, touched: Iterable[_Key], now: float) -> None:
        """Decides when devices without events in the window may send again."""
        for key in touched:
            device = self._devices.get(key)
            if device is None or device.in_window > 0:
                continue
            if not device.waiting:
                del self._devices[key]
                continue
            if device.progress or not device.rejected:
                device.failures = 0
            at = now
            if device.rejected:
                at += self._wait(device.failures)
                device.failures += 1
            device.resent = device.rejected = device.progress = False
            device.waiting.sort(key=lambda item: item.order)
            heapq.heappush(self._due, (at, device.waiting[0].order, key))

    def _take_due(self, now: float) -> Batch:
        """Returns the events of one request, in order for each device."""
        batch: Batch = []
        size = _REQUEST_ID_BYTES
        while self._due and self._due[0][0] <= now:
            key = self._due[0][2]
            device = self._devices[key]
            # Events that came since then are newer than all of these.
            device.waiting.sort(key=lambda item: item.order)
            taken = 0
            for item in device.waiting:
                fits = len(batch) < self.options.max_batch_events and size + item.framed <= self.options.max_batch_bytes
                if batch and (not fits or item.organization != batch[0].organization):
                    break
                batch.append(item)
                size += item.framed
                taken += 1
            if not taken:
                break
            del device.waiting[:taken]
            device.in_window += taken
            device.resent = True
            heapq.heappop(self._due)
        return batch
