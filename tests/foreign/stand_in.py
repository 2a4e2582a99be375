"""The stand-in for AWS as a process, and the accounts in it."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from harness import Process, accepts, binary, clean_environment, free_port, policy

ACCOUNT = "111122223333"
VENDOR = "444455556666"


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
        self.control("PUT", "streams", {"stream_arn": stream, "shards": 2})
        return stream, self.role(name, external_id)

    def role(self, name: str, external_id: str) -> str:
        """Makes or restores a customer's role; returns its ARN."""
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
        self.control(
            "PUT",
            "roles",
            {
                "role_arn": role,
                "trust_policy": json.dumps(trust),
                "permission_policy": policy(["kinesis:PutRecord", "kinesis:PutRecords"], stream),
            },
        )
        return role

    def events(self, stream: str) -> list[dict[str, Any]]:
        """Returns the CloudEvents in a stream."""
        lines = self.control("GET", f"records?arn={urllib.parse.quote(stream)}").splitlines()
        return [json.loads(json.loads(line)["text"]) for line in lines]
