"""Runs the commands of a page of the documentation, and compares the answers that the page shows.

The page has blocks ```sh with commands, each of which may be followed by a block with its answer: ```json for the
messages on standard output, ```json error for the status on standard error of a command that must fail, ```text for
lines that standard output must contain. Blocks ```sh setup come before each of the others.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpcurl import json_values, proto_names
from harness import Failure

ANYTHING = "…"
BLOCK = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Step:
    """Commands, and the answer that they must have."""

    line: int
    commands: str
    kind: str = ""
    answer: str = ""


def read(page: Path) -> tuple[list[str], list[Step]]:
    """Returns the setup blocks and the steps of a page."""
    text = page.read_text(encoding="utf-8")
    setup: list[str] = []
    steps: list[Step] = []
    for block in BLOCK.finditer(text):
        language, word, content = block[1], block[2] or "", block[3]
        if (language, word) == ("sh", "setup"):
            setup.append(content)
        elif language == "sh":
            steps.append(Step(text.count("\n", 0, block.start()) + 2, content))
        elif not steps or steps[-1].kind:
            raise Failure(f"a block {language} of {page} follows no commands: {content}")
        else:
            steps[-1].kind, steps[-1].answer = f"{language} {word}".strip(), content
    return setup, steps


def differences(expected: Any, seen: Any, where: str = "") -> list[str]:
    """Describes in which of the expected values an answer differs. Further fields and elements may be there."""
    if isinstance(expected, dict) and isinstance(seen, dict):
        return [
            difference
            for name, value in expected.items()
            for difference in (
                differences(value, seen[name], f"{where}.{name}") if name in seen else [f"{where}.{name} is missing"]
            )
        ]
    if isinstance(expected, list) and isinstance(seen, list):
        if len(seen) < len(expected):
            return [f"{where} has {len(seen)} elements, and not {len(expected)}"]
        pairs = enumerate(zip(expected, seen))
        return [difference for n, (one, other) in pairs for difference in differences(one, other, f"{where}[{n}]")]
    if expected == ANYTHING and isinstance(seen, str) and seen:
        return []
    return [] if expected == seen else [f"{where} is {json.dumps(seen)}, and not {json.dumps(expected)}"]


def perform(step: Step, prologue: str, environment: Mapping[str, str]) -> None:
    """Runs the commands of a step, and fails unless their answer is that of the page."""
    script = f"set -euo pipefail\n{prologue}\n{step.commands}"
    done = subprocess.run(
        ["bash", "-c", script],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    shown = f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    if (done.returncode != 0) != (step.kind == "json error"):
        raise Failure(f"should have {'failed' if step.kind == 'json error' else 'succeeded'}: {shown}")
    if step.kind == "text":
        absent = [line for line in step.answer.splitlines() if line not in done.stdout]
        if absent:
            raise Failure(f"without {absent}: {shown}")
    elif step.kind.startswith("json"):
        text = done.stdout
        if step.kind == "json error":
            text = done.stderr[done.stderr.index("{") :]
        expected = [proto_names(value) for value in json_values(step.answer)]
        found = differences(expected, list(json_values(text)))
        if found:
            raise Failure(f"{'; '.join(found)}: {shown}")
