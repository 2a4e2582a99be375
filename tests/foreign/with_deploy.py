"""Checks deploy/ with the tools that read it, and that every setting in it exists."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from harness import Failure, Report, binary, run

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CHART = DEPLOY / "helm/siem-relay"
# The oldest version that the chart takes, and the newest whose schemas are here.
KUBERNETES = ("1.27", "1.36")
SECURE = {"secrets.tls": "tls", "secrets.callers": "callers"}
SHARED = {
    **SECURE,
    "mode": "shared",
    "secrets.externalIdKey": "key",
    "secrets.storage": "storage",
    "shared.logUrl": "kafka://broker:9092/events",
    "shared.databaseUrl": "postgres://siem@database/siem",
}
VARIATIONS: dict[str, dict[str, str]] = {
    "embedded": SECURE,
    "embedded, with everything": {
        **SECURE,
        "secrets.clientCertificates": "true",
        "secrets.externalIdKey": "key",
        "settings.external-id-policy": "issued",
        "settings.retry-first-ms": "7000",
        "persistence.storageClassName": "fast",
        "metrics.serviceMonitor": "true",
        "metrics.labels.team": "security",
        "networkPolicy.callers[0].namespaceSelector.matchLabels.name": "backend",
        "networkPolicy.monitoring[0].namespaceSelector.matchLabels.name": "monitoring",
        "env[0].name": "AWS_REGION",
        "env[0].value": "us-east-1",
        "imagePullSecrets[0].name": "registry",
        "nodeSelector.disk": "local",
        "tolerations[0].operator": "Exists",
        "podAnnotations.a": "b",
        "service.type": "LoadBalancer",
    },
    "without authentication": {"settings.insecure": "true", "settings.insecure-no-authentication": "true"},
    "a claim that exists": {**SECURE, "persistence.existingClaim": "mine", "networkPolicy.enabled": "false"},
    "shared": SHARED,
    "shared, with its topic": {**SHARED, "shared.createTopic": "true", "replicas": "5"},
}
REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "no TLS": ({}, "set secrets.tls and secrets.callers"),
    "another mode": ({**SECURE, "mode": "both"}, "/mode"),
    "an unknown value": ({**SECURE, "secrets.tsl": "x"}, "tsl"),
    "a setting of the chart": ({**SECURE, "settings.data-dir": "/elsewhere"}, "data-dir"),
    "no database": ({**SHARED, "shared.databaseUrl": ""}, "mode shared needs shared.databaseUrl"),
    "no key": ({**SHARED, "secrets.externalIdKey": ""}, "mode shared needs secrets.externalIdKey"),
}


def tool(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end."""
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=60)


def render(values: dict[str, str], version: str) -> subprocess.CompletedProcess[str]:
    """Renders the chart."""
    given = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    return tool("helm", "template", "relay", CHART, "--kube-version", f"{version}.0", *given)


def manifests(values: dict[str, str], version: str) -> list[dict[str, Any]]:
    """Returns the manifests of the chart."""
    rendered = render(values, version)
    if rendered.returncode != 0:
        raise Failure(rendered.stderr)
    return [document for document in yaml.safe_load_all(rendered.stdout) if document]


def settings() -> set[str]:
    """Returns the names of all variables that are settings."""
    shown = tool(binary(), "serve", "--help").stdout
    # Passwords and the key are no flags.
    only_variables = {"SIEM_RELAY_LOG_PASSWORD", "SIEM_RELAY_DATABASE_PASSWORD", "SIEM_RELAY_EXTERNAL_ID_KEY"}
    return set(re.findall(r"\bSIEM_RELAY_[A-Z_]+", shown)) | only_variables


