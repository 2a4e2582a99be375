"""The real grpcurl against a server: its calls, and what it prints as values."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

from harness import Failure, Relay

OK, INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, ABORTED = 0, 3, 5, 6, 10

Json = dict[str, Any]


class Answer:
    """What grpcurl printed: the messages, and the status with its details."""

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
        """The one message of a call that went well."""
        if self.code != OK or len(self.messages) != 1:
            raise Failure(f"should have answered OK with one message, was {self}")
        return self.messages[0]


def json_values(text: str) -> Iterator[Json]:
    """The JSON values that stand one after another."""
    decoder = json.JSONDecoder()
    position = 0
    while (position := len(text) - len(text[position:].lstrip())) < len(text):
        value, position = decoder.raw_decode(text, position)
        yield proto_names(value)


def proto_names(value: Any) -> Any:
    """With the fields' names as in the proto files; grpcurl prints them in camelCase where reflection tells json_name."""
    if isinstance(value, dict):
        return {re.sub("[A-Z]", lambda m: "_" + m[0].lower(), key): proto_names(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [proto_names(inner) for inner in value]
    return value


class Grpcurl:
    """grpcurl against one server."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.flags = ["grpcurl", "-plaintext", "-max-time", "60"]

    def tell(self, *arguments: str) -> str:
        """What `list` or `describe` print."""
        command = [*self.flags, self.relay.address, *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL).stdout

    def call(self, method: str, *requests: Json) -> Answer:
        """Calls with the requests (of a unary method: one), and sees that the server lives on."""
        command = [*self.flags, "-format-error", "-emit-defaults", "-d", "@", self.relay.address, method]
        text = "".join(json.dumps(request) for request in requests)
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        self.relay.expect_alive()
        if done.returncode == 0:
            return Answer(OK, list(json_values(done.stdout)), {})
        # grpcurl ends with 64 and the status code where the server answered with one.
        if done.returncode < 64:
            raise Failure(f"grpcurl itself failed: {done.stderr}")
        status = next(json_values(done.stderr[done.stderr.index("{") :]))
        if status["code"] != done.returncode - 64:
            raise Failure(f"exit code {done.returncode} with {status}")
        return Answer(status["code"], list(json_values(done.stdout)), status)

    def stream_until(self, method: str, request: Json, last: str) -> list[Json]:
        """The messages of a server stream up to one that has the field `last`."""
        command = [*self.flags, "-emit-defaults", "-d", json.dumps(request), self.relay.address, method]
        got: list[Json] = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            lines: list[str] = []
            for line in process.stdout:
                lines.append(line)
                # grpcurl prints a message over many lines; the brace alone closes it.
                if line.rstrip() == "}":
                    got.extend(json_values("".join(lines)))
                    lines = []
                    if last in got[-1]:
                        process.terminate()
                        return got
        raise Failure(f"{method} ended without {last}: {got}")
