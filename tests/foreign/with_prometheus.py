"""A real Prometheus scrapes the service: each fault is injected, its alert fires, and clears after the repair.

Alerts whose cause only shared storage has are tested by `promtool test rules` alone: see SHARED.
"""

from __future__ import annotations

import contextlib
import json
import re
import resource
import sqlite3
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
from eve import samples
from harness import Failure, Process, Report, binary, clean_environment, free_port, run, until
from prometheus import DASHBOARD, ROOT, RULES, Prometheus
from relay import Relay
from service import TIMEOUT_SECONDS, Service, proto_event
from stand_in import VENDOR, StandIn

from siem_client.v1 import event_pb2, integration_pb2

OPERATIONS = ROOT / "docs/operations.md"
# Needs a receiver that accepts nothing for ten minutes: `promtool test rules` alone has it.
BY_RULES_ALONE = {"SiemRelayNotificationsFail"}
# Alerts that embedded storage cannot raise.
SHARED = {
    "SiemRelayNotReady",
    "SiemRelayPartitionsUnowned",
    "SiemRelayPartitionStopped",
    "SiemRelayPartitionLags",
    "SiemRelayBacklogsLarge",
}
# Row of the dashboard whose panels have data only with shared storage.
SHARED_ROW = "Shared storage"
DEVICE = "018f3c1a-0000-7000-8000-0000000000aa"
FLAGS = [
    "--failing-after-seconds", "2",
    "--retry-first-ms", "100",
    "--retry-most-ms", "500",
    "--retention-seconds", "20",
    "--events-per-second-per-organization", "40",
    "--test-interval-seconds", "0",
]  # fmt: skip


class Operation:
    """The service, its counterparts, and who watches it."""

    def __init__(self, report: Report, directory: Path, stand_in: StandIn, relay: Relay, prometheus: Prometheus) -> None:
        self.report = report
        self.directory = directory
        self.stand_in = stand_in
        self.relay = relay
        self.prometheus = prometheus
        self.service = Service(relay)
        self.seen: set[str] = set()

    def raises(self, name: str, inject: Callable[[], None], repair: Callable[[], None], **labels: str) -> None:
        """Checks that an alert does not fire, fires after `inject`, and is clear after `repair`."""
        self.prometheus.until_clear(name, **labels)
        inject()
        self.prometheus.until_firing(name, **labels)
        repair()
        self.prometheus.until_clear(name, **labels)
        self.seen.add(name)
        self.report.check(True, f"{name} fires and clears")

    def fault(self, operation: str, effect: dict[str, object]) -> None:
        """Sets a fault of all calls of an operation."""
        self.stand_in.control("POST", "faults", {"operation": operation, "when": "before", "effect": effect})

    def clear(self) -> None:
        """Ends all faults."""
        self.stand_in.control("DELETE", "faults")

    def event(self, organization: str = "acme") -> event_pb2.Event:
        """Returns an event."""
        return proto_event(organization, DEVICE, samples()[0])

    def publish(self, count: int = 1, organization: str = "acme") -> event_pb2.PublishResponse:
        """Publishes events in one request, which may be rejected."""
        request = event_pb2.PublishRequest(events=[self.event(organization) for _ in range(count)])
        return self.service.events.Publish(request, timeout=TIMEOUT_SECONDS)


