"""Bearer tokens: kept while they are valid, fetched ahead of their expiry, once for all calls."""

from __future__ import annotations

import asyncio
import base64
import binascii
import inspect
import json
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Optional, Union

import grpc

from siem_client._errors import TOKEN_PROBLEM, ConfigurationError, SiemError

# RFC 6750, b64token.
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
# Part of its lifetime after which a token is replaced.
_REFRESH_AT = 0.8
# A file may be replaced at any time; a new content is seen after this many seconds.
_FILE_SECONDS = 60.0
# A fresh token that looks expired: the clocks differ, and the server decides.
_SKEWED_SECONDS = 30.0
_MIN_PAUSE, _MAX_PAUSE = 1.0, 30.0


@dataclass(frozen=True)
class Token:
    """A token with its expiry. A JWT needs none: the client reads its claim `exp`.

    Attributes:
        value: The token, without `Bearer`.
        expires_at: Time of expiry, with a time zone; `None` if unknown.
    """

    value: str
    expires_at: Optional[datetime] = None

    def __repr__(self) -> str:
        return f"Token(value=…, expires_at={self.expires_at!r})"


@dataclass(frozen=True)
class TokenFile:
    """A file with a token, such as a projected service account token of Kubernetes. It is read again every
    minute, ahead of the token's expiry, and when the server refuses the token.

    Attributes:
        path: Path of the file.
    """

    path: Union[str, os.PathLike[str]]

    def __call__(self) -> str:
        """Reads the file."""
        with open(self.path, encoding="ascii") as file:
            return file.read().strip()


TokenFunction = Callable[[], Union[str, Token]]
AsyncTokenFunction = Callable[[], Union[str, Token, Awaitable[Union[str, Token]]]]


def _checked(token: object) -> Token:
    """Returns a token that can be sent."""
    token = Token(token) if isinstance(token, str) else token
    if not isinstance(token, Token):
        raise TypeError(f"the token function returned {type(token).__name__}; return a str or a Token")
    if not _TOKEN.fullmatch(token.value):
        raise ValueError("the token is empty, or has characters that a bearer token cannot have")
    if token.expires_at is not None and token.expires_at.tzinfo is None:
        raise ValueError("Token.expires_at has no time zone; use datetime.now(timezone.utc)")
    return token


def _expiry(token: Token) -> Optional[float]:
    """Returns the time of expiry in seconds since 1970, if it is known."""
    if token.expires_at is not None:
        return token.expires_at.timestamp()
    parts = token.value.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return float(claims["exp"])
    except (binascii.Error, ValueError, KeyError, TypeError):
        return None


class TokenState:
    """The current token. No I/O; `now` is in seconds since 1970."""

    def __init__(self, reread_seconds: Optional[float]) -> None:
        self._reread = reread_seconds
        self._value: Optional[str] = None
        self._refresh_at: Optional[float] = None
        self._valid_until: Optional[float] = None
        self._failures = 0
        self._blocked_until = 0.0
        self.error: Optional[Exception] = None

    def usable(self, now: float) -> Optional[str]:
        """Returns the token if it may be sent."""
        if self._value is None or (self._valid_until is not None and now >= self._valid_until):
            return None
        return self._value

    def wants_fetch(self, now: float) -> bool:
        """Whether a new token should be fetched now."""
        if now < self._blocked_until:
            return False
        return self.usable(now) is None or (self._refresh_at is not None and now >= self._refresh_at)

    def fetched(self, token: Token, now: float) -> None:
        """Takes a new token."""
        self._value, self.error, self._failures, self._blocked_until = token.value, None, 0, 0.0
        expiry = _expiry(token)
        self._valid_until = None
        self._refresh_at = None if self._reread is None else now + self._reread
        if expiry is None:
            return
        life = expiry - now
        if life <= 0:
            refresh_at = now + _SKEWED_SECONDS
        else:
            refresh_at = now + life * _REFRESH_AT
            # Not sent in its last moments, as it would expire on the way.
            self._valid_until = expiry - min(5.0, life * 0.1)
        self._refresh_at = min(refresh_at, self._refresh_at or refresh_at)

    def failed(self, error: Exception, now: float) -> None:
        """Takes a failure to fetch. The next attempt follows after a pause, for all calls together."""
        self.error = error
        self._blocked_until = now + min(_MIN_PAUSE * 2.0 ** min(self._failures, 10), _MAX_PAUSE)
        self._failures += 1

    def refused(self, value: str) -> None:
        """Drops a token that the server refused, unless another call has replaced it already."""
        if self._value == value:
            self._value = None


