"""Calls of a server by the real grpcurl, with its output parsed."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

from harness import Failure
from relay import Relay

OK, INVALID_ARGUMENT, NOT_FOUND, ABORTED = 0, 3, 5, 10

Json = dict[str, Any]


class Answer:
    """Messages of a call, and its status with details."""

    def __init__(self, code: int, messages: list[Json], status: Json) -> None:
        self.code = code
        self.messages = messages
        self.message = status.get("message", "")
        details = {detail["@type"].rsplit(".", 1)[-1]: detail for detail in status.get("details", [])}
        info = details.get("ErrorInfo", {})
        self.reason = f"{info.get('domain', '')}/{info.get('reason', '')}"
        violations = details.get("BadRequest", {})
        self.violations = {
            v["field"]: v.get("description", "")
            for v in violations.get("field_violations", [])
        }

    def __str__(self) -> str:
        return f"code {self.code} {self.reason} {self.message!r} {self.violations} {json.dumps(self.messages)[:400]}"

    def only(self) -> Json:
        """Returns the only message of a successful call."""
        if self.code != OK or len(self.messages) != 1:
            raise Failure(f"should have answered OK with one message, was {self}")
        return self.messages[0]


def json_values(text: str) -> Iterator[Json]:
    """Parses concatenated JSON values."""
    decoder = json.JSONDecoder()
    position = 0
    while (position := len(text) - len(text[position:].lstrip())) < len(text):
        value, position = decoder.raw_decode(text, position)
        yield proto_names(value)


def proto_names(value: Any) -> Any:
    """Returns a value with the field names of the proto files; grpcurl prints json_name if reflection has it."""
    if isinstance(value, dict):
        return {re.sub("[A-Z]", lambda m: "_" + m[0].lower(), key): proto_names(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [proto_names(inner) for inner in value]
    return value


class Grpcurl:
    """grpcurl for one server."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.flags = ["grpcurl", "-plaintext", "-max-time", "60"]

    def reflect(self, *arguments: str) -> str:
        """Returns the output of `list` or `describe`."""
        command = [*self.flags, self.relay.address, *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL).stdout

    def call(self, method: str, *requests: Json) -> Answer:
        """Calls a method with one or several requests, and checks that the server is alive after it."""
        command = [*self.flags, "-format-error", "-emit-defaults", "-d", "@", self.relay.address, method]
        text = "".join(json.dumps(request) for request in requests)
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        self.relay.expect_alive()
        if done.returncode == 0:
            return Answer(OK, list(json_values(done.stdout)), {})
        # The exit code is 64 plus the status code if the server answered with one.
        if done.returncode < 64:
            raise Failure(f"grpcurl itself failed: {done.stderr}")
        status = next(json_values(done.stderr[done.stderr.index("{") :]))
        if status["code"] != done.returncode - 64:
            raise Failure(f"exit code {done.returncode} with {status}")
        return Answer(status["code"], list(json_values(done.stdout)), status)

    def stream_until(self, method: str, request: Json, last: str) -> list[Json]:
        """Returns the messages of a server stream up to the first one with the field `last`."""
        command = [*self.flags, "-emit-defaults", "-d", json.dumps(request), self.relay.address, method]
        got: list[Json] = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            lines: list[str] = []
            for line in process.stdout:
                lines.append(line)
                # A message has many lines, of which the last is a brace.
                if line.rstrip() == "}":
                    got.extend(json_values("".join(lines)))
                    lines = []
                    if last in got[-1]:
                        process.terminate()
                        return got
        raise Failure(f"{method} ended without {last}: {got}")
