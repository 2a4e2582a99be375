"""Applies the CloudFormation template to ministack, an independent CloudFormation, IAM, STS and Kinesis."""

from __future__ import annotations

from typing import Any

from ministack_aws import CUSTOMER, client, error_code, vendor_key
from onboarding_cases import EXTERNAL_ID, Case, expect, expected_policies


def check_applied(endpoint: str, case: Case) -> None:
    """Checks that the template can be applied, and that the role has the policies that are printed as JSON."""
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
    """Checks that the vendor may write to the stream with the external ID, and that nothing else is allowed."""

    def at(service: str, key: str, secret: str, token: str | None = None) -> Any:
        return client(endpoint, case.region, service, key, secret, token)

    sts = at("sts", *vendor_key(endpoint, case.region, "*"))
    session = {"RoleArn": case.role_arn, "RoleSessionName": "siem-relay-acme"}
    wrong = error_code(lambda: sts.assume_role(**session, ExternalId="another-one"))
    expect(wrong == "AccessDenied", "a wrong external ID is refused", wrong)
    none = error_code(lambda: sts.assume_role(**session))
    expect(none == "AccessDenied", "so is none", none)
    given = sts.assume_role(**session, ExternalId=EXTERNAL_ID)["Credentials"]
    kinesis = at("kinesis", given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"])
    record = {"Data": b"{}\n", "PartitionKey": "k"}
    written = kinesis.put_records(StreamARN=case.stream_arn, Records=[record])
    expect(written["FailedRecordCount"] == 0, "the role writes to its stream", written)
    refused = {
        "another stream": error_code(lambda: kinesis.put_record(StreamARN=case.stream_arn + "-2", **record)),
        "reading": error_code(lambda: kinesis.describe_stream_summary(StreamARN=case.stream_arn)),
        "deleting": error_code(lambda: kinesis.delete_stream(StreamARN=case.stream_arn)),
    }
    denied = {name: "AccessDeniedException" for name in refused}
    expect(refused == denied, "nothing else is allowed", refused)
