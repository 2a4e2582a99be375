"""Driver of clients/scenario for siem-client: reads calls from standard input, and answers on standard output.

With `--async` it uses the client for asyncio.
"""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import siem_client
import siem_client.aio
from siem_client import v1

NETWORK = str(uuid.UUID(int=1))
DEVICE = str(uuid.UUID(int=2))
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


def event(organization: str, number: int, invalid: bool, with_id: bool) -> v1.Event:
    """Returns the event with a number, as clients/scenario/README.md describes it."""
    result = v1.Event(
        organization_id=organization,
        network_id=NETWORK,
        device_id=DEVICE,
        observed_time=siem_client.timestamp(START + timedelta(milliseconds=number)),
        ids_detection=v1.IdsDetection(
            src_ip="192.0.2.256" if invalid else "192.0.2.7",
            dest_ip="198.51.100.80",
            signature=f"detection {number}",
        ),
    )
    if with_id:
        result.event_id = f"00000000-0000-4000-8000-{number:012}"
    return result


def events(arguments: dict[str, Any]) -> Iterator[tuple[int, v1.Event]]:
    """Returns the numbered events of a call."""
    invalid = set(arguments.get("invalid", ()))
    for number in range(arguments["first"], arguments["last"] + 1):
        yield number, event(arguments["organization_id"], number, number in invalid, arguments.get("event_ids", False))


def shown(status: v1.IntegrationStatus) -> dict[str, Any]:
    """Returns a status as the scenario expects it."""
    return {
        "status": siem_client.enum_name(v1.Status, siem_client.status_of(status)),
        "reason": siem_client.enum_name(v1.StatusReason, status.reason),
    }


def integration(found: v1.Integration) -> dict[str, Any]:
    """Returns an integration as the scenario expects it."""
    return {
        "organization_id": found.organization_id,
        "integration_id": found.integration_id,
        "etag": found.etag,
        "accepted": found.counts.accepted,
        "delivered": found.counts.delivered,
        "pending": found.counts.pending,
        **shown(found.status),
    }


def status_event(seen: siem_client.StatusEvent) -> dict[str, Any]:
    """Returns an event of a watch as the scenario expects it."""
    if isinstance(seen, siem_client.StatusSnapshot):
        statuses = {name: shown(current.status)["status"] for name, current in seen.statuses.items()}
        return {
            "kind": "snapshot",
            "organizations": sorted(statuses),
            "statuses": statuses,
            "absent": sorted(seen.absent),
        }
    if isinstance(seen, v1.StatusCurrent):
        return {"kind": "current", "organization_id": seen.organization_id, **shown(seen.status)}
    kind = "deleted" if isinstance(seen, v1.StatusDeleted) else "absent"
    return {"kind": kind, "organization_id": seen.organization_id}


