"""Both kinds of clients against a planned server: deadlines, retries, connections, processes and loops."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import grpc
import pytest
from conftest import GET, GOT, event
from fake import Fake

import siem_client
from siem_client import (
    Client,
    ClosedError,
    ForkedError,
    Outcome,
    PublisherOptions,
    PublishResult,
    RetryOptions,
    SiemError,
    UnacknowledgedError,
    WrongLoopError,
    aio,
    v1,
)

FAST = RetryOptions(0.01, 0.1)


def test_unknown_values_never_raise(fake: Fake, client: Client) -> None:
    fake.plan("Get", [{"message": {"integration": {"status": {"status": 99, "reason": 98}}}}])
    status = client.get(GET).integration.status
    assert siem_client.status_of(status) == v1.STATUS_UNKNOWN
    assert siem_client.enum_name(v1.StatusReason, status.reason) == "98"
    assert siem_client.enum_name(v1.Status, v1.STATUS_ACTIVE) == "STATUS_ACTIVE"


def test_nothing_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        began = time.monotonic()
        with siem_client.connect(address, timeout=1, retry=FAST) as client, pytest.raises(SiemError) as failure:
            client.get(GET)
        assert failure.value.code == grpc.StatusCode.UNAVAILABLE and failure.value.attempts > 3
        assert time.monotonic() - began < 3

        async def main() -> None:
            async with aio.connect(address, timeout=1, retry=FAST) as client:
                with pytest.raises(SiemError) as failure:
                    await client.get(GET)
                assert failure.value.code == grpc.StatusCode.UNAVAILABLE

        asyncio.run(main())


def test_a_call_that_was_never_sent_may_be_sent_later(fake: Fake) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fake.plan("SendTest", [{"message": {"delivered": True}}])
    with siem_client.connect(f"127.0.0.1:{port}", retry=FAST) as client, ThreadPoolExecutor(1) as pool:
        pending: Future[v1.SendTestResponse] = pool.submit(client.send_test, v1.SendTestRequest(organization_id="acme"))
        time.sleep(0.2)
        # The server starts only now.
        assert not pending.done()
        proxy(fake.port, threading.Event(), port)
        assert pending.result(30).delivered
    assert len(fake.seen("SendTest")) == 1


def test_close_ends_waiting_calls(fake: Fake) -> None:
    fake.plan("Get", [{"error": {"code": "UNAVAILABLE", "retry_after": 20}}])
    client = siem_client.connect(f"localhost:{fake.port}")
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(client.get, GET)
        while not fake.seen("Get"):
            time.sleep(0.01)
        client.close()
        with pytest.raises(ClosedError):
            pending.result(10)
    with pytest.raises(ClosedError):
        client.get(GET)


def proxy(port: int, blocked: threading.Event, listen: int = 0) -> int:
    """Returns the port of a proxy that forwards until `blocked` is set, and then is silent."""
    listener = socket.create_server(("127.0.0.1", listen))

    def copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if not blocked.is_set():
                    target.sendall(data)
        except OSError:
            pass

    def serve() -> None:
        while True:
            near, _ = listener.accept()
            if blocked.is_set():
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", port))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=copy, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def test_a_dead_connection_is_noticed_within_45_seconds(fake: Fake) -> None:
    first = [{"message": {"resume_token": "1", "synced": {}}}]
    fake.plan("StreamStatus", [{"messages": first, "open": True}])
    blocked = threading.Event()
    port = proxy(fake.port, blocked)
    with siem_client.connect(f"127.0.0.1:{port}", retry=FAST) as client:
        stubs = client._open()
        call = stubs.integrations.StreamStatus(v1.StreamStatusRequest())
        next(iter(call))
        blocked.set()
        began = time.monotonic()
        with pytest.raises(grpc.RpcError):
            next(iter(call))
        assert time.monotonic() - began < 45


def test_a_silent_stream_is_opened_again(fake: Fake, client: Client) -> None:
    synced = {"message": {"resume_token": "1", "synced": {}}}
    deleted = {"message": {"resume_token": "2", "deleted": {"organization_id": "acme"}}}
    answers = [{"messages": [synced], "open": True}, {"messages": [deleted], "open": True}]
    fake.plan("StreamStatus", answers)
    with client.watch_status(silence_limit=0.3) as watch:
        assert isinstance(next(watch), siem_client.StatusSnapshot)
        assert isinstance(next(watch), v1.StatusDeleted)
        assert watch.resume_token == "2"

    async def main() -> None:
        fake.plan("StreamStatus", answers)
        async with aio.connect(f"localhost:{fake.port}", retry=FAST) as other:
            watch = other.watch_status(silence_limit=0.3)
            assert isinstance(await watch.__anext__(), siem_client.StatusSnapshot)
            # Cancelling loses nothing.
            for _ in range(3):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(watch.__anext__(), 0.01)
            assert isinstance(await watch.__anext__(), v1.StatusDeleted)
            await watch.close()
            assert [each async for each in watch] == []

    asyncio.run(main())


def test_a_watch_ends_with_an_error_that_would_come_again(fake: Fake, client: Client) -> None:
    fake.plan("StreamStatus", [{"error": {"code": "PERMISSION_DENIED", "reason": "PERMISSION_DENIED"}}])
    with pytest.raises(SiemError) as failure:
        next(client.watch_status())
    assert failure.value.reason == v1.ERROR_REASON_PERMISSION_DENIED


def test_close_of_a_watch_ends_its_iteration(fake: Fake, client: Client) -> None:
    fake.plan("StreamStatus", [{"messages": [], "open": True}])
    watch = client.watch_status()
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(list, watch)
        while not fake.seen("StreamStatus"):
            time.sleep(0.01)
        watch.close()
        assert pending.result(10) == []


def in_child(body: Callable[[], object]) -> str:
    """Returns the name of the exception that a forked process raises; empty for none."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        name = ""
        try:
            body()
        except BaseException as error:  # noqa: BLE001 (its name is the result)
            name = type(error).__name__
        os.write(writing, name.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        name = pipe.read()
    os.waitpid(child, 0)
    return name


def test_forked_processes(fake: Fake, client: Client) -> None:
    fake.plan("Get", [GOT] * 10)
    address = f"127.0.0.1:{fake.port}"
    unused = siem_client.connect(address, timeout=5)
    publisher = client.publisher()
    # The fake server has used gRPC in this process already, so that even a new client may only fail, not hang.
    assert in_child(lambda: unused.get(GET)) in ("", "SiemError")
    client.get(GET)
    assert in_child(lambda: client.get(GET)) == ForkedError.__name__
    assert in_child(lambda: publisher.send(event(1))) == ForkedError.__name__
    assert in_child(publisher.flush) == ForkedError.__name__
    client.get(GET)


def test_another_event_loop(fake: Fake) -> None:
    fake.plan("Get", [GOT] * 2)
    client = aio.connect(f"localhost:{fake.port}")

    async def get() -> None:
        await client.get(GET)

    asyncio.run(get())
    with pytest.raises(WrongLoopError, match="connect inside each"):
        asyncio.run(get())
    assert len(fake.seen("Get")) == 1


def test_a_full_publisher_waits(fake: Fake, client: Client) -> None:
    fake.plan("PublishStream", [{"error": {"code": "UNAVAILABLE", "retry_after": 1}}])
    publisher = client.publisher(PublisherOptions(max_bytes_in_flight=20_000))
    futures = []
    with pytest.raises(TimeoutError):
        for number in range(100):
            futures.append(publisher.send(event(number), timeout=0.1))
    assert 10 < len(futures) < 20
    for number in range(len(futures), 200):
        futures.append(publisher.send(event(number)))
    publisher.close()
    assert {future.result(0).outcome for future in futures} == {Outcome.ACCEPTED}
    with pytest.raises(ClosedError):
        publisher.send(event(1))


def test_a_full_asyncio_publisher_waits(fake: Fake) -> None:
    async def main() -> None:
        fake.plan("PublishStream", [{"error": {"code": "UNAVAILABLE", "retry_after": 1}}])
        async with aio.connect(f"localhost:{fake.port}", retry=FAST) as client:
            async with client.publisher(PublisherOptions(max_bytes_in_flight=20_000)) as publisher:
                futures: list[asyncio.Future[PublishResult]] = []

                async def fill() -> None:
                    for number in range(200):
                        futures.append(await publisher.send(event(number)))

                filling = asyncio.ensure_future(fill())
                done, _ = await asyncio.wait({filling}, timeout=0.3)
                assert not done and 10 < len(futures) < 20
                await filling
            assert {future.result().outcome for future in futures} == {Outcome.ACCEPTED}

    asyncio.run(main())


def test_a_refused_publisher_ends_and_names_its_events(fake: Fake, client: Client) -> None:
    denied = {"end": {"code": "PERMISSION_DENIED", "reason": "PERMISSION_DENIED"}}
    fake.plan("PublishStream", [denied])
    publisher = client.publisher()
    future = publisher.send(event(1))
    with pytest.raises(UnacknowledgedError, match="device-1") as failure:
        publisher.flush(10)
    assert isinstance(failure.value.__cause__, SiemError)
    assert isinstance(future.exception(10), SiemError)
    with pytest.raises(ClosedError, match="PERMISSION_DENIED"):
        publisher.send(event(2))
    with pytest.raises(UnacknowledgedError):
        publisher.close()

    async def main() -> None:
        fake.plan("PublishStream", [denied])
        async with aio.connect(f"localhost:{fake.port}") as other:
            asynchronous = other.publisher()
            pending = await asynchronous.send(event(1))
            with pytest.raises(UnacknowledgedError, match="device-1"):
                await asynchronous.flush(10)
            assert isinstance(pending.exception(), SiemError)
            with pytest.raises(UnacknowledgedError):
                await asynchronous.close()

    asyncio.run(main())


def test_an_answer_that_does_not_come_opens_a_new_stream(fake: Fake, client: Client) -> None:
    options = PublisherOptions(answer_timeout=0.3, min_retry_wait=0.01)
    fake.plan("PublishStream", [{"silent": True}])
    with client.publisher(options) as publisher:
        future = publisher.send(event(1))
        assert future.result(20).outcome is Outcome.ACCEPTED
    assert len(fake.seen("PublishStream")) == 2

    async def main() -> None:
        fake.plan("PublishStream", [{"silent": True}])
        async with aio.connect(f"localhost:{fake.port}") as other, other.publisher(options) as asynchronous:
            pending = await asynchronous.send(event(1))
            assert (await asyncio.wait_for(pending, 20)).outcome is Outcome.ACCEPTED
        assert len(fake.seen("PublishStream")) == 2

    asyncio.run(main())


def test_an_event_does_not_wait_for_the_answer_to_others(fake: Fake, client: Client) -> None:
    fake.plan("PublishStream", [{"silent": True}] * 2)
    publisher = client.publisher()
    publisher.send(event(1))
    while not fake.seen("PublishStream"):
        time.sleep(0.01)
    # The first request is never answered on this stream.
    publisher.send(event(2))
    deadline = time.monotonic() + 10
    while len(fake.seen("PublishStream")) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(fake.seen("PublishStream")) == 2
    with pytest.raises(UnacknowledgedError, match="device-1, acme/device/device-2"):
        publisher.close(0.1)


def test_compressed_requests(fake: Fake) -> None:
    fake.plan("Get", [GOT])
    with siem_client.connect(f"localhost:{fake.port}", gzip=True) as client, client.publisher() as publisher:
        assert client.get(GET).integration.organization_id == "acme"
        assert publisher.send(event(1, size=100_000)).result(10).outcome is Outcome.ACCEPTED


def test_events_are_copied(fake: Fake, client: Client) -> None:
    with client.publisher() as publisher:
        reused = event(1)
        publisher.send(reused)
        reused.event_id = "changed"
        publisher.send(reused)
    ids = [each["event_id"] for call in fake.seen("PublishStream") for each in call["request"]["events"]]
    assert ids == ["device-1", "changed"]


def test_many_threads_publish(fake: Fake, client: Client) -> None:
    with client.publisher() as publisher, ThreadPoolExecutor(8) as pool:
        def send(device: int) -> None:
            for number in range(500):
                publisher.send(event(number, f"device{device}"))

        list(pool.map(send, range(8)))
    assert publisher.stats.accepted == 4_000 and publisher.stats.pending == 0
    ids = [each["event_id"] for call in fake.seen("PublishStream") for each in call["request"]["events"]]
    for device in range(8):
        assert [name for name in ids if name.startswith(f"device{device}-")] == [f"device{device}-{n}" for n in range(500)]


def test_an_unused_publisher_opens_no_stream(fake: Fake, client: Client) -> None:
    with client.publisher() as publisher:
        publisher.flush(1)
    assert not fake.seen("PublishStream")
