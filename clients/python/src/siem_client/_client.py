"""The client for threads."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Optional, TypeVar, Union

import grpc

from siem_client import v1
from siem_client._connection import DEFAULT_ADDRESS, Endpoint, Tls, endpoint
from siem_client._errors import ClosedError, ConfigurationError, ForkedError, SiemError, from_rpc
from siem_client._publish_core import PublisherOptions
from siem_client._publisher import Publisher
from siem_client._retry import Attempts, RetryOptions
from siem_client._tokens import Token, TokenFile, TokenFunction, Tokens
from siem_client._watch import StatusEvent, WatchState
from siem_client.v1.event_pb2_grpc import EventServiceStub
from siem_client.v1.integration_pb2_grpc import SiemIntegrationServiceStub

if TYPE_CHECKING:
    from typing_extensions import Self

LOG = logging.getLogger("siem_client")
LOG.addHandler(logging.NullHandler())
DEFAULT_TIMEOUT = 30.0
DEFAULT_SILENCE_LIMIT = 90.0

Request = TypeVar("Request")
Response = TypeVar("Response")
Metadata = tuple[tuple[str, Union[str, bytes]], ...]


class Stubs:
    """The generated stubs over one channel."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.integrations = SiemIntegrationServiceStub(channel)
        self.events = EventServiceStub(channel)


def resend_configure(request: v1.ConfigureRequest) -> bool:
    """Whether a Configure may be sent again after a lost answer. A second one with an etag would be refused although
    the first has succeeded."""
    return not request.etag


def check_timeout(timeout: Optional[float], default: float) -> float:
    """Returns the deadline of a call in seconds."""
    if timeout is None:
        return default
    if not timeout > 0:
        raise ConfigurationError(f"timeout: {timeout} is not a positive number of seconds")
    return timeout


