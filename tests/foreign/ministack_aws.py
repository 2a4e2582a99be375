"""ministack, an independent AWS, with a customer's account and the vendor's.

Observed behaviour of ministack 1.5 under AUTH=true:

- A 12-digit access key is the root of that account, which exists from then on; its secret is the
  server's root secret (`test`). IAM users have keys of their own. Every SigV4 signature is verified
  (SignatureDoesNotMatch), and so is every session token (UnrecognizedClientException).
- AssumeRole looks up the role in the account of its ARN, and evaluates its trust policy with the
  caller's principal and `sts:ExternalId`. A wrong external ID, none, an unknown role, an untrusted
  principal, and a caller whose policy does not allow sts:AssumeRole get AccessDenied, as at AWS.
- A session is limited by the role's policies and the session policy: other actions and streams get
  AccessDeniedException, whether or not the stream exists. An allowed stream that does not exist gets
  ResourceNotFoundException. A stream exists in its region only.
- A changed policy applies to existing sessions.
- Authorization fails on a CBOR body, which this service sends: `ministack_with_cbor.py` fixes that.
- Nothing is enforced without AUTH=true; so tests check first that ministack itself refuses.
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
from harness import Failure, Process, clean_environment, free_port, policy

REGION = "us-west-2"
CUSTOMER = "111122223333"
VENDOR = "444455556666"
MINISTACK = Path(__file__).with_name("ministack_with_cbor.py")

Json = dict[str, Any]


class Ministack(Process):
    """ministack with enforcement."""

    def __init__(self, directory: Path, command: list[str | Path], services: str) -> None:
        port = free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        environment = clean_environment(
            AUTH="true", BIND_HOST="127.0.0.1", GATEWAY_PORT=str(port), SERVICES=services
        )
        super().__init__(command, directory / "ministack.log", environment, self._ready)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/_ministack/health", timeout=5) as answer:
                health = json.load(answer)
        except OSError:
            return False
        if health["auth"] != "enabled":
            raise Failure(f"ministack does not enforce: {health}")
        return True


def client(endpoint: str, region: str, service: str, key: str, secret: str, token: str | None = None) -> Any:
    """Returns a boto3 client with these credentials, without retries."""
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        aws_session_token=token,
        config=Config(retries={"total_max_attempts": 1}),
    )


def vendor_key(endpoint: str, region: str, roles: str) -> tuple[str, str]:
    """Makes a user of the vendor that may assume roles; returns its access key and secret."""
    iam = client(endpoint, region, "iam", VENDOR, "test")
    iam.create_user(UserName="siem-relay")
    document = policy("sts:AssumeRole", roles)
    iam.put_user_policy(UserName="siem-relay", PolicyName="assume", PolicyDocument=document)
    key = iam.create_access_key(UserName="siem-relay")["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]


def error_code(call: Callable[[], object]) -> str:
    """Returns the error code of a call that AWS refuses, or OK."""
    try:
        call()
    except ClientError as error:
        code: str = error.response["Error"]["Code"]
        return code
    return "OK"


class Aws:
    """A running ministack, with a customer's account and the vendor's."""

    def __init__(self, directory: Path) -> None:
        self.process = Ministack(directory, [sys.executable, MINISTACK], "iam,sts,kinesis")
        self.endpoint = self.process.endpoint
        self.iam = self.client("iam", CUSTOMER, "test")
        self.kinesis = self.client("kinesis", CUSTOMER, "test")
        self.key = vendor_key(self.endpoint, REGION, "arn:aws:iam::*:role/*")

    def client(self, service: str, key: str, secret: str, token: str | None = None) -> Any:
        """Returns a boto3 client with these credentials."""
        return client(self.endpoint, REGION, service, key, secret, token)

    def stream(self, name: str, shards: int) -> str:
        """Makes a stream in the customer's account; returns its ARN."""
        self.kinesis.create_stream(StreamName=name, ShardCount=shards)
        summary = self.kinesis.describe_stream_summary(StreamName=name)["StreamDescriptionSummary"]
        arn: str = summary["StreamARN"]
        return arn

    def role(self, name: str, external_id: str) -> str:
        """Makes the role that a customer should make for the vendor; returns its ARN."""
        return self.role_with(name, {"StringEquals": {"sts:ExternalId": external_id}})

    def role_with(self, name: str, condition: Json) -> str:
        """Makes a role that trusts the vendor under this condition; returns its ARN."""
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
        """Allows a role to write to the streams of its account."""
        document = policy(["kinesis:PutRecord", "kinesis:PutRecords"], f"arn:aws:kinesis:{REGION}:{CUSTOMER}:stream/*")
        self.iam.put_role_policy(RoleName=role, PolicyName="write", PolicyDocument=document)

    def forbid_writes(self, role: str) -> None:
        """Forbids a role to write."""
        self.iam.delete_role_policy(RoleName=role, PolicyName="write")

    def settings(self) -> dict[str, str]:
        """Returns the server's environment variables for AWS."""
        return {
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": self.key[0],
            "AWS_SECRET_ACCESS_KEY": self.key[1],
            "AWS_ENDPOINT_URL_STS": self.endpoint,
            "AWS_ENDPOINT_URL_KINESIS": self.endpoint,
        }
