// Helpers for messages: enums, whose values may be newer than this package, times, and JSON.

import { createRegistry, toJson as messageToJson } from "@bufbuild/protobuf";
import type { DescEnum, JsonValue, Message, MessageInitShape } from "@bufbuild/protobuf";
import { timestampDate, timestampFromDate, type Timestamp } from "@bufbuild/protobuf/wkt";
import { file_siem_v1_error } from "./gen/siem/v1/error_pb.js";
import { type EventSchema, file_siem_v1_event } from "./gen/siem/v1/event_pb.js";
import { file_siem_v1_integration, type IntegrationStatus, Status } from "./gen/siem/v1/integration_pb.js";

/** An event to publish: a `v1.Event`, or an object with the same members, of which unset ones may be absent. */
export type EventInit = MessageInitShape<typeof EventSchema>;

const registry = createRegistry(file_siem_v1_error, file_siem_v1_event, file_siem_v1_integration);

/** Returns the status of an integration; `Status.UNKNOWN` for one that this version does not know, or without one. */
export function statusOf(status: IntegrationStatus | undefined): Status {
  const value = status?.status ?? Status.UNKNOWN;
  return value === Status.UNSPECIFIED || !(value in Status) ? Status.UNKNOWN : value;
}

/**
 * Returns the name of a value of an enum, such as `enumName(v1.StatusSchema, status)`: `STATUS_ACTIVE`; the number as
 * text if this version does not know it.
 */
export function enumName(schema: DescEnum, value: number): string {
  return schema.value[value]?.name ?? String(value);
}

/** Returns a time for a message, such as `observedTime`; now by default. */
export function timestamp(when: Date = new Date()): Timestamp {
  return timestampFromDate(when);
}

/** Returns a time of a message as a `Date`, in whole milliseconds; undefined for an unset one. */
export function dateOf(time: Timestamp | undefined): Date | undefined {
  return time === undefined ? undefined : timestampDate(time);
}

/**
 * Returns the JSON form of a message of `siem.v1`, which `JSON.stringify` takes: 64-bit numbers are texts, times are
 * RFC 3339, enums are their names, or numbers if they are unknown.
 */
export function toJson(message: Message): JsonValue {
  const schema = registry.getMessage(message.$typeName);
  if (schema === undefined) {
    throw new TypeError(`${message.$typeName} is not a message of siem.v1`);
  }
  return messageToJson(schema, message, { registry });
}
