"""ministack, an independent CloudFormation, IAM, STS and Kinesis, to which the template is applied."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from onboarding_cases import CUSTOMER, EXTERNAL_ID, VENDOR, Case, Failure, environment, expect, expected_policies

START_SECONDS = 60


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def ministack(directory: Path) -> Iterator[str]:
    """ministack that enforces; its endpoint."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    settings = environment(
        AUTH="true", BIND_HOST="127.0.0.1", GATEWAY_PORT=str(port), SERVICES="iam,sts,kinesis,cloudformation"
    )
    log = directory / "ministack.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(["ministack"], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=settings)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_healthy(endpoint):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failure(f"ministack does not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield endpoint
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_healthy(endpoint: str) -> bool:
    """Whether ministack answers and enforces."""
    try:
        with urllib.request.urlopen(f"{endpoint}/_ministack/health", timeout=5) as answer:
            health = json.load(answer)
    except OSError:
        return False
    expect(health["auth"] == "enabled", "ministack enforces", health)
    return True


def client(endpoint: str, region: str, service: str, key: str, secret: str, token: str | None = None) -> Any:
    """A boto3 client with these credentials."""
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        aws_session_token=token,
        config=Config(retries={"total_max_attempts": 1}),
    )


def code_of(call: Any, **arguments: Any) -> str:
    """The error code of a call, or OK."""
    try:
        call(**arguments)
    except ClientError as error:
        code: str = error.response["Error"]["Code"]
        return code
    return "OK"


def check_applied(endpoint: str, case: Case) -> None:
    """The template can be applied, and the role has the policies that are printed as JSON."""
    stacks = client(endpoint, case.region, "cloudformation", CUSTOMER, "test")
    stacks.create_stack(
        StackName="siem-relay",
        TemplateBody=case.files["siem-relay.cfn.yaml"],
        Capabilities=["CAPABILITY_NAMED_IAM"],
        Parameters=[{"ParameterKey": "ExternalId", "ParameterValue": EXTERNAL_ID}],
    )
    stacks.get_waiter("stack_create_complete").wait(
        StackName="siem-relay", WaiterConfig={"Delay": 1, "MaxAttempts": 60}
    )
    stack = stacks.describe_stacks(StackName="siem-relay")["Stacks"][0]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    expect(outputs == {"StreamArn": case.stream_arn, "RoleArn": case.role_arn}, "the outputs are the ARNs", outputs)
    shown = {p["ParameterKey"]: p["ParameterValue"] for p in stack["Parameters"]}
    expect(shown["ExternalId"] != EXTERNAL_ID, "the stack does not show the external ID", shown)

    iam = client(endpoint, case.region, "iam", CUSTOMER, "test")
    trust, permission = expected_policies(case)
    seen = iam.get_role(RoleName=case.role)["Role"]["AssumeRolePolicyDocument"]
    expect(seen == trust, "the role's trust policy is the printed one", seen)
    seen = iam.get_role_policy(RoleName=case.role, PolicyName="siem-relay")["PolicyDocument"]
    expect(seen == permission, "so is its permission policy", seen)


def check_enforced(endpoint: str, case: Case) -> None:
    """The external ID lets the vendor write to the stream, and nothing else goes."""

    def at(service: str, key: str, secret: str, token: str | None = None) -> Any:
        return client(endpoint, case.region, service, key, secret, token)

    vendor = at("iam", VENDOR, "test")
    vendor.create_user(UserName="siem-relay")
    anything = {"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*"}
    vendor.put_user_policy(
        UserName="siem-relay",
        PolicyName="assume",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": anything}),
    )
    key = vendor.create_access_key(UserName="siem-relay")["AccessKey"]
    sts = at("sts", key["AccessKeyId"], key["SecretAccessKey"])
    session = {"RoleArn": case.role_arn, "RoleSessionName": "siem-relay-acme"}
    wrong = code_of(sts.assume_role, **session, ExternalId="another-one")
    expect(wrong == "AccessDenied", "a wrong external ID is refused", wrong)
    none = code_of(sts.assume_role, **session)
    expect(none == "AccessDenied", "so is none", none)
    given = sts.assume_role(**session, ExternalId=EXTERNAL_ID)["Credentials"]
    kinesis = at("kinesis", given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"])
    written = kinesis.put_records(StreamARN=case.stream_arn, Records=[{"Data": b"{}\n", "PartitionKey": "k"}])
    expect(written["FailedRecordCount"] == 0, "the role writes to its stream", written)
    record = {"Data": b"{}\n", "PartitionKey": "k"}
    refused = {
        "another stream": code_of(kinesis.put_record, StreamARN=case.stream_arn + "-2", **record),
        "reading": code_of(kinesis.describe_stream_summary, StreamARN=case.stream_arn),
        "deleting": code_of(kinesis.delete_stream, StreamARN=case.stream_arn),
    }
    denied = {name: "AccessDeniedException" for name in refused}
    expect(refused == denied, "nothing else is allowed", refused)
