"""ministack, an independent STS, IAM and Kinesis, with a customer's account and the vendor's.

What ministack 1.5 does under AUTH=true, as tried by hand:

- A 12-digit access key is the root of that account; any account springs into being so, and its
  secret is the server's root secret (`test`). IAM users made in an account have keys of their own;
  every request's SigV4 signature is verified (SignatureDoesNotMatch), and so is a session token
  (UnrecognizedClientException).
- AssumeRole looks the role up in the account that its ARN names, and evaluates its trust policy with
  the caller's principal and `sts:ExternalId`. A wrong external ID, none, an unknown role and an
  untrusted principal are one answer, AccessDenied, as at AWS; so is a caller whose own policy does not
  allow sts:AssumeRole.
- A session is bound by the role's policies and the session policy: an action or a stream outside
  them is AccessDeniedException, also where that stream does not exist. A stream that they allow and
  that does not exist is ResourceNotFoundException. A stream exists in its region only.
- A policy that is changed counts for sessions that were assumed before.
- Its authorization fails on a body in CBOR, which is how this service writes: `ministack_with_cbor.py` mends that.
- Enforcement is off unless AUTH=true; so this test first sees ministack itself refuse.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from harness import Failure, Process, clean_environment, free_port

REGION = "us-west-2"
CUSTOMER = "111122223333"
VENDOR = "444455556666"
MINISTACK = Path(__file__).with_name("ministack_with_cbor.py")

Json = dict[str, Any]


class Aws:
    """ministack, with a customer's account and the vendor's."""

    def __init__(self, directory: Path) -> None:
        port = free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        settings = {
            "AUTH": "true",
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(port),
            "SERVICES": "iam,sts,kinesis",
        }
        log, environment = directory / "ministack.log", clean_environment(**settings)
        self.process = Process([sys.executable, MINISTACK], log, environment, self._ready)
        self.iam = self.client("iam", CUSTOMER, "test")
        self.kinesis = self.client("kinesis", CUSTOMER, "test")
        vendor = self.client("iam", VENDOR, "test")
        vendor.create_user(UserName="siem-relay")
        vendor.put_user_policy(
            UserName="siem-relay", PolicyName="assume", PolicyDocument=policy("sts:AssumeRole", "arn:aws:iam::*:role/*")
        )
        key = vendor.create_access_key(UserName="siem-relay")["AccessKey"]
        self.key: tuple[str, str] = (key["AccessKeyId"], key["SecretAccessKey"])

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/_ministack/health", timeout=5) as answer:
                health = json.load(answer)
        except OSError:
            return False
        if health["auth"] != "enabled":
            raise Failure(f"ministack does not enforce: {health}")
        return True

    def client(self, service: str, key: str, secret: str, token: str | None = None) -> Any:
        """A boto3 client with these credentials."""
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            aws_session_token=token,
            config=Config(retries={"total_max_attempts": 1}),
        )

    def stream(self, name: str, shards: int) -> str:
        """Makes a stream in the customer's account; its ARN."""
        self.kinesis.create_stream(StreamName=name, ShardCount=shards)
        summary = self.kinesis.describe_stream_summary(StreamName=name)["StreamDescriptionSummary"]
        arn: str = summary["StreamARN"]
        return arn

    def role(self, name: str, external_id: str) -> str:
        """Makes the role that a customer should make for the vendor; its ARN."""
        return self.role_with(name, {"StringEquals": {"sts:ExternalId": external_id}})

    def role_with(self, name: str, condition: Json) -> str:
        """Makes a role that trusts the vendor under this condition; its ARN."""
        statement: Json = {
            "Effect": "Allow",
            "Principal": {"AWS": f"arn:aws:iam::{VENDOR}:root"},
            "Action": "sts:AssumeRole",
        }
        if condition:
            statement["Condition"] = condition
        trust = {"Version": "2012-10-17", "Statement": [statement]}
        role = self.iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))["Role"]
        self.allow_writes(name)
        arn: str = role["Arn"]
        return arn

    def allow_writes(self, role: str) -> None:
        """Lets the role write to the streams of its account."""
        document = policy(["kinesis:PutRecord", "kinesis:PutRecords"], f"arn:aws:kinesis:{REGION}:{CUSTOMER}:stream/*")
        self.iam.put_role_policy(RoleName=role, PolicyName="write", PolicyDocument=document)

    def forbid_writes(self, role: str) -> None:
        """Takes it back."""
        self.iam.delete_role_policy(RoleName=role, PolicyName="write")

    def settings(self) -> dict[str, str]:
        """The server's AWS environment."""
        return {
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": self.key[0],
            "AWS_SECRET_ACCESS_KEY": self.key[1],
            "AWS_ENDPOINT_URL_STS": self.endpoint,
            "AWS_ENDPOINT_URL_KINESIS": self.endpoint,
        }


def policy(action: str | list[str], resource: str) -> str:
    """A policy document with one statement."""
    statement = {"Effect": "Allow", "Action": action, "Resource": resource}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def denied(call: Callable[[], object]) -> str:
    """The error code of a call that AWS refuses; empty where it does not."""
    try:
        call()
    except ClientError as error:
        code: str = error.response["Error"]["Code"]
        return code
    return ""
