// Errors of the client, and their extraction from those of Connect.

import { fromBinary } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import type { Status } from "./gen/google/rpc/status_pb.js";
import { ErrorReason, ErrorReasonSchema } from "./gen/siem/v1/error_pb.js";
import type { Event } from "./gen/siem/v1/event_pb.js";

const domain = "siem.v1";

// Messages of transports. A server's handler that fails has other messages.
const transport =
  /rst_stream|goaway|socket|broken pipe|stream (removed|closed)|end of (file|stream)|\beof\b|connection|transport|keepalive|ping timeout|http\/?2|\bh2\b/i;
// Messages of Connect about an answer that was cut off.
const cut = /missing (status|trailer|response body|output message|message)|promised \d+ bytes|premature end|incomplete envelope/;

/** An argument of `connect`, of a call or of a publisher cannot be used; the message says why. */
export class ConfigurationError extends Error {
  override readonly name = "ConfigurationError";
}

/** The client, the watch or the publisher is closed, or the publisher has ended; `cause` has the reason of the latter. */
export class ClosedError extends Error {
  override readonly name = "ClosedError";
}

/** Cause of the failure of a call that no server can have seen. */
export class NeverSent extends Error {
  override readonly name = "NeverSent";
}

/** One violated field of a request. */
export interface Violation {
  /** Path of the field, such as `kinesis_stream_arn`. */
  readonly field: string;
  /** Problem and remedy, in English. */
  readonly description: string;
}

interface SiemErrorFields {
  reasonName?: string;
  violations?: readonly Violation[];
  retryDelay?: number | undefined;
  neverSent?: boolean;
  cause?: unknown;
}

/** A call failed. */
export class SiemError extends Error {
  override readonly name = "SiemError";
  /** gRPC code. A connection that was lost, however it was noticed, is `Code.Unavailable`. */
  readonly code: Code;
  /** Name of the code, such as `NOT_FOUND`. */
  readonly codeName: string;
  /**
   * Reason; `ErrorReason.UNSPECIFIED` if there is none, or one that this version does not know: decide by
   * `code` then.
   */
  readonly reason: ErrorReason;
  /** Reason as sent, such as `ETAG_MISMATCH`, also if it is unknown; empty without one. */
  readonly reasonName: string;
  /** Every violated field that the server names, at most 20. */
  readonly violations: readonly Violation[];
  /** Milliseconds after which the server asks to try again; undefined if it does not. */
  readonly retryDelay: number | undefined;
  /** Number of attempts that were made. */
  attempts = 1;
  /** Whether no server can have seen the call. */
  readonly neverSent: boolean;

  /** @internal */
  constructor(code: Code, message: string, fields: SiemErrorFields = {}) {
    super(message, fields.cause === undefined ? undefined : { cause: fields.cause });
    this.code = code;
    this.codeName = codeName(code);
    this.reasonName = fields.reasonName ?? "";
    this.reason = reasonOf(this.reasonName);
    this.violations = fields.violations ?? [];
    this.retryDelay = fields.retryDelay;
    this.neverSent = fields.neverSent ?? false;
  }

  /** Returns code, reason and message in one line. */
  override toString(): string {
    return `${this.codeName}${this.reasonName && `/${this.reasonName}`}: ${this.message}`;
  }
}

/** A publisher has events without a final answer; the server may have accepted them. */
export class UnacknowledgedError extends Error {
  override readonly name = "UnacknowledgedError";
  /**
   * The events, in the order of sending. Publish them again, unchanged: consumers drop duplicates. `cause` is the
   * failure that ended the publisher, if it was not the time-out.
   */
  readonly unacknowledged: readonly Event[];

  /** @internal */
  constructor(problem: string, unacknowledged: readonly Event[], cause?: unknown) {
    const names = unacknowledged.slice(0, 5).map(nameOf);
    if (unacknowledged.length > names.length) {
      names.push(`and ${unacknowledged.length - names.length} more`);
    }
    super(`${problem}; ${unacknowledged.length} unacknowledged events: ${names.join(", ")}`, { cause });
    this.unacknowledged = unacknowledged;
  }
}

