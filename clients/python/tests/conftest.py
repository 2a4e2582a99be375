"""Fixtures: a server that answers as planned, and both kinds of clients."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "clients/python/src"), str(ROOT / "clients/scenario"), str(ROOT / "tests/foreign")]

from fake import Fake  # noqa: E402

from siem_client import Client, RetryOptions, connect, v1  # noqa: E402


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    server = Fake(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def client(fake: Fake) -> Iterator[Client]:
    with connect(f"localhost:{fake.port}", timeout=10, retry=RetryOptions(0.01, 0.1)) as made:
        yield made


GET = v1.GetRequest(organization_id="acme")
GOT = {"message": {"integration": {"organization_id": "acme"}}}


def event(number: int, device: str = "device", organization: str = "acme", size: int = 0) -> v1.Event:
    """Returns an event with a recognisable id."""
    detection = v1.IdsDetection(signature=f"detection {number}", context_json="x" * size)
    return v1.Event(
        organization_id=organization, device_id=device, event_id=f"{device}-{number}", ids_detection=detection
    )
