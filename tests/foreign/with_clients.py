"""Runs the Python and TypeScript smoke tests against the built server and its AWS stand-in.

Each client configures its own integration, whose stream must then have the published events.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from harness import Process, Report, accepts, binary, clean_environment, free_port, policy, run
from relay import Relay

ROOT = Path(__file__).resolve().parents[2]
ACCOUNT = "111122223333"
VENDOR = "444455556666"
CLIENTS: dict[str, list[str | Path]] = {
    "python": [ROOT / "clients/python/.venv/bin/python", ROOT / "clients/python/smoke.py"],
    "typescript": ["node", ROOT / "clients/typescript/dist/smoke.js"],
}
SMOKE_SECONDS = 180


class StandIn(Process):
    """`siem-relay sandbox --aws-only` with its control endpoint."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        super().__init__(
            [binary(), "sandbox", "--aws-only", "--port", str(self.port)],
            directory / "stand-in.log",
            clean_environment(),
            lambda: accepts(self.port),
        )

    def control(self, method: str, path: str, body: dict[str, Any] | None = None) -> str:
        """Calls the control endpoint; returns the answer's text."""
        request = urllib.request.Request(
            f"{self.endpoint}/_control/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            text: str = answer.read().decode()
            return text

    def vendor(self) -> dict[str, str]:
        """Makes the service's own credentials; returns the server's environment variables for AWS."""
        key, secret = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
        self.control(
            "PUT",
            "credentials",
            {
                "access_key_id": key,
                "secret_access_key": secret,
                "principal_arn": f"arn:aws:iam::{VENDOR}:user/siem-relay",
                "policy": policy("sts:AssumeRole", "arn:aws:iam::*:role/*"),
            },
        )
        return {
            "AWS_REGION": "us-west-2",
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_ENDPOINT_URL_STS": self.endpoint,
            "AWS_ENDPOINT_URL_KINESIS": self.endpoint,
        }

    def customer(self, name: str, external_id: str) -> tuple[str, str]:
        """Makes a customer's stream and role; returns their ARNs."""
        stream = f"arn:aws:kinesis:us-west-2:{ACCOUNT}:stream/{name}"
        role = f"arn:aws:iam::{ACCOUNT}:role/{name}"
        trust = {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": {"AWS": f"arn:aws:iam::{VENDOR}:root"},
                    "Action": "sts:AssumeRole",
                    "Condition": {"StringEquals": {"sts:ExternalId": external_id}},
                }
            ],
        }
        self.control("PUT", "streams", {"stream_arn": stream, "shards": 2})
        self.control(
            "PUT",
            "roles",
            {
                "role_arn": role,
                "trust_policy": json.dumps(trust),
                "permission_policy": policy(["kinesis:PutRecord", "kinesis:PutRecords"], stream),
            },
        )
        return stream, role

    def events(self, stream: str) -> list[dict[str, Any]]:
        """Returns the CloudEvents in a stream."""
        lines = self.control("GET", f"records?arn={urllib.parse.quote(stream)}").splitlines()
        return [json.loads(json.loads(line)["text"]) for line in lines]


def smoke(report: Report, stand_in: StandIn, relay: Relay, name: str) -> None:
    """Runs one client's test, and checks its events in the stream."""
    report.section(f"{name} client")
    external_id = f"example-external-id-of-{name}"
    stream, role = stand_in.customer(name, external_id)
    environment = clean_environment(
        SIEM_RELAY_ADDRESS=f"http://{relay.address}",
        SMOKE_ORGANIZATION=f"smoke-{name}",
        SMOKE_STREAM_ARN=stream,
        SMOKE_ROLE_ARN=role,
        SMOKE_EXTERNAL_ID=external_id,
    )
    done = subprocess.run(
        CLIENTS[name],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SMOKE_SECONDS,
        check=False,
    )
    print(done.stdout)
    report.check(done.returncode == 0, "its smoke test passes", done.returncode)
    relay.expect_alive()
    events = stand_in.events(stream)
    detections = {event["sequence"]: event["data"]["signature"] for event in events if "sequence" in event}
    wanted = {f"{n + 1:020}": f"Example détection {n}" for n in range(3)}
    report.check(detections == wanted, "its three detections are in its stream", detections)
    tests = [event for event in events if event["type"] == "TYPE_TEST"]
    report.check(len(tests) == 1, "so does its test event", events)


def test(report: Report) -> None:
    """Runs both clients."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with StandIn(directory) as stand_in, Relay(directory, stand_in.vendor()) as relay:
            for client in CLIENTS:
                smoke(report, stand_in, relay, client)
            report.section("shutdown")
            code = relay.stop()
            report.check(code == 0, "the server ends with 0 after SIGTERM", code)
            code = stand_in.stop()
            report.check(code == 0, "so does the stand-in", code)


if __name__ == "__main__":
    sys.exit(run(test))
