"""Reads a Kinesis stream with boto3, and checks its records."""

from __future__ import annotations

import re
import uuid
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from eve import Json, instant, parse
from harness import Failure, until

READ_SECONDS = 90

ATTRIBUTES = {
    "specversion", "id", "source", "type", "subject", "time", "datacontenttype", "partitionkey", "integrationid",
    "sequence", "data",
}  # fmt: skip


@dataclass
class Record:
    """A record of the stream."""

    shard: str
    number: str
    key: str
    body: bytes

    @property
    def event(self) -> Json:
        """CloudEvent of the record."""
        if not self.body.endswith(b"\n") or self.body.count(b"\n") != 1:
            raise Failure(f"a record is not one line: {self.body[-80:]!r}")
        event = parse(self.body.decode())
        if not isinstance(event, dict):
            raise Failure(f"a record is not a JSON object: {self.body[:80]!r}")
        return event


class Reader:
    """Reads every shard from its beginning, and collects the records."""

    def __init__(self, kinesis: Any, arn: str) -> None:
        self.kinesis = kinesis
        self.records: list[Record] = []
        shards = kinesis.list_shards(StreamARN=arn)["Shards"]
        self.iterators = {
            shard["ShardId"]: kinesis.get_shard_iterator(
                StreamARN=arn, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
            )["ShardIterator"]
            for shard in shards
        }

    def read(self) -> None:
        """Reads the records that have arrived since the last call."""
        for shard, iterator in self.iterators.items():
            while True:
                answer = self.kinesis.get_records(ShardIterator=iterator, Limit=10000)
                iterator = self.iterators[shard] = answer["NextShardIterator"]
                for r in answer["Records"]:
                    self.records.append(Record(shard, r["SequenceNumber"], r["PartitionKey"], r["Data"]))
                if not answer["Records"]:
                    break

    def by_sequence(self, integration_id: str) -> dict[int, Record]:
        """Returns the integration's events by `sequence`; copies of a sequence must be equal."""
        found: dict[int, Record] = {}
        for record in self.records:
            event = record.event
            if event["integrationid"] != integration_id or "sequence" not in event:
                continue
            first = found.setdefault(int(event["sequence"]), record)
            if first.body != record.body:
                raise Failure(f"sequence {event['sequence']} is two events: {first.body!r} and {record.body!r}")
        return found

    def until_sequences(self, integration_id: str, first: int, last: int) -> list[Record]:
        """Reads until each sequence from first to last has arrived; returns their records in order."""

        def complete() -> list[Record] | None:
            self.read()
            found = self.by_sequence(integration_id)
            wanted = range(first, last + 1)
            return [found[n] for n in wanted] if all(n in found for n in wanted) else None

        try:
            return until(complete, READ_SECONDS, f"sequences {first} to {last} of {integration_id} are in the stream")
        except Failure as failure:
            found = self.by_sequence(integration_id)
            missing = [n for n in range(first, last + 1) if n not in found]
            raise Failure(f"{failure}; {len(missing)} are missing, first {missing[:10]}; {len(found)} have arrived") from None

    def check_arrival_order(self) -> None:
        """Checks that the records of each partition key are in order of sequence, except for duplicates."""
        highest: dict[tuple[str, str], int] = defaultdict(int)
        seen: set[tuple[str, int]] = set()
        for record in self.records:
            event = record.event
            if "sequence" not in event:
                continue
            sequence = int(event["sequence"])
            if (event["integrationid"], sequence) in seen:
                continue
            seen.add((event["integrationid"], sequence))
            key = (event["integrationid"], record.key)
            if sequence < highest[key]:
                raise Failure(f"sequence {sequence} of key {record.key} follows {highest[key]}")
            highest[key] = sequence


def check_record(record: Record, sequence: int, integration_id: str, network: str, device: str, time: str, data: Json) -> None:
    """Checks every attribute of a record."""
    event = record.event
    wanted = {
        "specversion": "1.0",
        "source": "https://meter.com",
        "type": "com.meter.ids.detection",
        "subject": network,
        "datacontenttype": "application/json",
        "partitionkey": device,
        "integrationid": integration_id,
        "sequence": f"{sequence:020}",
        "data": data,
    }
    if set(event) != ATTRIBUTES:
        raise Failure(f"sequence {sequence} has the attributes {sorted(event)}")
    for name, value in wanted.items():
        if event[name] != value:
            raise Failure(f"sequence {sequence}: {name} should be {value!r}, is {event[name]!r}")
    if record.key != device:
        raise Failure(f"sequence {sequence}: the partition key is {record.key}, not the device")
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", event["time"]) or instant(event["time"]) != instant(time):
        raise Failure(f"sequence {sequence}: {event['time']} is not {time} in UTC")
    uuid.UUID(event["id"])
