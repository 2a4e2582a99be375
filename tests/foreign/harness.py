"""Starts, observes and stops the processes of the tests, and reports checks. No wait is a fixed time."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from typing_extensions import Self

T = TypeVar("T")

START_SECONDS = 60
STOP_SECONDS = 45


class Failure(Exception):
    """An expectation that does not hold."""


class Report:
    """Counts and prints passed and failed checks."""

    def __init__(self) -> None:
        self.passed = 0
        self.failures: list[str] = []

    def section(self, title: str) -> None:
        """Prints a headline."""
        print(f"\n{title}")

    def check(self, ok: bool, what: str, seen: object = "") -> None:
        """Fails the whole test unless `ok`, since later checks depend on it."""
        if not ok:
            raise Failure(f"{what}; seen: {seen}" if seen != "" else what)
        self.passed += 1
        print(f"  ok: {what}")

    def attempt(self, name: str, case: Callable[[], None]) -> None:
        """Runs an independent case; its failure is counted, and the test continues."""
        try:
            case()
        except Failure as failure:
            self.failures.append(f"{name}: {failure}")
            print(f"  FAILED: {name}: {failure}")
        else:
            self.passed += 1
            print(f"  ok: {name}")

    def close(self) -> int:
        """Prints the totals; returns the exit code."""
        for failure in self.failures:
            print(f"FAILED {failure}", file=sys.stderr)
        print(f"\n{self.passed} passed, {len(self.failures)} failed")
        return 1 if self.failures or not self.passed else 0


def until(probe: Callable[[], T | None], seconds: float, what: str) -> T:
    """Polls until the answer is not None; fails after a time."""
    deadline = time.monotonic() + seconds
    pause = 0.01
    while True:
        answer = probe()
        if answer is not None:
            return answer
        if time.monotonic() > deadline:
            raise Failure(f"waited {seconds} s, but not until {what}")
        time.sleep(pause)
        pause = min(2 * pause, 0.25)


def free_port() -> int:
    """Returns a free port of loopback, for programs that do not report the one they chose."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def accepts(port: int) -> bool:
    """Returns whether something listens on a port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """A process whose output goes to a file, of which the end is shown on failure."""

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
        """Fails if the process has ended."""
        code = self.popen.poll()
        if code is not None:
            raise Failure(f"{self.name} ended with {code}\n{self.tail()}")

    def tail(self) -> str:
        """Returns the last lines of the output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def stop(self) -> int:
        """Sends SIGTERM; returns the exit code."""
        self.popen.terminate()
        try:
            return self.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failure(f"{self.name} did not end within {STOP_SECONDS} s of SIGTERM\n{self.tail()}") from None

    def kill(self) -> None:
        """Sends SIGKILL."""
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
    """Returns this environment without AWS accounts and settings of the server, plus these variables."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "SIEM_RELAY_", "OTEL_", "TF_"))}
    return {
        **kept,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "RUST_BACKTRACE": "1",
        **settings,
    }


def binary() -> Path:
    """Returns the path of the program under test."""
    return Path(os.environ["SIEM_RELAY_BIN"])


def policy(action: str | list[str], resource: str) -> str:
    """Returns an IAM policy document with one statement."""
    statement = {"Effect": "Allow", "Action": action, "Resource": resource}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def run(test: Callable[[Report], None]) -> int:
    """Runs a test and prints the totals; returns the exit code."""
    report = Report()
    try:
        test(report)
    except Failure as failure:
        report.failures.append(str(failure))
    return report.close()
