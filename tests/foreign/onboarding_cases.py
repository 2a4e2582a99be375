"""Calls of `siem-relay onboarding`, and the policies expected of them, derived independently of its code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from harness import Failure

Json = dict[str, Any]

CUSTOMER = "111122223333"
VENDOR = "444455556666"
EXTERNAL_ID = "example/external-id:of=acme,1"


def expect(ok: bool, what: str, seen: object = "") -> None:
    """Fails unless `ok`."""
    if not ok:
        raise Failure(f"{what}; seen: {seen}")


@dataclass
class Case:
    """Options of a call, and the files that it wrote."""

    name: str
    stream: str = "detections"
    role: str = "siem-delivery"
    region: str = "eu-west-1"
    partition: str = "aws"
    principal: str = f"arn:aws:iam::{VENDOR}:role/siem-relay"
    shards: int | None = None
    key: str | None = None
    files: dict[str, str] = field(default_factory=dict)

    @property
    def stream_arn(self) -> str:
        """ARN of the stream."""
        return f"arn:{self.partition}:kinesis:{self.region}:{CUSTOMER}:stream/{self.stream}"

    @property
    def role_arn(self) -> str:
        """ARN of the role."""
        return f"arn:{self.partition}:iam::{CUSTOMER}:role/{self.role}"

    @property
    def key_arn(self) -> str:
        """ARN of the customer's key, if the case has one."""
        return f"arn:{self.partition}:kms:{self.region}:{CUSTOMER}:key/{self.key}"

    def arguments(self) -> list[str]:
        """Options on the command line."""
        given = [
            f"--stream={self.stream}", f"--region={self.region}", f"--account={CUSTOMER}",
            f"--role-name={self.role}", f"--principal={self.principal}",
        ]  # fmt: skip
        if self.shards:
            given.append(f"--shards={self.shards}")
        if self.key:
            given.append(f"--kms-key-arn={self.key_arn}")
        return given


KEY = "0b5ecb46-9d1f-4b4c-8a3c-1d9d3d4b8a11"
CASES = [
    Case("on demand, the key that AWS manages"),
    Case("shards and the customer's key", shards=4, key=KEY),
    Case("an account as principal", principal=VENDOR, shards=10000),
    Case("GovCloud", region="us-gov-west-1", partition="aws-us-gov",
         principal=f"arn:aws-us-gov:iam::{VENDOR}:user/relay", key=KEY),
    Case("China", region="cn-north-1", partition="aws-cn", principal=f"arn:aws-cn:iam::{VENDOR}:root", shards=1,
         key="mrk-1234abcd12ab34cd56ef1234567890ab"),
    Case("names that look like numbers", stream="012", role="1e5"),
    Case("names that look like nothing", stream="null", role="no"),
    Case("names of punctuation", stream=".-_", role="=+,.@-"),
    Case("the longest names", stream="s" * 128, role="r" * 64),
    Case("a path with template syntax",
         principal=f"arn:aws:iam::{VENDOR}:role/'a\"b\\c/${{d}}/%{{e}}/$${{f}}/{{{{g}}}}/#h/siem-relay"),
]  # fmt: skip


def expected_policies(case: Case) -> tuple[Json, Json]:
    """Returns the expected trust and permission policies."""
    trust = {
        "Sid": "AssumeRoleWithExternalId",
        "Effect": "Allow",
        "Principal": {"AWS": case.principal},
        "Action": ["sts:AssumeRole"],
        "Condition": {"StringEquals": {"sts:ExternalId": EXTERNAL_ID}},
    }
    permission: list[Json] = [
        {
            "Sid": "WriteRecords",
            "Effect": "Allow",
            "Action": ["kinesis:PutRecord", "kinesis:PutRecords"],
            "Resource": case.stream_arn,
        }
    ]
    if case.key:
        context = {"kms:EncryptionContext:aws:kinesis:arn": case.stream_arn}
        permission.append(
            {
                "Sid": "EncryptRecords",
                "Effect": "Allow",
                "Action": ["kms:GenerateDataKey"],
                "Resource": case.key_arn,
                "Condition": {"StringEquals": context},
            }
        )
    version = "2012-10-17"
    return {"Version": version, "Statement": [trust]}, {"Version": version, "Statement": permission}
