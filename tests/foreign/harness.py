"""Starts and stops what the tests run: each process is waited for by what it shows, never by a time that should do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import grpc
from typing_extensions import Self

T = TypeVar("T")

START_SECONDS = 60
STOP_SECONDS = 45


class Failure(Exception):
    """What was expected and did not hold."""


class Report:
    """Counts what held and what did not, and says so at the end."""

    def __init__(self) -> None:
        self.passed = 0
        self.failures: list[str] = []

    def section(self, title: str) -> None:
        """Announces what the next lines are about."""
        print(f"\n{title}")

    def check(self, ok: bool, what: str, seen: object = "") -> None:
        """Raises where what was expected does not hold: what follows builds upon it."""
        if not ok:
            raise Failure(f"{what}; seen: {seen}" if seen != "" else what)
        self.passed += 1
        print(f"  ok: {what}")

    def attempt(self, name: str, case: Callable[[], None]) -> None:
        """Runs a case that stands alone; its failure is counted and the rest goes on."""
        try:
            case()
        except Failure as failure:
            self.failures.append(f"{name}: {failure}")
            print(f"  FAILED: {name}: {failure}")
        else:
            self.passed += 1
            print(f"  ok: {name}")

    def close(self) -> int:
        """Prints the sum; answers the exit code."""
        for failure in self.failures:
            print(f"FAILED {failure}", file=sys.stderr)
        print(f"\n{self.passed} passed, {len(self.failures)} failed")
        return 1 if self.failures or not self.passed else 0


def until(probe: Callable[[], T | None], seconds: float, what: str) -> T:
    """Asks until there is an answer that is not None; fails when the time is over."""
    deadline = time.monotonic() + seconds
    pause = 0.01
    while True:
        answer = probe()
        if answer is not None:
            return answer
        if time.monotonic() > deadline:
            raise Failure(f"waited {seconds} s in vain until {what}")
        time.sleep(pause)
        pause = min(2 * pause, 0.25)


def free_port() -> int:
    """A port of loopback that nobody has; for programs that cannot tell which one they took."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def accepts(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """One program, with its output in a file that is shown if it fails."""

    def __init__(
        self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str], ready: Callable[[], bool]
    ) -> None:
        self.command = [str(part) for part in command]
        self.log = log
        self.name = Path(self.command[0]).name
        with open(log, "ab") as output:
            self.popen = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(environment)
            )

        def up() -> bool | None:
            self.expect_running()
            return True if ready() else None

        try:
            until(up, START_SECONDS, f"{self.name} is ready")
        except Failure as failure:
            self.kill()
            raise Failure(f"{failure}\n{self.tail()}") from None

    def expect_running(self) -> None:
        """Fails if it has ended."""
        code = self.popen.poll()
        if code is not None:
            raise Failure(f"{self.name} ended with {code}\n{self.tail()}")

    def tail(self) -> str:
        """The end of what it printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def stop(self) -> int:
        """Asks it to end (SIGTERM), and answers its exit code."""
        self.popen.terminate()
        try:
            return self.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failure(f"{self.name} did not end within {STOP_SECONDS} s of SIGTERM\n{self.tail()}") from None

    def kill(self) -> None:
        """Ends it at once."""
        self.popen.kill()
        self.popen.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.popen.poll() is None:
            self.kill()
        if kind is not None:
            print(f"\n--- the end of {self.log}:\n{self.tail()}\n---", file=sys.stderr)


def clean_environment(**settings: str) -> dict[str, str]:
    """This environment without anyone's AWS account and server settings, and with these."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "SIEM_RELAY_", "OTEL_"))}
    return {
        **kept,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "RUST_BACKTRACE": "1",
        **settings,
    }


def binary() -> Path:
    """The server's program."""
    return Path(os.environ["SIEM_RELAY_BIN"])


def healthy(address: str) -> bool:
    """Whether grpc.health.v1 says SERVING for the whole server."""
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address, options=options) as channel:
        ask = channel.unary_unary("/grpc.health.v1.Health/Check", lambda request: request, lambda answer: answer)
        try:
            # A HealthCheckResponse whose field 1 is 1, SERVING.
            return bool(ask(b"", timeout=5) == b"\x08\x01")
        except grpc.RpcError:
            return False


class Relay(Process):
    """`siem-relay serve` on a free port of loopback."""

    def __init__(self, directory: Path, aws: Mapping[str, str], *flags: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        super().__init__(
            [binary(), "serve", "--listen", self.address, "--data-dir", directory / "data", *flags],
            directory / "serve.log",
            clean_environment(**aws),
            lambda: healthy(self.address),
        )

    def expect_alive(self) -> None:
        """Fails unless it runs and serves."""
        self.expect_running()
        if not healthy(self.address):
            raise Failure("the server no longer says SERVING")


def run(test: Callable[[Report], None]) -> int:
    """Runs a test to its sum; answers the exit code."""
    report = Report()
    try:
        test(report)
    except Failure as failure:
        report.failures.append(str(failure))
    return report.close()