def containers(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Returns the containers of a manifest."""
    template = manifest.get("spec", {}).get("template", {})
    yield from template.get("spec", {}).get("containers", [])


def check_chart(report: Report, known: set[str]) -> None:
    """Renders the chart with each variation, and compares it with the schemas and the program."""
    linted = tool("helm", "lint", "--strict", CHART, "--set", "secrets.tls=t", "--set", "secrets.callers=c")
    report.check(linted.returncode == 0, f"helm lint {linted.stdout if linted.returncode else ''}")
    for name, values in VARIATIONS.items():
        used: set[str] = set()
        for version in KUBERNETES:
            for manifest in manifests(values, version):
                # Its schema is not one of Kubernetes.
                if manifest["kind"] != "ServiceMonitor":
                    kubernetes_validate.validate(manifest, version, strict=True)
                for container in containers(manifest):
                    names = [each["name"] for each in container["env"]]
                    if len(names) != len(set(names)):
                        raise Failure(f"{name}: a variable is set twice: {sorted(names)}")
                    used |= {each for each in names if each.startswith("SIEM_RELAY_")}
        report.check(used <= known, f"{name}: {len(used)} settings exist {sorted(used - known) or ''}")
    for name, (values, reason) in REFUSED.items():
        rendered = render(values, KUBERNETES[-1])
        report.check(rendered.returncode != 0 and reason in rendered.stderr, f"refused: {name}", rendered.stderr)
    deployments = {
        name: next(each for each in manifests(values, KUBERNETES[-1]) if each["kind"] == "Deployment")
        for name, values in (("embedded", SECURE), ("shared", SHARED))
    }
    strategy = deployments["embedded"]["spec"]["strategy"]["type"]
    report.check(strategy == "Recreate", "one volume is never used by two pods")
    pod = deployments["shared"]["spec"]["template"]["spec"]
    report.check(pod["terminationGracePeriodSeconds"] > 30, "a shutdown has the time of shutdown-deadline-seconds")


def check_compose(report: Report, known: set[str]) -> None:
    """Compares the compose file with itself and the program; its schema is not checked."""
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    for name, service in services.items():
        wanted = set(service.get("depends_on", [])) | {service.get("network_mode", "").removeprefix("service:")} - {""}
        profiles = service["profiles"] if "profiles" in service else []
        variables = {each for each in service.get("environment") or {} if each.startswith("SIEM_RELAY_")}
        volumes = {each.split(":")[0] for each in service.get("volumes", [])}
        missing = (wanted - set(services)) | (variables - known) | (volumes - set(compose["volumes"]))
        report.check(not missing and bool(profiles or name == "postgres"), f"compose: {name} {sorted(missing) or ''}")


def check_image(report: Report, known: set[str]) -> None:
    """Checks the Dockerfile."""
    path = DEPLOY / "Dockerfile"
    # DL3006 and DL3007 are about tags: the distroless image has no versions.
    linted = tool("hadolint", "--format", "json", "--ignore", "DL3006", "--ignore", "DL3007", path)
    report.check(not json.loads(linted.stdout or "[1]"), "hadolint", linted.stdout + linted.stderr)
    text = path.read_text()
    used = set(re.findall(r"\bSIEM_RELAY_[A-Z_]+", text))
    report.check(used <= known, f"the image: {len(used)} settings exist {sorted(used - known) or ''}")
    program = Path(binary())
    for words in re.findall(r'CMD \["siem-relay", "(\w+)"\]', text) + re.findall(r'^CMD \["(\w+)"\]', text, re.MULTILINE):
        shown = tool(program, words, "--help")
        report.check(shown.returncode == 0, f"the image runs siem-relay {words}")


def check_unit(report: Report, known: set[str]) -> None:
    """Checks the systemd unit."""
    path = DEPLOY / "systemd/siem-relay.service"
    text = path.read_text()
    used = set(re.findall(r"\bSIEM_RELAY_[A-Z_]+", text)) - {"SIEM_RELAY_CONFIG"}
    report.check(used <= known, f"the unit: {len(used)} settings exist {sorted(used - known) or ''}")
    analyzed = tool("systemd-analyze", "security", "--offline=true", "--threshold=20", path)
    exposure = re.search(r"Overall exposure level for siem-relay.service: ([\d.]+)", analyzed.stdout)
    report.check(analyzed.returncode == 0 and exposure is not None, f"systemd-analyze security {exposure and exposure[1]}")
    verified = tool("systemd-analyze", "verify", "--man=no", path)
    problems = [line for line in verified.stderr.splitlines() if "/usr/local/bin/siem-relay is not executable" not in line]
    report.check(not [line for line in problems if "siem-relay.service" in line], f"systemd-analyze verify {problems or ''}")


def main() -> int:
    """Checks everything."""

    def test(report: Report) -> None:
        known = settings()
        report.section("Helm chart")
        check_chart(report, known)
        report.section("compose file")
        check_compose(report, known)
        report.section("image")
        check_image(report, known)
        report.section("systemd unit")
        check_unit(report, known)

    return run(test)


if __name__ == "__main__":
    sys.exit(main())
