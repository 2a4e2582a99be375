"""A real Prometheus that scrapes the service, with the rules of deploy/ on a shorter time scale."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from harness import Failure, Process, accepts, clean_environment, free_port, until

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy/prometheus/alerts.yml"
DASHBOARD = ROOT / "deploy/grafana/siem-relay.json"
# Range that takes the place of each range of the rules, in seconds: some scrapes.
RANGE = 5
ALERT_SECONDS = 90
# Limits that a test does not wait for or does not reach: the text of a rule, and what takes its place.
LIMITS = {
    "siem_relay_pending_oldest_age_seconds > 3600": "siem_relay_pending_oldest_age_seconds > 3",
    "siem_relay_organization_oldest_age_seconds > 3600": "siem_relay_organization_oldest_age_seconds > 3",
    "siem_relay_ledger_flush_age_seconds > 60": "siem_relay_ledger_flush_age_seconds > 2",
}


def scaled_rules() -> str:
    """Returns the rules with short times. Everything else is as in deploy/."""
    text = re.sub(r"\bfor: \d+[smh]\b", "for: 1s", RULES.read_text())
    text = re.sub(r"\[\d+[smh]\]", f"[{RANGE}s]", text)
    for before, after in LIMITS.items():
        if before not in text:
            raise Failure(f"there is no {before!r} in {RULES}")
        text = text.replace(before, after)
    return text


class Prometheus(Process):
    """Prometheus on a free port of loopback. `targets` may be added while it runs."""

    def __init__(self, directory: Path, targets: list[int]) -> None:
        self.port = free_port()
        self.targets = directory / "targets.json"
        self.scrape(targets)
        (directory / "rules.yml").write_text(scaled_rules())
        (directory / "prometheus.yml").write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
                    "rule_files": ["rules.yml"],
                    "scrape_configs": [
                        {
                            "job_name": "siem-relay",
                            "file_sd_configs": [{"files": [str(self.targets)], "refresh_interval": "1s"}],
                        }
                    ],
                }
            )
        )
        super().__init__(
            [
                "prometheus",
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'prometheus'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            directory / "prometheus.log",
            clean_environment(),
            lambda: accepts(self.port),
        )

    def scrape(self, ports: list[int]) -> None:
        """Scrapes these ports of loopback from now on."""
        new = self.targets.with_suffix(".new")
        new.write_text(json.dumps([{"targets": [f"127.0.0.1:{port}" for port in ports]}]))
        new.replace(self.targets)

    def get(self, path: str, **parameters: str) -> Any:
        """Calls the HTTP API; returns the answer's data."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[Any]:
        """Evaluates an expression now."""
        found: list[Any] = self.get("query", query=expression)["result"]
        return found

    def firing(self) -> dict[str, list[dict[str, str]]]:
        """Returns the labels of the alerts that fire, by name."""
        alerts: dict[str, list[dict[str, str]]] = {}
        for alert in self.get("alerts")["alerts"]:
            if alert["state"] == "firing":
                alerts.setdefault(alert["labels"]["alertname"], []).append(alert["labels"])
        return alerts

    def until_firing(self, name: str, **labels: str) -> None:
        """Waits until an alert with these labels fires."""

        def fires() -> bool | None:
            found = self.firing().get(name, [])
            return True if any(labels.items() <= alert.items() for alert in found) else None

        until(fires, ALERT_SECONDS, f"{name} fires; firing: {sorted(self.firing())}")

    def until_clear(self, name: str, **labels: str) -> None:
        """Waits until no alert with these labels fires."""

        def is_clear() -> bool | None:
            found = self.firing().get(name, [])
            return None if any(labels.items() <= alert.items() for alert in found) else True

        until(is_clear, ALERT_SECONDS, f"{name} is clear")