def _unfetched(error: Optional[Exception]) -> SiemError:
    """Returns the error of a call without token."""
    problem = " in time" if error is None else f": {error}"
    failure = SiemError(grpc.StatusCode.UNAVAILABLE, f"{TOKEN_PROBLEM}{problem}")
    failure.__cause__ = error
    return failure


def _state(token: object) -> TokenState:
    state = TokenState(_FILE_SECONDS if isinstance(token, TokenFile) else None)
    if isinstance(token, (str, Token)):
        try:
            state.fetched(_checked(token), time.time())
        except ValueError as error:
            raise ConfigurationError(f"token: {error}") from None
        # It cannot be replaced, so that only the server decides.
        state._refresh_at = state._valid_until = None
    elif not callable(token):
        raise ConfigurationError(f"token: {type(token).__name__} is not a str, Token, TokenFile or function")
    return state


class Tokens:
    """Tokens for threads. The function runs in a thread of its own, so that deadlines hold."""

    def __init__(self, token: Union[str, Token, TokenFile, TokenFunction]) -> None:
        self._state = _state(token)
        self._fetch: Optional[Callable[[], object]] = token if callable(token) else None
        self._changed = threading.Condition()
        self._fetching = False

    @property
    def can_change(self) -> bool:
        """Whether fetching again can give another token."""
        return self._fetch is not None

    def get(self, timeout: float) -> str:
        """Returns the token, and fetches it where that is needed.

        Raises:
            SiemError: UNAVAILABLE if it could not be fetched in time.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                if self._fetch and not self._fetching and self._state.wants_fetch(time.time()):
                    self._fetching = True
                    threading.Thread(target=self._run, name="siem-client-token", daemon=True).start()
                value = self._state.usable(time.time())
                if value is not None:
                    return value
                left = deadline - time.monotonic()
                if not self._fetching:
                    raise _unfetched(self._state.error)
                if left <= 0:
                    raise _unfetched(None)
                self._changed.wait(left)

    def refused(self, value: str) -> None:
        """Drops a token that the server refused."""
        if self._fetch:
            with self._changed:
                self._state.refused(value)

    def _run(self) -> None:
        assert self._fetch is not None
        try:
            token = _checked(self._fetch())
        except Exception as error:  # noqa: BLE001 (whatever the function of the caller raises)
            with self._changed:
                self._state.failed(error, time.time())
                self._fetching = False
                self._changed.notify_all()
        else:
            with self._changed:
                self._state.fetched(token, time.time())
                self._fetching = False
                self._changed.notify_all()


class AsyncTokens:
    """Tokens for one event loop. A function that is no coroutine function runs in the loop's executor."""

    def __init__(self, token: Union[str, Token, TokenFile, AsyncTokenFunction]) -> None:
        self._state = _state(token)
        self._fetch: Optional[Callable[[], Any]] = token if callable(token) else None
        self._task: Optional[asyncio.Task[None]] = None

    @property
    def can_change(self) -> bool:
        """Whether fetching again can give another token."""
        return self._fetch is not None

    async def get(self, timeout: float) -> str:
        """Returns the token, and fetches it where that is needed.

        Raises:
            SiemError: UNAVAILABLE if it could not be fetched in time.
        """
        deadline = time.monotonic() + timeout
        while True:
            if self._fetch and self._task is None and self._state.wants_fetch(time.time()):
                self._task = asyncio.create_task(self._run())
            value = self._state.usable(time.time())
            if value is not None:
                return value
            if self._task is None:
                raise _unfetched(self._state.error)
            await asyncio.wait({self._task}, timeout=max(deadline - time.monotonic(), 0))
            if self._task is not None and time.monotonic() >= deadline:
                raise _unfetched(None)

    def refused(self, value: str) -> None:
        """Drops a token that the server refused."""
        if self._fetch:
            self._state.refused(value)

    async def _run(self) -> None:
        assert self._fetch is not None
        try:
            if inspect.iscoroutinefunction(self._fetch):
                token = await self._fetch()
            else:
                token = await asyncio.get_running_loop().run_in_executor(None, self._fetch)
                if inspect.isawaitable(token):
                    token = await token
            self._state.fetched(_checked(token), time.time())
        except Exception as error:  # noqa: BLE001 (whatever the function of the caller raises)
            self._state.failed(error, time.time())
        finally:
            self._task = None
