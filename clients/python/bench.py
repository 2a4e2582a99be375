"""Measures the publisher: `bench.py ADDRESS EVENTS [--async]`, against a server with the integration `acme`.

Prints the throughput from the first `send` to the last answer, and the growth of the peak of this process's memory.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
import uuid

import siem_client
import siem_client.aio
from siem_client import v1

DEVICES = [str(uuid.UUID(int=number)) for number in range(100)]


def event(number: int) -> v1.Event:
    """Returns a detection of about 300 bytes."""
    return v1.Event(
        organization_id="acme",
        network_id=DEVICES[0],
        device_id=DEVICES[number % len(DEVICES)],
        observed_time=siem_client.timestamp(),
        ids_detection=v1.IdsDetection(
            src_ip="192.0.2.7",
            src_port=1024 + number % 60_000,
            dest_ip="198.51.100.80",
            dest_port=443,
            proto="TCP",
            app_proto="tls",
            signature_id=number,
            signature=f"detection {number}",
            category="Misc activity",
            severity=3,
            context_json='{"tls":{"sni":"www.example.com","version":"TLS 1.3"}}',
        ),
    )


def peak() -> float:
    """Returns the peak of the memory in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def threads(address: str, total: int) -> siem_client.PublisherStats:
    """Publishes with the client for threads."""
    with siem_client.connect(address) as client, client.publisher() as publisher:
        for number in range(total):
            publisher.send(event(number))
        publisher.flush()
        return publisher.stats


async def loop(address: str, total: int) -> siem_client.PublisherStats:
    """Publishes with the client for asyncio."""
    async with siem_client.aio.connect(address) as client, client.publisher() as publisher:
        for number in range(total):
            await publisher.send(event(number))
        await publisher.flush()
        return publisher.stats


def main() -> None:
    """Publishes and prints."""
    address, total = sys.argv[1], int(sys.argv[2])
    before, began, cpu = peak(), time.monotonic(), time.process_time()
    stats = asyncio.run(loop(address, total)) if "--async" in sys.argv else threads(address, total)
    seconds = time.monotonic() - began
    print(f"{stats}")
    print(
        f"{total} events in {seconds:.1f} s, {total / seconds:,.0f} events/s, {time.process_time() - cpu:.1f} s of CPU,"
        f" {peak() - before:.0f} MiB more memory"
    )


if __name__ == "__main__":
    main()