class Driver:
    """The client of this run. The methods for both kinds of clients differ only in that one kind is awaited."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._client: Any = None
        self._watch: Any = None
        self._publisher: Any = None
        self._rejected: list[dict[str, Any]] = []

    async def call(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Makes one call; an error is part of the answer."""
        try:
            answer: dict[str, Any] = await getattr(self, arguments.pop("call"))(**arguments)
        except siem_client.SiemError as error:
            violations = [violation.field for violation in error.violations]
            answer = {"code": error.code.name, "reason": error.reason_name, "violations": violations}
            return {"error": {**answer, "message": error.message}}
        except siem_client.ConfigurationError as error:
            return {"error": {"code": "CONFIGURATION", "message": str(error)}}
        return answer

    async def _await(self, result: Any) -> Any:
        return await result if self._module is siem_client.aio else result

    async def connect(self, address: str, **options: Any) -> dict[str, Any]:
        if self._client is not None:
            await self._await(self._client.close())
        tls = {name: options[name] for name in ("ca", "certificate", "key") if name in options}
        token: Any = options.get("token")
        if "tokens" in options:
            tokens = iter(options["tokens"])
            last = options["tokens"][-1]
            token = lambda: next(tokens, last)  # noqa: E731
        self._client = self._module.connect(address, tls=siem_client.Tls(**tls) if tls else None, token=token)
        return {}

    async def configure(self, **fields: Any) -> dict[str, Any]:
        answer = await self._await(self._client.configure(v1.ConfigureRequest(**fields)))
        return integration(answer.integration)

    async def get(self, organization_id: str, timeout: float | None = None) -> dict[str, Any]:
        request = v1.GetRequest(organization_id=organization_id)
        return integration((await self._await(self._client.get(request, timeout=timeout))).integration)

    async def list(self, **fields: Any) -> dict[str, Any]:
        answer = await self._await(self._client.list(v1.ListRequest(**fields)))
        names = [each.organization_id for each in answer.integrations]
        return {"organization_ids": names, "next_page_token": answer.next_page_token}

    async def generate_external_id(self, **fields: Any) -> dict[str, Any]:
        answer = await self._await(self._client.generate_external_id(v1.GenerateExternalIdRequest(**fields)))
        return {"external_id": answer.external_id}

    async def get_onboarding(self, **fields: Any) -> dict[str, Any]:
        answer = await self._await(self._client.get_onboarding(v1.GetOnboardingRequest(**fields)))
        return {"file_names": [each.file_name for each in answer.documents], "role_arn": answer.role_arn}

    async def list_audit_entries(self, **fields: Any) -> dict[str, Any]:
        answer = await self._await(self._client.list_audit_entries(v1.ListAuditEntriesRequest(**fields)))
        return {
            "actions": [siem_client.enum_name(v1.AuditAction, each.action) for each in answer.entries],
            "principals": [each.principal for each in answer.entries],
        }

    async def delete(self, **fields: Any) -> dict[str, Any]:
        answer = await self._await(self._client.delete(v1.DeleteRequest(**fields)))
        return {"accepted": answer.counts.accepted, "pending": answer.counts.pending}

    async def send_test(self, **fields: Any) -> dict[str, Any]:
        answer = await self._await(self._client.send_test(v1.SendTestRequest(**fields)))
        return {"delivered": answer.delivered, "message": answer.message, **shown(answer.status)}

    async def watch_open(self, organization_ids: Any, resume_token: str = "") -> dict[str, Any]:
        self._watch = self._client.watch_status(organization_ids, resume_token=resume_token)
        return {}

    async def watch_next(self) -> dict[str, Any]:
        if self._module is siem_client.aio:
            return status_event(await self._watch.__anext__())
        return status_event(next(self._watch))

    async def watch_token(self) -> dict[str, Any]:
        return {"resume_token": self._watch.resume_token}

    async def watch_close(self) -> dict[str, Any]:
        await self._await(self._watch.close())
        return {}

    async def publish(self, **arguments: Any) -> dict[str, Any]:
        request = v1.PublishRequest(events=[each for _, each in events(arguments)])
        answer = await self._await(self._client.publish(request))
        rejections = [
            {"index": each.index, "reason": siem_client.enum_name(v1.ErrorReason, each.reason), "field": each.field}
            for each in answer.rejections
        ]
        return {"accepted": answer.accepted, "unconfigured": answer.unconfigured, "rejections": rejections}

    async def publisher_open(self) -> dict[str, Any]:
        self._publisher, self._rejected = self._client.publisher(), []
        return {}

    async def send(self, **arguments: Any) -> dict[str, Any]:
        sent = 0
        for number, each in events(arguments):
            future = await self._await(self._publisher.send(each))
            future.add_done_callback(self._noting(number))
            sent += 1
        return {"sent": sent}

    def _noting(self, number: int) -> Callable[[Any], None]:
        def note(future: Any) -> None:
            if future.exception() is None and future.result().rejection is not None:
                rejection = future.result().rejection
                reason = siem_client.enum_name(v1.ErrorReason, rejection.reason)
                self._rejected.append({"number": number, "reason": reason, "field": rejection.field})

        return note

    async def flush(self, timeout: float) -> dict[str, Any]:
        await self._await(self._publisher.flush(timeout))
        # Callbacks of asyncio's futures run in the next iteration of the loop.
        await asyncio.sleep(0)
        stats = self._publisher.stats
        rejected = sorted(self._rejected, key=lambda each: each["number"])
        counts = {"accepted": stats.accepted, "filtered": stats.filtered, "unconfigured": stats.unconfigured}
        return {**counts, "rejected": rejected}

    async def publisher_close(self, timeout: float) -> dict[str, Any]:
        try:
            await self._await(self._publisher.close(timeout))
        except siem_client.UnacknowledgedError as error:
            return {"unacknowledged": [each.event_id for each in error.unacknowledged]}
        return {"unacknowledged": []}


async def main() -> None:
    """Answers each line."""
    driver = Driver(siem_client.aio if "--async" in sys.argv else siem_client)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await driver.call(json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