def check_rules(report: Report) -> None:
    """Checks the rules by promtool, and that each has its section in the runbook."""
    report.section("rules")
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]):
        done = subprocess.run(["promtool", *command], cwd=RULES.parent, capture_output=True, text=True)
        report.check(done.returncode == 0, f"promtool {' '.join(command)}", done.stdout + done.stderr)
    text = RULES.read_text()
    alerts = re.findall(r"- alert: (\w+)", text)
    anchors = re.findall(r"runbook: docs/operations\.md#(\S+)", text)
    report.check(len(alerts) == len(anchors) > 20, "each alert has a runbook", alerts)
    titles = re.findall(r"^#+ (.+)$", OPERATIONS.read_text(), re.MULTILINE)
    known = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    report.check(set(anchors) <= known, "each runbook is a section of docs/operations.md", set(anchors) - known)
    page = OPERATIONS.read_text()
    unnamed = [alert for alert in alerts if f"`{alert}`" not in page]
    report.check(not unnamed, "docs/operations.md names each alert", unnamed)
    tested = re.findall(r"- name: (\w+)", (RULES.parent / "alerts.test.yml").read_text())
    report.check(sorted(tested) == sorted(alerts), "each alert has a test of promtool", set(alerts) ^ set(tested))


def raise_alerts(operation: Operation) -> None:
    """Injects what the stand-in and the machine can do."""
    report, stand_in = operation.report, operation.stand_in
    report.section("alerts")

    def organizations_fail() -> None:
        for number in range(3):
            operation.service.configure(f"many-{number}", *stand_in_arns("none"), f"external-id-of-many-{number}")
            operation.publish(1, f"many-{number}")

    def organizations_recover() -> None:
        for number in range(3):
            delete(operation.service, f"many-{number}")

    operation.raises("SiemRelayManyIntegrationsFail", organizations_fail, organizations_recover)

    def role_is_deleted() -> None:
        stand_in.control("DELETE", "roles?arn=" + stand_in_arns("acme")[1])
        stand_in.control("DELETE", "sessions")
        operation.publish()

    def role_is_back() -> None:
        stand_in.role("acme", "external-id-of-acme")

    operation.raises(
        "SiemRelayOrganizationStuck",
        role_is_deleted,
        role_is_back,
        organization="acme",
        status="UNAUTHORIZED",
        reason="ASSUME_ROLE_DENIED",
    )

    def aws_fails() -> None:
        operation.fault("PutRecords", {"type": "error", "code": "InternalFailure", "status": 500, "message": ""})
        operation.publish(5)

    operation.raises("SiemRelayAwsErrors", aws_fails, operation.clear)
    operation.raises("SiemRelayEventsWait", aws_fails, operation.clear)

    def throttled() -> None:
        operation.fault("PutRecords", {"type": "fail_records", "probability": 1.0, "seed": 1})
        operation.publish(5)

    operation.raises("SiemRelayThrottled", throttled, operation.clear)
    # Retention is 20 s here.
    operation.raises("SiemRelayEventsExpire", aws_fails, operation.clear)

    def own_credentials_end() -> None:
        credentials(stand_in, "another-secret-than-the-service-has-00000")
        stand_in.control("DELETE", "sessions")
        operation.publish()

    def own_credentials_return() -> None:
        stand_in.vendor()

    operation.raises("SiemRelayDeliveryNotServing", own_credentials_end, own_credentials_return)
    operation.raises("SiemRelayEventsRejected", lambda: flood(operation), lambda: None, reason="RATE_LIMITED")

    locks: list[sqlite3.Connection] = []

    def lock() -> None:
        locks.append(sqlite3.connect(operation.directory / "data/siem-relay.sqlite", check_same_thread=False, timeout=30))
        locks[-1].execute("BEGIN IMMEDIATE")

    def unlock() -> None:
        while locks:
            locks.pop().close()

    def database_is_locked() -> None:
        # Deliveries cannot be recorded meanwhile.
        operation.fault("PutRecords", {"type": "delay", "milliseconds": 1000})
        operation.publish()
        lock()

    def database_is_free() -> None:
        unlock()
        operation.clear()

    operation.raises("SiemRelayDeliveriesNotRecorded", database_is_locked, database_is_free)

    def disk_is_slow() -> None:
        lock()
        timer = threading.Timer(3, unlock)
        timer.start()
        operation.publish()
        timer.join()

    operation.raises("SiemRelayAcksSlow", disk_is_slow, lambda: None)