// Returns attributes that identify an event for a person.
function nameOf(event: Event): string {
  return `${event.organizationId}/${event.deviceId}/${event.eventId ?? event.observedTime?.seconds ?? ""}`;
}

/** Returns the name of a gRPC code, such as `NOT_FOUND`. */
export function codeName(code: Code): string {
  if (code === Code.Canceled) {
    return "CANCELLED";
  }
  return (Code[code] ?? "Unknown").replace(/(?<=[a-z])(?=[A-Z])/g, "_").toUpperCase();
}

function reasonOf(name: string): ErrorReason {
  const known = ErrorReasonSchema.values.find((value) => value.name === `ERROR_REASON_${name}`);
  return known?.number ?? ErrorReason.UNSPECIFIED;
}

/** Returns the members that the details of a `google.rpc.Status` give. Those that cannot be read are ignored. */
function fromDetails(details: readonly { type: string; value: Uint8Array }[]): SiemErrorFields {
  const fields: SiemErrorFields = {};
  const violations: Violation[] = [];
  for (const { type, value } of details) {
    try {
      if (type === ErrorInfoSchema.typeName) {
        const info = fromBinary(ErrorInfoSchema, value);
        if (info.domain === domain) {
          fields.reasonName = info.reason;
        }
      } else if (type === BadRequestSchema.typeName) {
        const bad = fromBinary(BadRequestSchema, value);
        violations.push(...bad.fieldViolations.map(({ field, description }) => ({ field, description })));
      } else if (type === RetryInfoSchema.typeName) {
        const asked = fromBinary(RetryInfoSchema, value).retryDelay;
        fields.retryDelay = Math.max(Number(asked?.seconds ?? 0n) * 1000 + (asked?.nanos ?? 0) / 1e6, 0);
      }
    } catch {
      continue;
    }
  }
  return { ...fields, violations };
}

/** Returns the error that a `google.rpc.Status` describes. */
export function fromStatus(status: Status): SiemError {
  const details = status.details.map((any) => ({
    type: any.typeUrl.slice(any.typeUrl.lastIndexOf("/") + 1),
    value: any.value,
  }));
  return new SiemError(knownCode(status.code), status.message, fromDetails(details));
}

/** Returns the error of a failed call or stream. */
export function fromReason(reason: unknown): SiemError {
  if (reason instanceof SiemError) {
    return reason;
  }
  const error = ConnectError.from(reason);
  const details = error.details.flatMap((each) => ("type" in each ? [{ type: each.type, value: each.value }] : []));
  const fields = fromDetails(details);
  const answered = error.metadata.has("grpc-status");
  // A server that refuses a stream has not processed it (RFC 9113, section 8.7).
  const neverSent = !answered && (error.cause instanceof NeverSent || error.rawMessage.includes("REFUSED_STREAM"));
  const isLost = neverSent || (answered ? wasLostBehindServer(error, fields) : wasLost(error));
  const code = isLost ? Code.Unavailable : knownCode(error.code);
  return new SiemError(code, error.rawMessage, { ...fields, neverSent, cause: reason });
}

function knownCode(code: number): Code {
  return code in Code ? code : Code.Unknown;
}

// Reports whether the connection failed, of a call to which no gRPC status came.
function wasLost(error: ConnectError): boolean {
  switch (error.code) {
    case Code.Unavailable:
    case Code.Aborted:
    case Code.Canceled:
      return true;
    case Code.Internal:
    case Code.Unknown:
    case Code.InvalidArgument:
    case Code.DataLoss:
      return isTransportCause(error.cause) || cut.test(error.rawMessage) || transport.test(error.rawMessage);
    default:
      return false;
  }
}

// Proxies, and libraries of servers, report lost connections as a status without a reason.
function wasLostBehindServer(error: ConnectError, fields: SiemErrorFields): boolean {
  const codes = [Code.Unknown, Code.Canceled, Code.Internal];
  return !fields.reasonName && codes.includes(error.code) && transport.test(error.rawMessage);
}

// Reports whether Node's network code or the browser's fetch has failed.
function isTransportCause(cause: unknown): boolean {
  for (let each: unknown = cause; each instanceof Error; each = each.cause) {
    if (each instanceof TypeError || ("code" in each && typeof each.code === "string")) {
      return true;
    }
  }
  return false;
}
