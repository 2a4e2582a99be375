"""Runs the scenario of all clients: starts and stops servers, drives the client of one language, and compares.

The driver is a program that reads one JSON object per line, makes the call, and answers in one line; see README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any

import siem_client
from fake import Fake
from harness import Failure, Report, binary, clean_environment, run, until
from relay import Relay
from siem_client import v1
from stand_in import StandIn

HERE = Path(__file__).resolve().parent
ANSWER_SECONDS = 120
EXTERNAL_ID = "external-id-of-the-scenario"
NAME = "scenario"


class Driver:
    """The client of one language, as a process."""

    def __init__(self, command: list[str]) -> None:
        environment = clean_environment()
        # The path of the runner, not of the driver.
        environment.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
        )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def begin(self, call: str, arguments: dict[str, Any]) -> None:
        """Writes a request."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"call": call, **arguments}) + "\n")
        self._process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """Returns the answer to the oldest request."""
        try:
            line = self._answers.get(timeout=ANSWER_SECONDS)
        except queue.Empty:
            raise Failure(f"the driver did not answer within {ANSWER_SECONDS} s") from None
        if not line:
            raise Failure(f"the driver ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """Ends the input; the driver must end by itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            code = self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failure("the driver did not end within 30 s of the end of its input") from None
        if code != 0:
            raise Failure(f"the driver ended with {code}")

    def kill(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()


def difference(expected: Any, seen: Any, path: str = "answer") -> str:
    """Returns the first difference; empty if everything that is expected is there. `"*"` is anything that is not
    empty, and objects may have further members."""
    if expected == "*":
        return "" if seen not in (None, "", [], {}) else f"{path} is {seen!r}"
    if isinstance(expected, dict) and isinstance(seen, dict):
        for key, value in expected.items():
            found = difference(value, seen.get(key), f"{path}.{key}")
            if found:
                return found
        return ""
    if isinstance(expected, list) and isinstance(seen, list):
        if len(expected) != len(seen):
            return f"{path} has {len(seen)} entries instead of {len(expected)}: {seen!r}"
        for index, (one, other) in enumerate(zip(expected, seen)):
            found = difference(one, other, f"{path}[{index}]")
            if found:
                return found
        return ""
    return "" if expected == seen else f"{path} is {seen!r} instead of {expected!r}"


class World:
    """Servers and the AWS account around the client. Its methods are the `world` steps."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stand_in = StandIn(directory)
        self._aws = self._stand_in.vendor()
        self._relay: Relay | None = None
        self.fake: Fake | None = None
        stream, role = self._stand_in.customer(NAME, EXTERNAL_ID)
        self.values = {"stream": stream, "role": role, "external_id": EXTERNAL_ID}
        self._address: str | None = None

    def close(self) -> None:
        """Ends everything."""
        if self._relay is not None:
            self._relay.kill()
        if self.fake is not None:
            self.fake.stop()
        self._stand_in.kill()

    def start_server(self) -> None:
        """Starts the server; at the same address and with the same data each time."""
        self._relay = Relay(self._directory, self._aws, address=self._address)
        self._address = self._relay.address
        self.values["server"] = f"http://{self._address}"

    def kill_server(self) -> None:
        """Ends the server by SIGKILL."""
        assert self._relay is not None
        self._relay.kill()
        self._relay = None

    def stop_server(self) -> None:
        """Ends the server by SIGTERM."""
        assert self._relay is not None
        relay, self._relay = self._relay, None
        code = relay.stop()
        if code != 0:
            raise Failure(f"the server ended with {code} after SIGTERM")

    def deny_role(self) -> None:
        """Removes the customer's role, and all sessions."""
        self._stand_in.control("DELETE", f"roles?arn={urllib.parse.quote(self.values['role'])}")
        self._stand_in.control("DELETE", "sessions")

    def heal_role(self) -> None:
        """Restores the customer's role."""
        self._stand_in.role(NAME, EXTERNAL_ID)

    def configure(self, organization_id: str) -> None:
        """Configures another integration, without the client under test."""
        assert self._address is not None
        request = v1.ConfigureRequest(
            organization_id=organization_id,
            kinesis_stream_arn=self.values["stream"],
            role_arn=self.values["role"],
            external_id=f"{EXTERNAL_ID}-of-{organization_id}",
        )
        with siem_client.connect(self._address) as client:
            client.configure(request)

    def expect_delivered(self, numbers: list[int], name: str = "") -> None:
        """Waits until the stream has the events with all these numbers, from the first to the last."""
        wanted = {f"detection {number}" for number in range(numbers[0], numbers[1] + 1)}

        def probe() -> bool | None:
            events = self._stand_in.events(self.values["stream"])
            return wanted <= {event["data"]["signature"] for event in events if "sequence" in event} or None

        until(probe, 90, f"the stream has the events {numbers[0]} to {numbers[1]}")

    def verify(self) -> None:
        """Proves by `siem-relay verify` that no event is missing in the stream."""
        lines = self._stand_in.control("GET", f"records?arn={urllib.parse.quote(self.values['stream'])}").splitlines()
        capture = self._directory / "records.jsonl"
        capture.write_text("".join(json.loads(line)["text"] for line in lines))
        done = subprocess.run([binary(), "verify", capture], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Failure(f"siem-relay verify ended with {done.returncode}\n{done.stdout}{done.stderr}")

    def start_fake(self, tls: bool = False, client_certificate: bool = False) -> None:
        """Starts a new fake server."""
        if self.fake is not None:
            self.fake.stop()
        self.fake = Fake(self._directory, tls, client_certificate)
        scheme = "https" if tls else "http"
        self.values |= {"fake": f"{scheme}://localhost:{self.fake.port}", **self.fake.values}

    def plan(self, method: str, answers: list[dict[str, Any]]) -> None:
        """Plans the fake server's answers."""
        assert self.fake is not None
        self.fake.plan(method, answers)

    def poison(self, number: int) -> None:
        """Makes the fake server refuse requests with this event."""
        assert self.fake is not None
        self.fake.poison(number)

    def expect_calls(
        self,
        method: str,
        count: int | None = None,
        requests: list[Any] | None = None,
        authorization: list[str] | None = None,
        min_gap: float | None = None,
    ) -> None:
        """Compares the calls that the fake server has received since the plan."""
        assert self.fake is not None
        fake = self.fake
        wanted = count if count is not None else len(requests or authorization or [])
        calls = fake.seen(method)
        if wanted > len(calls):
            # The last call of a watch may be on its way.
            calls = until(lambda: seen if len(seen := fake.seen(method)) >= wanted else None, 30, f"{wanted} of {method}")
        if len(calls) != wanted:
            raise Failure(f"{len(calls)} calls of {method} instead of {wanted}")
        if requests is not None:
            found = difference(requests, [call["request"] for call in calls], "requests")
            if found:
                raise Failure(found)
        if authorization is not None:
            found = difference(authorization, [call["authorization"] for call in calls], "authorization")
            if found:
                raise Failure(found)
        if min_gap is not None and calls[1]["time"] - calls[0]["time"] < min_gap:
            raise Failure(f"the second call came after {calls[1]['time'] - calls[0]['time']:.3f} s")


class Scenario:
    """One run of the scenario."""

    def __init__(self, world: World, driver: Driver) -> None:
        self._world = world
        self._driver = driver
        self._saved: dict[str, Any] = {}

    def fill(self, value: Any) -> Any:
        """Replaces `${name}` in all texts."""
        if isinstance(value, dict):
            return {key: self.fill(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.fill(each) for each in value]
        if isinstance(value, str):
            names = {**self._world.values, **self._saved}
            return re.sub(r"\$\{(\w+)\}", lambda match: str(names[match[1]]), value)
        return value

    def step(self, step: dict[str, Any]) -> None:
        """Runs one step."""
        step = self.fill(step)
        if "world" in step:
            getattr(self._world, step["world"])(**step.get("with", {}))
            return
        if "end" not in step:
            self._driver.begin(step["call"], step.get("with", {}))
            if step.get("begin"):
                return
        deadline = time.monotonic() + step.get("within", 30)
        while True:
            answer = self._driver.end()
            if "until" not in step:
                break
            found = difference(step["until"], answer)
            if not found:
                break
            if "error" in answer or time.monotonic() > deadline:
                raise Failure(f"{found}; last answer: {answer}")
            self._driver.begin(step["call"], step.get("with", {}))
        if "error" in answer and "error" not in step.get("expect", {}):
            raise Failure(f"the call failed: {answer['error']}")
        found = difference(step.get("expect", {}), answer)
        if found:
            raise Failure(f"{found}; answer: {answer}")
        for name, key in step.get("save", {}).items():
            self._saved[name] = answer[key]


def describe(step: dict[str, Any]) -> str:
    """Returns a step in a few words."""
    return str(step.get("note") or step.get("call") or step.get("end") or step.get("world"))


def main() -> int:
    """Reads the arguments and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="run only the sections with this text in their name, and those they need")
    parser.add_argument("driver", nargs=argparse.REMAINDER, help="the command of the driver")
    arguments = parser.parse_args()
    scenario = json.loads((HERE / "scenario.json").read_text())

    def test(report: Report) -> None:
        with tempfile.TemporaryDirectory() as name:
            world = World(Path(name))
            driver = Driver(arguments.driver)
            try:
                running = Scenario(world, driver)
                for section in scenario["sections"]:
                    if arguments.only and arguments.only not in section["name"] and not section.get("always"):
                        continue
                    report.section(section["name"])
                    for number, step in enumerate(section["steps"]):
                        began = time.monotonic()
                        try:
                            running.step(step)
                        except Failure as failure:
                            raise Failure(f"{section['name']}, step {number}, {describe(step)}: {failure}") from None
                        report.check(True, f"{describe(step)} ({time.monotonic() - began:.1f} s)")
                report.section("end")
                driver.stop()
                report.check(True, "the driver ends with its input")
            finally:
                driver.kill()
                world.close()

    return run(test)


if __name__ == "__main__":
    os.environ.pop("http_proxy", None)
    sys.exit(main())
