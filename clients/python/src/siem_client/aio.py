"""The client for asyncio: `async with siem_client.aio.connect(…) as client`.

It has the names and behaviours of the client for threads. A client belongs to the event loop of its first call, and
raises `WrongLoopError` in any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Optional, TypeVar, Union

import grpc
import grpc.aio

from siem_client import v1
from siem_client._client import (
    DEFAULT_SILENCE_LIMIT,
    DEFAULT_TIMEOUT,
    LOG,
    Metadata,
    Stubs,
    check_timeout,
    resend_configure,
)
from siem_client._connection import DEFAULT_ADDRESS, Endpoint, Tls, endpoint
from siem_client._errors import ClosedError, ForkedError, SiemError, UnacknowledgedError, WrongLoopError, from_rpc
from siem_client._publish_core import Broken, Item, PublishCore, PublisherOptions, PublisherStats, PublishResult
from siem_client._publisher import DEFAULT_CLOSE_TIMEOUT, resolve, stream_of
from siem_client._retry import Attempts, RetryOptions
from siem_client._tokens import AsyncTokenFunction, AsyncTokens, Token, TokenFile
from siem_client._watch import StatusEvent, WatchState

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AsyncClient", "AsyncPublisher", "AsyncStatusWatch", "connect"]

Response = TypeVar("Response")
_TOKEN_SECONDS = 30.0
_EOF: Any = getattr(grpc.aio, "EOF")  # noqa: B009 (absent in the types)
_END_SECONDS = 1.0


class AsyncClient:
    """A client of one server, or of several behind one address, for one event loop. `connect` makes it.

    The connection is opened at the first use and again after each loss. Each call has one deadline over all its
    attempts (`timeout`, in seconds), and raises `SiemError`.
    """

    def __init__(
        self, address: Endpoint, tokens: Optional[AsyncTokens], timeout: float, retry: RetryOptions, gzip: bool
    ) -> None:
        self._address = address
        self._tokens = tokens
        self._timeout = timeout
        self._retry = retry
        self._gzip = gzip
        self._stubs: Optional[Stubs] = None
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._pid = 0
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends all calls and the connection. Close publishers before: their events would be unacknowledged."""
        self._closed = True
        if self._stubs is not None and self._pid == os.getpid() and self._loop is asyncio.get_running_loop():
            await self._stubs.channel.close()

    async def configure(self, request: v1.ConfigureRequest, *, timeout: Optional[float] = None) -> v1.ConfigureResponse:
        """Creates or replaces the integration of an organization. With an etag it is not sent again after a lost
        answer.

        Args:
            request: The integration.
            timeout: Deadline in seconds.
        """
        response: v1.ConfigureResponse = await self._call(
            lambda s: s.integrations.Configure, request, timeout, resend_configure(request)
        )
        return response

    async def generate_external_id(
        self, request: v1.GenerateExternalIdRequest, *, timeout: Optional[float] = None
    ) -> v1.GenerateExternalIdResponse:
        """Issues a new external ID to an organization. It is not sent again after a lost answer.

        Args:
            request: The organization.
            timeout: Deadline in seconds.
        """
        response: v1.GenerateExternalIdResponse = await self._call(
            lambda s: s.integrations.GenerateExternalId, request, timeout, False
        )
        return response

    async def get(self, request: v1.GetRequest, *, timeout: Optional[float] = None) -> v1.GetResponse:
        """Returns an integration with its status and counts.

        Args:
            request: The organization.
            timeout: Deadline in seconds.
        """
        response: v1.GetResponse = await self._call(lambda s: s.integrations.Get, request, timeout, True)
        return response

    async def list(self, request: v1.ListRequest, *, timeout: Optional[float] = None) -> v1.ListResponse:
        """Returns one page of the integrations of all organizations.

        Args:
            request: Size and token of the page, and the statuses to return.
            timeout: Deadline in seconds.
        """
        response: v1.ListResponse = await self._call(lambda s: s.integrations.List, request, timeout, True)
        return response

    async def delete(self, request: v1.DeleteRequest, *, timeout: Optional[float] = None) -> v1.DeleteResponse:
        """Removes an integration and its pending events. Without `allow_missing` it is not sent again after a lost
        answer.

        Args:
            request: The organization.
            timeout: Deadline in seconds.
        """
        response: v1.DeleteResponse = await self._call(
            lambda s: s.integrations.Delete, request, timeout, request.allow_missing
        )
        return response

    async def send_test(self, request: v1.SendTestRequest, *, timeout: Optional[float] = None) -> v1.SendTestResponse:
        """Writes a test event, and returns the verdict. It is not sent again after a lost answer.

        Args:
            request: The organization.
            timeout: Deadline in seconds.
        """
        response: v1.SendTestResponse = await self._call(lambda s: s.integrations.SendTest, request, timeout, False)
        return response

    async def get_onboarding(
        self, request: v1.GetOnboardingRequest, *, timeout: Optional[float] = None
    ) -> v1.GetOnboardingResponse:
        """Returns the documents that a customer applies in its AWS account.

        Args:
            request: Stream, role, external ID and principal.
            timeout: Deadline in seconds.
        """
        response: v1.GetOnboardingResponse = await self._call(
            lambda s: s.integrations.GetOnboarding, request, timeout, True
        )
        return response

    async def list_audit_entries(
        self, request: v1.ListAuditEntriesRequest, *, timeout: Optional[float] = None
    ) -> v1.ListAuditEntriesResponse:
        """Returns one page of the audit log, newest first.

        Args:
            request: Organization, period, and size and token of the page.
            timeout: Deadline in seconds.
        """
        response: v1.ListAuditEntriesResponse = await self._call(
            lambda s: s.integrations.ListAuditEntries, request, timeout, True
        )
        return response

    async def publish(self, request: v1.PublishRequest, *, timeout: Optional[float] = None) -> v1.PublishResponse:
        """Publishes at most 1,000 events and 4 MiB in one call, which is sent again after failures. Temporary
        rejections are returned like others; a `publisher` sends those events again.

        Args:
            request: The events.
            timeout: Deadline in seconds.
        """
        response: v1.PublishResponse = await self._call(lambda s: s.events.Publish, request, timeout, True)
        return response

    def publisher(self, options: Optional[PublisherOptions] = None) -> AsyncPublisher:
        """Returns a publisher for many events. Close it, or use it in an `async with` statement.

        Args:
            options: Limits and waits.
        """
        return AsyncPublisher(self, options or PublisherOptions())

    def watch_status(
        self,
        organization_ids: Iterable[str] = (),
        *,
        resume_token: str = "",
        silence_limit: float = DEFAULT_SILENCE_LIMIT,
    ) -> AsyncStatusWatch:
        """Returns an endless asynchronous iterator: a `StatusSnapshot`, then each change.

        Args:
            organization_ids: At most 1,000 organizations; none means all.
            resume_token: `resume_token` of an earlier watch, to continue after its last event.
            silence_limit: Seconds without a message after which the stream is opened again. It must exceed the
                server's setting `heartbeat-seconds`.
        """
        return AsyncStatusWatch(self, list(organization_ids), resume_token, silence_limit)

    def _open(self) -> Stubs:
        """Returns the stubs over the channel of this process and event loop."""
        if self._closed:
            raise ClosedError("the client is closed")
        loop = asyncio.get_running_loop()
        if self._stubs is None:
            compression = grpc.Compression.Gzip if self._gzip else None
            target, options = self._address.target, self._address.options
            if self._address.credentials is None:
                channel = grpc.aio.insecure_channel(target, options=options, compression=compression)
            else:
                channel = grpc.aio.secure_channel(
                    target, self._address.credentials, options=options, compression=compression
                )
            self._stubs, self._loop, self._pid = Stubs(channel), loop, os.getpid()
        if self._pid != os.getpid():
            raise ForkedError(
                f"this client was used by process {self._pid} before process {os.getpid()} was forked from it; call"
                " connect in each process, for example in gunicorn's post_fork"
            )
        if self._loop is not loop:
            raise WrongLoopError(
                "this client was used in another event loop before; call connect inside each asyncio.run"
            )
        return self._stubs

    async def _authorize(self, timeout: float) -> tuple[Metadata, str]:
        """Returns the metadata of a call, and the token in it."""
        if self._tokens is None:
            return (), ""
        token = await self._tokens.get(timeout)
        return (("authorization", f"Bearer {token}"),), token

    def _token_refused(self, token: str) -> None:
        if self._tokens is not None:
            self._tokens.refused(token)

    @property
    def _token_can_change(self) -> bool:
        return self._tokens is not None and self._tokens.can_change

    async def _call(
        self, rpc: Callable[[Stubs], Any], request: object, timeout: Optional[float], resend: bool
    ) -> Any:
        """Makes a call, with as many attempts as its deadline and its kind allow."""
        attempts = Attempts(self._retry, time.monotonic(), check_timeout(timeout, self._timeout), resend)
        while True:
            stubs = self._open()
            token = ""
            try:
                metadata, token = await self._authorize(attempts.left(time.monotonic()))
                return await rpc(stubs)(request, timeout=attempts.left(time.monotonic()), metadata=metadata)
            except grpc.RpcError as failure:
                error = from_rpc(failure)
            except SiemError as failure:
                error = failure
            except asyncio.CancelledError:
                # grpc.aio raises it for a closed channel too.
                if self._closed:
                    raise ClosedError("the client is closed") from None
                raise
            except grpc.aio.UsageError:
                if self._closed:
                    raise ClosedError("the client is closed") from None
                raise
            if self._closed:
                raise ClosedError("the client is closed") from error
            wait = attempts.failed(error, time.monotonic(), self._token_can_change)
            if wait is None:
                self._token_refused(token)
                continue
            LOG.info("attempt %d failed, next in %.2f s: %s", error.attempts, wait, error)
            await asyncio.sleep(wait)