def flood(operation: Operation) -> None:
    """Publishes more events than an organization may."""
    for _ in range(3):
        operation.publish(100)


def stand_in_arns(name: str) -> tuple[str, str]:
    """Returns the ARNs of stream and role of a customer."""
    return f"arn:aws:kinesis:us-west-2:111122223333:stream/{name}", f"arn:aws:iam::111122223333:role/{name}"


def credentials(stand_in: StandIn, secret: str) -> None:
    """Gives the service's access key another secret."""
    body = {"access_key_id": "AKIAIOSFODNN7EXAMPLE", "secret_access_key": secret}
    stand_in.control("PUT", "credentials", {**body, "principal_arn": f"arn:aws:iam::{VENDOR}:user/siem-relay"})


def delete(service: Service, organization: str) -> None:
    """Deletes an integration."""
    request = integration_pb2.DeleteRequest(organization_id=organization)
    service.integrations.Delete(request, timeout=TIMEOUT_SECONDS)


def check_panels(operation: Operation) -> None:
    """Evaluates every query of the dashboard, each of which must have data."""
    operation.report.section("dashboard")
    row = ""
    queries: list[tuple[str, str, str]] = []
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        for target in panel.get("targets", []):
            queries.append((row, panel["title"], target["expr"]))
    operation.report.check(len(queries) > 40, "there are queries", len(queries))
    for row, title, query in queries:
        text = query.replace("$__rate_interval", "1m").replace("$instance", ".*")
        if "siem_relay_organization_" in query:
            # There is a panel for what is wrong; something was.
            text = re.sub(r"(siem_relay_organization_\w+)", r"last_over_time(\1[10m])", text)
        found = operation.prometheus.query(text)
        if row == SHARED_ROW:
            operation.report.check(not found, f"{row}: {title} has data only with shared storage", found)
        elif not found:
            raise Failure(f"{row}: {title}: no data for {text}")
    operation.report.check(True, f"{len(queries)} queries have data")


def raise_of_other_services(operation: Operation, aws: dict[str, str]) -> None:
    """Faults of services beside the first: a small disk, TLS files, descriptors, crashes."""
    prometheus, directory = operation.prometheus, operation.directory
    first = int(prometheus_port(operation.relay))

    other = directory / "other"
    other.mkdir()
    certificate(other, 1)
    port = free_port()
    flags: list[str | Path] = ["--tls-cert", other / "server.pem", "--tls-key", other / "server.key", "--metrics-listen", str(port)]

    relays: list[Process] = []

    def start() -> None:
        command: list[str | Path] = [binary(), "serve", "--listen", f"127.0.0.1:{free_port()}"]
        command += ["--data-dir", other / "data", *flags]
        relays.append(Process(command, other / "serve.log", clean_environment(**aws), lambda: ready(port)))

    start()
    operation.raises(
        "SiemRelayCertificateExpires",
        lambda: prometheus.scrape([first, port]),
        lambda: certificate(other, 90),
    )
    key = (other / "server.key").read_text()
    operation.raises(
        "SiemRelayTlsFilesRefused",
        lambda: replace(other / "server.key", "no key"),
        lambda: replace(other / "server.key", key),
    )
    operation.raises("SiemRelayDown", relays.pop().kill, start)

    def crash() -> None:
        for _ in range(4):
            relays.pop().kill()
            start()
            until(lambda: True if prometheus.query(f'up{{instance="127.0.0.1:{port}"}} == 1') else None, 30, "it is scraped")

    operation.raises("SiemRelayRestarts", crash, lambda: None)
    relays.pop().kill()
    prometheus.scrape([first])


