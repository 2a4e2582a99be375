"""Publishes with asyncio, and shows the statuses: asyncio_client.py ADDRESS ORGANIZATION COUNT."""

import asyncio
import sys

import siem_client
import siem_client.aio
from siem_client import v1


async def main(address: str, organization: str, count: int) -> None:
    """Publishes `count` events."""
    async with siem_client.aio.connect(address) as client:
        async with client.publisher() as publisher:
            for number in range(count):
                event = v1.Event(
                    organization_id=organization,
                    network_id="6f9619ff-8b86-4d01-b42d-00cf4fc964ff",
                    device_id="7d444840-9dc0-41d1-b245-5ffdce74fad2",
                    observed_time=siem_client.timestamp(),
                    ids_detection=v1.IdsDetection(signature=f"example {number}"),
                )
                await publisher.send(event)
        print(f"{publisher.stats.accepted} accepted")
        async for seen in client.watch_status([organization]):
            if isinstance(seen, siem_client.StatusSnapshot):
                print(f"{len(seen.statuses)} integrations")
                break


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