class Client:
    """A client of one server, or of several behind one address. `connect` makes it.

    It may be used by several threads. The connection is opened at the first use and again after each loss. A client
    that has not been used may be inherited by forked processes; one that has been used raises `ForkedError` there.

    Each call has one deadline over all its attempts (`timeout`, in seconds), and raises `SiemError`.
    """

    def __init__(
        self, address: Endpoint, tokens: Optional[Tokens], timeout: float, retry: RetryOptions, gzip: bool
    ) -> None:
        self._address = address
        self._tokens = tokens
        self._timeout = timeout
        self._retry = retry
        self._gzip = gzip
        self._opening = threading.Lock()
        self._stubs: Optional[Stubs] = None
        self._pid = 0
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all calls and the connection. Close publishers before: their events would be unacknowledged."""
        self._closed.set()
        if self._stubs is not None and self._pid == os.getpid():
            self._stubs.channel.close()

    def configure(self, request: v1.ConfigureRequest, *, timeout: Optional[float] = None) -> v1.ConfigureResponse:
        """Creates or replaces the integration of an organization. With an etag it is not sent again after a lost
        answer.

        Args:
            request: The integration.
            timeout: Deadline in seconds.
        """
        return self._call(lambda s: s.integrations.Configure, request, timeout, resend_configure(request))

    def generate_external_id(
        self, request: v1.GenerateExternalIdRequest, *, timeout: Optional[float] = None
    ) -> v1.GenerateExternalIdResponse:
        """Issues a new external ID to an organization. It is not sent again after a lost answer.

        Args:
            request: The organization.
            timeout: Deadline in seconds.
        """
        return self._call(lambda s: s.integrations.GenerateExternalId, request, timeout, False)

    def get(self, request: v1.GetRequest, *, timeout: Optional[float] = None) -> v1.GetResponse:
        """Returns an integration with its status and counts.

        Args:
            request: The organization.
            timeout: Deadline in seconds.
        """
        return self._call(lambda s: s.integrations.Get, request, timeout, True)

    def list(self, request: v1.ListRequest, *, timeout: Optional[float] = None) -> v1.ListResponse:
        """Returns one page of the integrations of all organizations.

        Args:
            request: Size and token of the page, and the statuses to return.
            timeout: Deadline in seconds.
        """
        return self._call(lambda s: s.integrations.List, request, timeout, True)

    def delete(self, request: v1.DeleteRequest, *, timeout: Optional[float] = None) -> v1.DeleteResponse:
        """Removes an integration and its pending events. Without `allow_missing` it is not sent again after a lost
        answer.

        Args:
            request: The organization.
            timeout: Deadline in seconds.
        """
        return self._call(lambda s: s.integrations.Delete, request, timeout, request.allow_missing)

    def send_test(self, request: v1.SendTestRequest, *, timeout: Optional[float] = None) -> v1.SendTestResponse:
        """Writes a test event, and returns the verdict. It is not sent again after a lost answer.

        Args:
            request: The organization.
            timeout: Deadline in seconds.
        """
        return self._call(lambda s: s.integrations.SendTest, request, timeout, False)

    def get_onboarding(
        self, request: v1.GetOnboardingRequest, *, timeout: Optional[float] = None
    ) -> v1.GetOnboardingResponse:
        """Returns the documents that a customer applies in its AWS account.

        Args:
            request: Stream, role, external ID and principal.
            timeout: Deadline in seconds.
        """
        return self._call(lambda s: s.integrations.GetOnboarding, request, timeout, True)

    def list_audit_entries(
        self, request: v1.ListAuditEntriesRequest, *, timeout: Optional[float] = None
    ) -> v1.ListAuditEntriesResponse:
        """Returns one page of the audit log, newest first.

        Args:
            request: Organization, period, and size and token of the page.
            timeout: Deadline in seconds.
        """
        return self._call(lambda s: s.integrations.ListAuditEntries, request, timeout, True)

    def publish(self, request: v1.PublishRequest, *, timeout: Optional[float] = None) -> v1.PublishResponse:
        """Publishes at most 1,000 events and 4 MiB in one call, which is sent again after failures. Temporary
        rejections are returned like others; a `publisher` sends those events again.

        Args:
            request: The events.
            timeout: Deadline in seconds.
        """
        return self._call(lambda s: s.events.Publish, request, timeout, True)

    def publisher(self, options: Optional[PublisherOptions] = None) -> Publisher:
        """Returns a publisher for many events. Close it, or use it in a `with` statement.

        Args:
            options: Limits and waits.
        """
        return Publisher(self, options or PublisherOptions())

    def watch_status(
        self,
        organization_ids: Iterable[str] = (),
        *,
        resume_token: str = "",
        silence_limit: float = DEFAULT_SILENCE_LIMIT,
    ) -> StatusWatch:
        """Returns an endless iterator: a `StatusSnapshot`, then each change.

        Args:
            organization_ids: At most 1,000 organizations; none means all.
            resume_token: `resume_token` of an earlier watch, to continue after its last event.
            silence_limit: Seconds without a message after which the stream is opened again. It must exceed the
                server's setting `heartbeat-seconds`.
        """
        return StatusWatch(self, list(organization_ids), resume_token, silence_limit)

    def _open(self) -> Stubs:
        """Returns the stubs over the channel of this process."""
        if self._closed.is_set():
            raise ClosedError("the client is closed")
        # Before the lock, which another thread of the parent may have held at the fork.
        self._check_process()
        with self._opening:
            if self._stubs is None:
                compression = grpc.Compression.Gzip if self._gzip else None
                target, options = self._address.target, self._address.options
                if self._address.credentials is None:
                    channel = grpc.insecure_channel(target, options=options, compression=compression)
                else:
                    channel = grpc.secure_channel(target, self._address.credentials, options, compression)
                self._pid = os.getpid()
                self._stubs = Stubs(channel)
        return self._stubs

    def _check_process(self) -> None:
        if self._stubs is not None and self._pid != os.getpid():
            raise ForkedError(
                f"this client was used by process {self._pid} before process {os.getpid()} was forked from it; call"
                " connect in each process, for example in gunicorn's post_fork"
            )

    def _authorize(self, timeout: float) -> tuple[Metadata, str]:
        """Returns the metadata of a call, and the token in it."""
        if self._tokens is None:
            return (), ""
        token = self._tokens.get(timeout)
        return (("authorization", f"Bearer {token}"),), token

    def _token_refused(self, token: str) -> None:
        if self._tokens is not None:
            self._tokens.refused(token)

    @property
    def _token_can_change(self) -> bool:
        return self._tokens is not None and self._tokens.can_change

    def _call(
        self,
        rpc: Callable[[Stubs], grpc.UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        timeout: Optional[float],
        resend: bool,
    ) -> Response:
        """Makes a call, with as many attempts as its deadline and its kind allow."""
        attempts = Attempts(self._retry, time.monotonic(), check_timeout(timeout, self._timeout), resend)
        while True:
            stubs = self._open()
            token = ""
            try:
                metadata, token = self._authorize(attempts.left(time.monotonic()))
                return rpc(stubs)(request, timeout=attempts.left(time.monotonic()), metadata=metadata)
            except grpc.RpcError as failure:
                error = from_rpc(failure)
            except SiemError as failure:
                error = failure
            except ValueError:
                # grpcio refuses calls on a closed channel so.
                if self._closed.is_set():
                    raise ClosedError("the client is closed") from None
                raise
            if self._closed.is_set():
                raise ClosedError("the client is closed") from error
            wait = attempts.failed(error, time.monotonic(), self._token_can_change)
            if wait is None:
                self._token_refused(token)
                continue
            LOG.info("attempt %d failed, next in %.2f s: %s", error.attempts, wait, error)
            if self._closed.wait(wait):
                raise ClosedError("the client is closed") from error


class StatusWatch:
    """An endless iterator of status events. A broken stream is opened again and continues after its last message.

    Iterate it in one thread; `close` may be called by any, and ends the iteration.
    """

    def __init__(self, client: Client, organization_ids: list[str], resume_token: str, silence_limit: float) -> None:
        self._client = client
        self._state = WatchState(organization_ids, resume_token, client._retry)
        self._silence_limit = silence_limit
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._events = self._run()
        self._call: Any = None
        self._silent = False

    @property
    def resume_token(self) -> str:
        """Token that continues after the last returned event; empty before the first one."""
        return self._state.resume_token

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StatusEvent:
        """Waits for the next event.

        Raises:
            SiemError: The server refuses the stream, for example with PERMISSION_DENIED.
        """
        return next(self._events)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the stream."""
        with self._lock:
            self._stopped.set()
            if self._call is not None:
                self._call.cancel()

    def _run(self) -> Iterator[StatusEvent]:
        while not self._stopped.is_set():
            token = ""
            try:
                metadata, token = self._client._authorize(self._silence_limit)
                yield from self._stream(metadata)
                error = self._state.ended()
            except SiemError as failure:
                error = failure
            if self._stopped.is_set() or self._client._closed.is_set():
                return
            wait = self._state.failed(error, self._client._token_can_change)
            if wait is None:
                self._client._token_refused(token)
                wait = 0.0
            LOG.info("the status stream broke, next in %.2f s: %s", wait, error)
            if self._client._closed.is_set() or self._stopped.wait(wait):
                return

    def _stream(self, metadata: Metadata) -> Iterator[StatusEvent]:
        """Runs one stream until it breaks."""
        stubs = self._client._open()
        with self._lock:
            if self._stopped.is_set():
                return
            call: Any = stubs.integrations.StreamStatus(self._state.request(), metadata=metadata)
            self._call = call
        watchdog = _Watchdog(self._silence_limit, call.cancel)
        try:
            for message in call:
                watchdog.pause()
                event = self._state.received(message)
                if event is not None:
                    yield event
                watchdog.resume()
        except grpc.RpcError as failure:
            raise (self._state.silent() if watchdog.fired else from_rpc(failure)) from None
        finally:
            watchdog.end()
            call.cancel()