class AsyncStatusWatch:
    """An endless asynchronous iterator of status events. A broken stream is opened again and continues after its last
    message. Cancelling `__anext__` loses no event."""

    def __init__(
        self, client: AsyncClient, organization_ids: list[str], resume_token: str, silence_limit: float
    ) -> None:
        self._client = client
        self._state = WatchState(organization_ids, resume_token, client._retry)
        self._silence_limit = silence_limit
        self._call: Any = None
        self._read: Optional[asyncio.Future[Any]] = None
        self._bearer = ""
        self._retry_at = 0.0
        self._silent_at = 0.0
        self._closed = False

    @property
    def resume_token(self) -> str:
        """Token that continues after the last returned event; empty before the first one."""
        return self._state.resume_token

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the stream."""
        self._closed = True
        self._drop()

    async def __anext__(self) -> StatusEvent:
        """Waits for the next event.

        Raises:
            SiemError: The server refuses the stream, for example with PERMISSION_DENIED.
        """
        while True:
            if self._closed or self._client._closed:
                self._drop()
                raise StopAsyncIteration
            pause = self._retry_at - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            try:
                event = self._state.received(await self._receive())
            except SiemError as error:
                self._drop()
                if self._closed or self._client._closed:
                    raise StopAsyncIteration from None
                wait = self._state.failed(error, self._client._token_can_change)
                if wait is None:
                    self._client._token_refused(self._bearer)
                    wait = 0.0
                LOG.info("the status stream broke, next in %.2f s: %s", wait, error)
                self._retry_at = time.monotonic() + wait
                continue
            if event is not None:
                return event

    async def _receive(self) -> v1.StreamStatusResponse:
        """Returns the next message of the current or a new stream."""
        if self._call is None:
            metadata, self._bearer = await self._client._authorize(self._silence_limit)
            stubs: Any = self._client._open()
            self._call = stubs.integrations.StreamStatus(self._state.request(), metadata=metadata)
        read = self._read
        if read is None:
            # A task of its own: cancelling a read of grpc.aio cancels the stream.
            read = self._read = asyncio.ensure_future(self._call.read())
            self._silent_at = time.monotonic() + self._silence_limit
        await asyncio.wait({read}, timeout=max(self._silent_at - time.monotonic(), 0))
        if not read.done():
            raise self._state.silent()
        self._read = None
        try:
            message = read.result()
        except grpc.RpcError as failure:
            raise from_rpc(failure) from None
        except asyncio.CancelledError:
            raise self._state.ended() from None
        if message is _EOF:
            code = await self._call.code()
            if code == grpc.StatusCode.OK:
                raise self._state.ended()
            raise from_rpc(
                grpc.aio.AioRpcError(
                    code,
                    await self._call.initial_metadata(),
                    await self._call.trailing_metadata(),
                    await self._call.details(),
                )
            )
        result: v1.StreamStatusResponse = message
        return result

    def _drop(self) -> None:
        if self._call is not None:
            self._call.cancel()
        if self._read is not None:
            self._read.add_done_callback(_ignore)
            self._read.cancel()
        self._call = self._read = None


def _ignore(read: asyncio.Future[Any]) -> None:
    """Takes the outcome of a read of which nobody waits any more, so that asyncio does not report it."""
    if not read.cancelled():
        read.exception()


class AsyncPublisher:
    """Publishes events over PublishStream, and opens the stream again whenever it breaks. `AsyncClient.publisher`
    makes it.

    Unanswered events are kept and sent again, unchanged and so under the same CloudEvents ids: none is lost, and
    consumers drop those that were accepted twice. Events of a device keep their order. A temporary rejection
    (OVERLOADED, RATE_LIMITED) defers the event and later ones of its device; other devices go on.

    An `async with` statement closes it, and so waits for all answers.
    """

    def __init__(self, client: AsyncClient, options: PublisherOptions) -> None:
        self._client = client
        self._core = PublishCore(options)
        self._task: Optional[asyncio.Task[None]] = None
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._call: Any = None
        self._closing = False
        self._failure: Optional[Exception] = None
        self._stream_number = 0
        # Futures of those that wait for a change.
        self._waiters: set[asyncio.Future[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        await self.close()

    @property
    def stats(self) -> PublisherStats:
        """Returns the counts so far."""
        return PublisherStats(**self._core.stats.__dict__)

    async def send(self, event: v1.Event) -> asyncio.Future[PublishResult]:
        """Queues an event. Waits while too many are unanswered; cancelling it then queues nothing.

        Args:
            event: The event. Later changes of the object have no effect.

        Returns:
            A future with the final answer to the event. It may be dropped.

        Raises:
            ClosedError: The publisher is closed or has ended; `__cause__` has the reason.
        """
        self._client._open()
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[PublishResult] = self._loop.create_future()
        item = Item(event, future)
        while not self._core.has_capacity(item.weight):
            self._check_open()
            # Events that linger would be waited for in vain.
            self._core.flush()
            self._notify()
            await self._change(None)
        self._check_open()
        is_due = self._core.add(item, time.monotonic())
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        elif is_due:
            self._notify()
        if self._core.is_full():
            # A loop of sends without any other await would never let the requests go.
            await asyncio.sleep(0)
        return future

    async def flush(self, timeout: Optional[float] = None) -> None:
        """Waits until every event that was sent before has its final answer.

        Args:
            timeout: Longest wait in seconds; `None` for no limit.

        Raises:
            UnacknowledgedError: Some have none; the publisher continues, unless it has ended.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        last = self._core.flush()
        self._notify()
        while True:
            oldest = self._core.oldest()
            if oldest is None or oldest > last:
                return
            if self._failure is not None:
                raise self._unacknowledged(str(self._failure))
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise self._unacknowledged(f"not flushed within {timeout} s")
            await self._change(left)

    async def close(self, timeout: float = DEFAULT_CLOSE_TIMEOUT) -> None:
        """Flushes and ends the publisher.

        Args:
            timeout: Longest wait in seconds.

        Raises:
            UnacknowledgedError: Some events have no final answer. Their futures have the same error.
        """
        if self._closing:
            return
        deadline = time.monotonic() + timeout
        self._closing = True
        self._core.flush()
        self._notify()
        while self._task is not None and not self._core.is_done and self._failure is None:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            await self._change(left)
        error: Optional[UnacknowledgedError] = None
        if not self._core.is_done:
            error = self._unacknowledged(str(self._failure) if self._failure else f"not closed within {timeout} s")
            if self._failure is None:
                self._failure = error
            self._fail(self._core.unanswered(), error)
        self._notify()
        if self._task is not None:
            if error is None:
                await asyncio.wait({self._task}, timeout=_END_SECONDS)
            if not self._task.done():
                self._task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._task
        if error is not None:
            raise error

    def _check_open(self) -> None:
        if self._failure is not None:
            raise ClosedError(f"the publisher has ended: {self._failure}") from self._failure
        if self._closing:
            raise ClosedError("the publisher is closed")

    def _unacknowledged(self, problem: str) -> UnacknowledgedError:
        error = UnacknowledgedError(problem, [item.event() for item in self._core.unanswered()])
        error.__cause__ = self._failure
        return error

    def _fail(self, items: list[Item], error: Exception) -> None:
        for item in items:
            if not item.future.done():
                item.future.set_exception(error)
                # Taken, so that asyncio does not report a future that the caller has dropped.
                item.future.exception()  # type: ignore[attr-defined]

    def _notify(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _change(self, timeout: Optional[float]) -> None:
        """Waits for the next `_notify`."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait({waiter}, timeout=timeout)
        finally:
            self._waiters.discard(waiter)

    @property
    def _is_over(self) -> bool:
        return self._failure is not None or (self._closing and self._core.is_done)

    async def _run(self) -> None:
        """Runs streams until the publisher is closed or fails; the body of its task."""
        try:
            while True:
                # No stream is opened before there is something to send.
                while self._core.is_done and not self._is_over:
                    await self._change(None)
                if self._is_over:
                    return
                await self._stream()
        except Exception as error:  # noqa: BLE001 (a defect here must reach the callers, who would wait for ever)
            if self._failure is None:
                self._failure = error
            self._fail(self._core.unanswered(), error)
            self._notify()

    async def _stream(self) -> None:
        """Runs one stream, and waits before the next one."""
        token = ""
        try:
            metadata, token = await self._client._authorize(_TOKEN_SECONDS)
            stub = stream_of(self._client._open().channel)
            self._stream_number += 1
            call = self._call = stub(self._requests(self._stream_number), metadata=metadata)
            try:
                error = await self._read(call)
            finally:
                self._stream_number += 1
                self._call = None
                self._notify()
                call.cancel()
        except SiemError as failure:
            error = failure
        if self._is_over:
            return
        idle = self._core.is_done
        results, wait = self._core.broke(error, time.monotonic(), self._client._token_can_change)
        resolve(results)
        self._notify()
        if wait is None:
            self._client._token_refused(token)
            return
        if not idle:
            LOG.warning("the publish stream broke, next in %.2f s: %s", wait, error)
        until = time.monotonic() + wait
        while not self._is_over and time.monotonic() < until:
            await self._change(until - time.monotonic())

    async def _read(self, call: Any) -> SiemError:
        """Reads answers until the stream ends, for whatever reason. Returns that."""
        try:
            async for answer in call:
                resolve(self._core.answered(answer, time.monotonic()))
                self._notify()
        except grpc.RpcError as failure:
            error = from_rpc(failure)
            if self._core.is_overdue(time.monotonic()):
                error = SiemError(grpc.StatusCode.DEADLINE_EXCEEDED, "the server does not answer")
            return error
        except Broken as broken:
            return broken.error
        except asyncio.CancelledError:
            # The call was cancelled, not this task.
            if call.cancelled() and self._core.is_overdue(time.monotonic()):
                return SiemError(grpc.StatusCode.DEADLINE_EXCEEDED, "the server does not answer")
            raise
        return SiemError(grpc.StatusCode.UNAVAILABLE, "the server ended the stream")

    async def _requests(self, number: int) -> AsyncIterator[bytes]:
        """Returns the requests of one stream."""
        while self._stream_number == number and not self._is_over:
            now = time.monotonic()
            if self._core.is_overdue(now):
                if self._call is not None:
                    self._call.cancel()
                return
            request = self._core.next_request(now)
            if request is not None:
                yield request
                continue
            wakeup = self._core.next_wakeup()
            await self._change(None if wakeup is None else max(wakeup - now, 0.001))


def connect(
    address: str = DEFAULT_ADDRESS,
    *,
    tls: Optional[Tls] = None,
    token: Union[None, str, Token, TokenFile, AsyncTokenFunction] = None,
    timeout: float = DEFAULT_TIMEOUT,
    retry: Optional[RetryOptions] = None,
    gzip: bool = False,
) -> AsyncClient:
    """Returns a client for asyncio, which connects at its first use.

    Args:
        address: `http://HOST:PORT`, `https://HOST:PORT`, or `HOST:PORT` (TLS if `tls` is given, else plaintext).
        tls: Authorities to trust and the client's certificate. `https` without it trusts gRPC's own list.
        token: Bearer token, or a `TokenFile`, function or coroutine function that gives it. It is called once for
            all calls, ahead of the expiry and after the server has refused a token.
        timeout: Deadline of a call over all attempts, in seconds, where the call has none of its own.
        retry: Waits between attempts.
        gzip: Compresses requests.

    Raises:
        ConfigurationError: An argument cannot be used, or a token would be sent in clear to another machine.
    """
    checked = endpoint(address, tls, token is not None)
    tokens = None if token is None else AsyncTokens(token)
    return AsyncClient(checked, tokens, check_timeout(timeout, DEFAULT_TIMEOUT), retry or RetryOptions(), gzip)
