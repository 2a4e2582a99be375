"""Tokens: fetched once for all calls, ahead of the expiry, and never sent in clear."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from conftest import GET, GOT
from fake import Fake

from siem_client import ConfigurationError, SiemError, Tls, Token, TokenFile, aio, connect
from siem_client._tokens import AsyncTokens, Tokens, TokenState


def jwt(expires_in: float) -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": time.time() + expires_in}).encode()).decode().rstrip("=")
    return f"e30.{claims}.c2ln"


def test_a_hundred_threads_fetch_once() -> None:
    calls = []
    barrier = threading.Barrier(100)

    def fetch() -> str:
        calls.append(1)
        time.sleep(0.05)
        return f"token-{len(calls)}"

    tokens = Tokens(fetch)

    def get(_: int) -> str:
        barrier.wait()
        return tokens.get(10)

    with ThreadPoolExecutor(100) as pool:
        assert set(pool.map(get, range(100))) == {"token-1"}
        # All of them were refused with the same token.
        for _ in range(100):
            tokens.refused("token-1")
        assert set(pool.map(get, range(100))) == {"token-2"}
        for _ in range(100):
            tokens.refused("token-1")
        assert tokens.get(1) == "token-2"
    assert len(calls) == 2


def test_a_failing_function_is_not_called_by_each_call() -> None:
    calls = []

    def fetch() -> str:
        calls.append(1)
        raise OSError("the issuer is down")

    tokens = Tokens(fetch)
    for _ in range(20):
        with pytest.raises(SiemError, match="the issuer is down"):
            tokens.get(1)
    assert len(calls) == 1


def test_a_hanging_function_does_not_outlast_the_deadline() -> None:
    released = threading.Event()
    tokens = Tokens(lambda: str(released.wait(60)))
    with pytest.raises(SiemError, match="could not be fetched in time"):
        tokens.get(0.05)
    released.set()


def test_it_is_fetched_ahead_and_the_old_one_is_sent_meanwhile() -> None:
    state = TokenState(None)
    state.fetched(Token("a", datetime.fromtimestamp(1000, timezone.utc)), now=0)
    assert not state.wants_fetch(799) and state.wants_fetch(801)
    assert state.usable(900) == "a"
    state.failed(OSError("down"), now=801)
    assert not state.wants_fetch(801.5) and state.wants_fetch(803) and state.usable(990) == "a"
    assert state.usable(996) is None


def test_the_expiry_of_a_jwt_is_read() -> None:
    state = TokenState(None)
    now = time.time()
    state.fetched(Token(jwt(100)), now)
    assert not state.wants_fetch(now + 70) and state.wants_fetch(now + 90) and state.usable(now + 99) is None
    # This machine's clock is ahead: the server decides, and the function is not called again by each call.
    state.fetched(Token(jwt(-10)), now)
    assert state.usable(now) and not state.wants_fetch(now + 1)


def test_a_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    tokens = Tokens(TokenFile(path))
    assert tokens.get(5) == "first"
    path.write_text("second\n")
    assert tokens.get(5) == "first"
    tokens.refused("first")
    assert tokens.get(5) == "second"
    assert tokens._state.wants_fetch(time.time() + 61)


def test_asyncio_fetches_once() -> None:
    calls = []

    async def fetch() -> Token:
        calls.append(1)
        await asyncio.sleep(0.02)
        return Token("token", datetime.now(timezone.utc) + timedelta(hours=1))

    async def main() -> None:
        tokens = AsyncTokens(fetch)
        assert set(await asyncio.gather(*(tokens.get(5) for _ in range(100)))) == {"token"}
        plain = AsyncTokens(lambda: "plain")
        assert await plain.get(5) == "plain"

    asyncio.run(main())
    assert len(calls) == 1


@pytest.mark.parametrize("module", [connect, aio.connect])
def test_no_token_in_clear(module: object) -> None:
    assert callable(module)
    for address in ("http://192.0.2.1:1", "relay.example.com:443", "http://localhost.example.com", "http://[2001:db8::1]:1"):
        with pytest.raises(ConfigurationError, match="not sent in clear"):
            module(address, token="secret")
    for address in ("http://localhost:1", "127.0.0.1:1", "http://[::1]:1", "https://relay.example.com", "127.3.2.1:9"):
        module(address, token="secret")


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("ftp://relay", "use http or https"),
        ("http://", "is not of the form"),
        ("http://relay:port", "HOST:PORT"),
        ("http://relay:99999", "HOST:PORT"),
        ("http://relay:1/path", "is not of the form"),
        ("http://user@relay:1", "is not of the form"),
    ],
)
def test_bad_addresses(address: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        connect(address)


def test_bad_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"tls\.ca"):
        connect("https://relay", tls=Tls(ca=tmp_path / "absent"))
    with pytest.raises(ConfigurationError, match="no PEM"):
        connect("https://relay", tls=Tls(ca=b"DER"))
    with pytest.raises(ConfigurationError, match="together"):
        connect("https://relay", tls=Tls(certificate=b"-----BEGIN"))
    with pytest.raises(ConfigurationError, match="plaintext"):
        connect("http://relay", tls=Tls())
    for token in ("", "a\r\nb: c", "ü"):
        with pytest.raises(ConfigurationError, match="token"):
            connect("https://relay", token=token)
    with pytest.raises(ConfigurationError, match="timeout"):
        connect("https://relay", timeout=0)
    assert "secret" not in repr(Token("secret"))


def test_concurrent_calls_share_the_new_token(fake: Fake) -> None:
    refused = {"error": {"code": "UNAUTHENTICATED", "reason": "UNAUTHENTICATED"}}
    fake.plan("Get", [refused] * 20 + [GOT] * 20)
    calls = []

    def fetch() -> str:
        calls.append(1)
        return f"token-{len(calls)}"

    with connect(f"localhost:{fake.port}", token=fetch) as client, ThreadPoolExecutor(20) as pool:
        barrier = threading.Barrier(20)

        def get(_: int) -> bool:
            barrier.wait()
            try:
                client.get(GET)
            except SiemError:
                return False
            return True

        list(pool.map(get, range(20)))
    # One for all that were refused with the first token, and one more where the second was refused too.
    assert 2 <= len(calls) <= 4