class _Watchdog:
    """Calls a function after a time without `resume`. The time in which the caller has the event does not count."""

    def __init__(self, limit: float, bark: Callable[[], object]) -> None:
        self._limit, self._bark = limit, bark
        self._changed = threading.Condition()
        self._due: Optional[float] = time.monotonic() + limit
        self._ended = False
        self.fired = False
        threading.Thread(target=self._run, name="siem-client-watchdog", daemon=True).start()

    def pause(self) -> None:
        # The thread finds out when it wakes up, so that a message costs no switch to it.
        self._due = None

    def resume(self) -> None:
        self._due = time.monotonic() + self._limit

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while not self._ended:
                due = self._due
                left = self._limit if due is None else due - time.monotonic()
                if left > 0:
                    # A pause may end at any time.
                    self._changed.wait(left)
                    continue
                self.fired = True
                self._bark()
                return


def connect(
    address: str = DEFAULT_ADDRESS,
    *,
    tls: Optional[Tls] = None,
    token: Union[None, str, Token, TokenFile, TokenFunction] = None,
    timeout: float = DEFAULT_TIMEOUT,
    retry: Optional[RetryOptions] = None,
    gzip: bool = False,
) -> Client:
    """Returns a client, which connects at its first use.

    Args:
        address: `http://HOST:PORT`, `https://HOST:PORT`, or `HOST:PORT` (TLS if `tls` is given, else plaintext).
        tls: Authorities to trust and the client's certificate. `https` without it trusts gRPC's own list.
        token: Bearer token, or a `TokenFile` or function that gives it. A function is called once for all calls,
            ahead of the expiry and after the server has refused a token.
        timeout: Deadline of a call over all attempts, in seconds, where the call has none of its own.
        retry: Waits between attempts.
        gzip: Compresses requests.

    Raises:
        ConfigurationError: An argument cannot be used, or a token would be sent in clear to another machine.
    """
    checked = endpoint(address, tls, token is not None)
    tokens = None if token is None else Tokens(token)
    return Client(checked, tokens, check_timeout(timeout, DEFAULT_TIMEOUT), retry or RetryOptions(), gzip)