def raise_of_a_small_disk(operation: Operation, aws: dict[str, str]) -> None:
    """Fills the disk of another service."""
    prometheus = operation.prometheus
    first, port = int(prometheus_port(operation.relay)), free_port()
    directory = operation.directory / "small"
    data = directory / "data"
    data.mkdir(parents=True)
    mount = f'mount -t tmpfs -o size=100m,mode=0700 tmpfs {data} && exec "$@"'
    launcher = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    with Relay(directory, aws, "--metrics-listen", str(port), launcher=launcher) as relay:
        service = Service(relay)
        stream, role = operation.stand_in.customer("small", "external-id-of-small")
        service.configure("small", stream, role, "external-id-of-small")
        # Its disk is in a namespace of its own.
        fill = Path(f"/proc/{relay.popen.pid}/root{data}/fill")

        def full() -> None:
            with open(fill, "wb") as file, contextlib.suppress(OSError):
                for _ in range(200):
                    file.write(bytes(1 << 20))

        prometheus.scrape([first, port])
        operation.raises("SiemRelayPublishNotServing", full, fill.unlink, service="publish")
        # The disk of this machine may be nearly full as well.
        operation.raises("SiemRelayDiskLow", full, fill.unlink, instance=f"127.0.0.1:{port}")

        def publish_to_full() -> None:
            full()
            until(lambda: refused(service, operation), 60, "a publish is refused")

        operation.raises("SiemRelayPublishesFail", publish_to_full, fill.unlink, reason="DISK_FULL")
    prometheus.scrape([first])


def refused(service: Service, operation: Operation) -> bool | None:
    """Publishes an event; returns True if the request is refused."""
    try:
        service.events.Publish(event_pb2.PublishRequest(events=[operation.event("small")]), timeout=TIMEOUT_SECONDS)
    except grpc.RpcError as error:
        return True if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED else None
    return None


def raise_of_descriptors(operation: Operation) -> None:
    """Lowers the limit on open files of the running service."""
    pid = operation.relay.popen.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)

    def lower() -> None:
        open_now = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (int(open_now / 0.93), before[1]))

    def restore() -> None:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

    operation.raises("SiemRelayFileDescriptors", lower, restore)


def ready(port: int) -> bool:
    """Returns whether /readyz of a service answers 200."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def prometheus_port(relay: Relay) -> str:
    """Returns the port of the service's metrics."""
    return relay.command[relay.command.index("--metrics-listen") + 1]


def replace(path: Path, text: str) -> None:
    """Replaces a file that only its owner may read."""
    new = path.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(text)
    new.replace(path)


def certificate(directory: Path, days: int) -> None:
    """Makes a certificate for localhost, signed by itself, and its key."""
    made = directory / f"made-{days}"
    made.mkdir()
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-days", str(days)]
    command += ["-keyout", str(made / "server.key"), "-out", str(made / "server.pem")]
    subprocess.run(command, check=True, capture_output=True)
    for name in ("server.pem", "server.key"):
        replace(directory / name, (made / name).read_text())


def test(report: Report) -> None:
    """Runs everything."""
    check_rules(report)
    with tempfile.TemporaryDirectory() as temporary, StandIn(Path(temporary)) as stand_in:
        directory = Path(temporary)
        aws = stand_in.vendor()
        stream, role = stand_in.customer("acme", "external-id-of-acme")
        port = free_port()
        with (
            Relay(directory, aws, *FLAGS, "--metrics-listen", str(port)) as relay,
            Prometheus(directory, [port]) as prometheus,
        ):
            operation = Operation(report, directory, stand_in, relay, prometheus)
            operation.service.configure("acme", stream, role, "external-id-of-acme")
            operation.publish(5)
            until(lambda: True if prometheus.query("siem_relay_events_delivered_total == 5") else None, 60, "a scrape")
            raise_alerts(operation)
            check_panels(operation)
            raise_of_other_services(operation, aws)
            raise_of_a_small_disk(operation, aws)
            raise_of_descriptors(operation)
            alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
            others = operation.seen | SHARED | BY_RULES_ALONE
            report.check(alerts == others, "every other alert was raised", alerts - others)
            relay.expect_alive()


if __name__ == "__main__":
    sys.exit(run(test))
