// Requests, acknowledgements and order of a publisher. No I/O and no clock; `now` is in milliseconds of a monotonic
// clock.
//
// Events pass through: pending (not yet in a request), the window (requests that are to be sent or unanswered), and
// deferred (rejected temporarily, or behind such an event of their device).

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { ConfigurationError, fromStatus, SiemError } from "./errors.js";
import { ErrorReason } from "./gen/siem/v1/error_pb.js";
import {
  type Event,
  EventSchema,
  type PublishResponse,
  PublishResponseSchema,
  type PublishStreamResponse,
  type Rejection,
} from "./gen/siem/v1/event_pb.js";
import type { EventInit } from "./messages.js";
import { askedWait, backoff } from "./retry.js";

const maxEvents = 1_000;
const maxBytes = 4 << 20;
/** Memory of one event beside its encoded bytes: the item, and its place in the queues. */
export const eventOverheadBytes = 1_024;
// Bytes of a request_id with its tag and length; the id is a number.
const requestIdBytes = 24;
// Up to this many organizations at a time, each request carries events of one, since an answer only counts the events of
// organizations without an integration.
const separateOrganizations = 8;

const stop: readonly Code[] = [Code.Unimplemented, Code.Unauthenticated, Code.PermissionDenied, Code.NotFound];
const atFault: readonly Code[] = [Code.InvalidArgument, Code.OutOfRange, Code.FailedPrecondition];

/** Limits and waits of a publisher. Times are in milliseconds. */
export interface PublisherOptions {
  /** Unanswered requests, 1 to 64; 16 by default. */
  readonly maxRequestsInFlight?: number;
  /**
   * Memory for unanswered events, 16 MiB by default; `send` waits beyond it. Each event counts 1 KiB more than its
   * encoded size. One event alone may exceed it.
   */
  readonly maxBytesInFlight?: number;
  /** Events of one request, 1 to 1,000; 1,000 by default. */
  readonly maxBatchEvents?: number;
  /** Bytes of one request with its framing, 4 MiB at most and by default. A larger event is sent alone. */
  readonly maxBatchBytes?: number;
  /** Longest time for which the first event of a request waits for further ones, 10 by default. */
  readonly lingerMs?: number;
  /**
   * Wait after the first failure, or the first temporary rejection of an event of a device, 100 by default; doubled with
   * each further one in a row.
   */
  readonly minRetryWaitMs?: number;
  /** Longest wait, 5,000 by default, unless the server asks for a longer one. */
  readonly maxRetryWaitMs?: number;
  /** Time without any final answer after which the publisher ends with an error, 300,000 by default; Infinity for never. */
  readonly giveUpAfterMs?: number;
  /** Time without an answer after which the stream is opened again, 60,000 by default. */
  readonly answerTimeoutMs?: number;
}

/** Returns all options, with their default values. */
export function checkOptions(options: PublisherOptions): Required<PublisherOptions> {
  const ranges: Record<keyof PublisherOptions, readonly [number, number, number]> = {
    maxRequestsInFlight: [16, 1, 64],
    maxBytesInFlight: [16 << 20, 1, Infinity],
    maxBatchEvents: [maxEvents, 1, maxEvents],
    maxBatchBytes: [maxBytes, 1, maxBytes],
    lingerMs: [10, 0, 3_600_000],
    minRetryWaitMs: [100, 0, 3_600_000],
    maxRetryWaitMs: [5_000, 0, 3_600_000],
    giveUpAfterMs: [300_000, 0, Infinity],
    answerTimeoutMs: [60_000, 1, 3_600_000],
  };
  const checked: Partial<Record<keyof PublisherOptions, number>> = {};
  for (const name of Object.keys(ranges) as (keyof PublisherOptions)[]) {
    const [byDefault, low, high] = ranges[name];
    const value = options[name] ?? byDefault;
    if (!(value >= low && value <= high)) {
      throw new ConfigurationError(`${name}: ${value} is not in the range from ${low} to ${high}`);
    }
    checked[name] = value;
  }
  return checked as Required<PublisherOptions>;
}

/**
 * Final answer to an event: `accepted` (it is durable), `unconfigured` (its organization has no integration; it is not
 * stored), `filtered` (a filter of its integration left it out), `rejected` (it is invalid; see the rejection), or
 * `undetermined`: one of the first three, since the answer only counts, and differs between the events of the request.
 */
export type Outcome = "accepted" | "unconfigured" | "filtered" | "rejected" | "undetermined";

/** Final answer to one event. */
export interface PublishResult {
  readonly outcome: Outcome;
  /** Reason, field and message of a rejected event. Its index is 0. */
  readonly rejection?: Rejection;
}

/** Counts since the publisher was made. */
export interface PublisherStats {
  /** Events that are durable. */
  accepted: number;
  /** Events of organizations without an integration. */
  unconfigured: number;
  /** Events that a filter left out. */
  filtered: number;
  /** Events that were rejected for good. */
  rejected: number;
  /** Events whose outcome is `undetermined`. */
  undetermined: number;
  /** Temporary rejections; each event counts as often as it was rejected. */
  deferred: number;
  /** Streams that broke while events were unanswered. */
  reconnects: number;
  /** Events without a final answer. */
  pending: number;
}

function varintLength(value: number): number {
  return Math.max(Math.ceil(Math.log2(value + 1) / 7), 1);
}

/** One encoded event, and its answer once that is final. */
export class Item {
  data: Uint8Array;
  readonly organization: string;
  readonly device: string;
  /** Bytes within a request. */
  readonly framed: number;
  /** Memory that it takes. */
  readonly weight: number;
  /** Number in the order of sending. */
  order = 0;
  /** Called with the answer, or with an error. */
  settled: ((result: PublishResult | undefined, error: Error | undefined) => void) | undefined;
  result: PublishResult | undefined;
  error: Error | undefined;

  constructor(init: EventInit) {
    const event = create(EventSchema, init);
    this.data = toBinary(EventSchema, event);
    this.organization = event.organizationId;
    this.device = `${event.organizationId}\0${event.networkId}\0${event.deviceId}`;
    this.framed = this.data.length + 1 + varintLength(this.data.length);
    this.weight = this.data.length + eventOverheadBytes;
  }

  /** Returns the event. */
  event(): Event {
    return fromBinary(EventSchema, this.data);
  }

  /** Keeps the answer, and forgets the event. */
  settle(result: PublishResult | undefined, error?: Error): void {
    this.result = result;
    this.error = error;
    this.data = new Uint8Array();
    this.settled?.(result, error);
  }
}

/** Events with their final answers, to be handed to the callers. */
export type Results = [Item, PublishResult][];

/** One request of PublishStream, with events that are encoded already. */
export type RawRequest = {
  readonly requestId: string;
  readonly events: Uint8Array[];
};

/** A stream cannot continue. */
export class Broken extends Error {
  constructor(readonly error: SiemError) {
    super(error.message);
  }
}

/** A device with deferred events. At most one request at a time carries events of it. */
class Device {
  /** Its deferred events. */
  waiting: Item[] = [];
  /** Number of its events in the window. */
  inWindow = 0;
  /** Those in the window were sent again, so that they precede all deferred ones. */
  resent = false;
  /** One of those that were last in the window was rejected temporarily, or got its final answer. */
  rejected = false;
  progress = false;
  /** Attempts in a row without progress. */
  failures = 0;
}

/** A queue that is taken from at the front. */
class Queue {
  #items: Item[] = [];
  #head = 0;

  get length(): number {
    return this.#items.length - this.#head;
  }

  get first(): Item | undefined {
    return this.#items[this.#head];
  }

  push(item: Item): void {
    this.#items.push(item);
  }

  shift(): Item | undefined {
    const item = this.#items[this.#head];
    this.#head += 1;
    if (this.#head >= 1_024 && this.#head * 2 >= this.#items.length) {
      this.#items = this.#items.slice(this.#head);
      this.#head = 0;
    }
    return item;
  }

  all(): Item[] {
    return this.#items.slice(this.#head);
  }
}

interface Due {
  readonly at: number;
  readonly order: number;
  readonly key: string;
}

const byOrder = (a: Item, b: Item) => a.order - b.order;

/** The state of a publisher. */
export class PublishCore {
  readonly options: Required<PublisherOptions>;
  readonly stats: PublisherStats = {
    accepted: 0,
    unconfigured: 0,
    filtered: 0,
    rejected: 0,
    undetermined: 0,
    deferred: 0,
    reconnects: 0,
    pending: 0,
  };
  readonly #wait: (failures: number) => number;
  #bytes = 0;
  #orders = 0;
  readonly #pending = new Queue();
  #pendingBytes = 0;
  #lingerUntil = 0;
  // Events up to this order do not linger.
  #flushed = 0;
  #window: Item[][] = [];
  #sent = 0;
  #frontId = 1;
  // Requests with smaller ids are sent one at a time, to find the one that breaks the stream.
  #singlyBelow = 0;
  readonly #devices = new Map<string, Device>();
  // Sorted by time, then by order.
  readonly #due: Due[] = [];
  #failures = 0;
  #refreshed = false;
  #progressAt = 0;
  #answerDue: number | undefined;

  constructor(options: PublisherOptions, wait?: (failures: number) => number) {
    this.options = checkOptions(options);
    const retry = { minWaitMs: this.options.minRetryWaitMs, maxWaitMs: this.options.maxRetryWaitMs };
    this.#wait = wait ?? ((failures) => backoff(retry, failures));
  }

  // Input.

  /** Reports whether memory is left for an event. */
  hasCapacity(weight: number): boolean {
    return this.#bytes === 0 || this.#bytes + weight <= this.options.maxBytesInFlight;
  }

  /** Takes an event. Returns whether that changes the time of the next request. */
  add(item: Item, now: number): boolean {
    if (this.isDone) {
      this.#progressAt = now;
    }
    this.#orders += 1;
    item.order = this.#orders;
    const isFirst = this.#pending.length === 0;
    if (isFirst) {
      this.#lingerUntil = now + this.options.lingerMs;
    }
    this.#pending.push(item);
    this.#pendingBytes += item.framed;
    this.#bytes += item.weight;
    this.stats.pending += 1;
    return isFirst || this.isFull;
  }

  /** Ends the linger of what is pending. Returns the order of the last event. */
  flush(): number {
    this.#flushed = this.#orders;
    return this.#orders;
  }

  /** Whether every event has its final answer. */
  get isDone(): boolean {
    return this.stats.pending === 0;
  }

  /** Returns all events without a final answer, in the order of sending. */
  unanswered(): Item[] {
    const items = [...this.#window.flat(), ...this.#pending.all()];
    for (const device of this.#devices.values()) {
      items.push(...device.waiting);
    }
    return items.sort(byOrder);
  }

  /** Returns the order of the oldest event without a final answer. */
  oldest(): number | undefined {
    let oldest = this.#pending.first?.order ?? Infinity;
    for (const batch of this.#window) {
      for (const item of batch) {
        oldest = Math.min(oldest, item.order);
      }
    }
    for (const device of this.#devices.values()) {
      for (const item of device.waiting) {
        oldest = Math.min(oldest, item.order);
      }
    }
    return oldest === Infinity ? undefined : oldest;
  }

  // Output.

  /** Whether the pending events fill a request. */
  get isFull(): boolean {
    const { maxBatchEvents, maxBatchBytes } = this.options;
    return this.#pending.length >= maxBatchEvents || this.#pendingBytes >= maxBatchBytes - requestIdBytes;
  }

  #isReady(now: number): boolean {
    const { first } = this.#pending;
    return first !== undefined && (this.isFull || now >= this.#lingerUntil || first.order <= this.#flushed);
  }

  // Moves the pending events of one request, or of a few, to the window.
  #takePending(now: number): void {
    const groups = new Map<string, Item[]>();
    const batch: Item[] = [];
    let size = requestIdBytes;
    for (let item = this.#pending.first; item !== undefined; item = this.#pending.first) {
      size += item.framed;
      if (batch.length >= this.options.maxBatchEvents || (batch.length > 0 && size > this.options.maxBatchBytes)) {
        break;
      }
      this.#pending.shift();
      this.#pendingBytes -= item.framed;
      const device = this.#devices.get(item.device);
      if (device !== undefined) {
        device.waiting.push(item);
        size -= item.framed;
        continue;
      }
      batch.push(item);
      const group = groups.get(item.organization);
      if (group === undefined) {
        groups.set(item.organization, [item]);
      } else {
        group.push(item);
      }
    }
    this.#lingerUntil = now + this.options.lingerMs;
    if (groups.size <= separateOrganizations) {
      this.#window.push(...groups.values());
    } else {
      this.#window.push(batch);
    }
  }

  /** Returns the next request to send on the current stream, if there is one. */
  nextRequest(now: number): RawRequest | undefined {
    const { maxRequestsInFlight, answerTimeoutMs } = this.options;
    while (this.#window.length < maxRequestsInFlight) {
      const due = this.#due[0];
      if (due !== undefined && due.at <= now) {
        const batch = this.#takeDue(now);
        if (batch.length > 0) {
          this.#window.push(batch);
        }
        continue;
      }
      if (!this.#isReady(now)) {
        break;
      }
      this.#takePending(now);
    }
    const batch = this.#window[this.#sent];
    if (batch === undefined || this.#sent >= maxRequestsInFlight) {
      return undefined;
    }
    if (this.#frontId < this.#singlyBelow && this.#sent > 0) {
      return undefined;
    }
    const requestId = String(this.#frontId + this.#sent);
    if (this.#sent === 0) {
      this.#answerDue = now + answerTimeoutMs;
    }
    this.#sent += 1;
    return { requestId, events: batch.map((item) => item.data) };
  }

  /** Returns the time of the next change that needs no answer and no event. */
  nextWakeup(): number | undefined {
    let next = Infinity;
    if (this.#window.length < this.options.maxRequestsInFlight) {
      next = Math.min(this.#due[0]?.at ?? Infinity, this.#pending.length > 0 ? this.#lingerUntil : Infinity);
    }
    if (this.#sent > 0) {
      next = Math.min(next, this.#answerDue ?? Infinity);
    }
    return next === Infinity ? undefined : next;
  }

  /** Reports whether the server has not answered for too long. */
  isOverdue(now: number): boolean {
    return this.#sent > 0 && this.#answerDue !== undefined && now >= this.#answerDue;
  }

  // Answers.

  /** Takes an answer. Throws `Broken` if the stream cannot continue. */
  answered({ requestId, outcome }: PublishStreamResponse, now: number): Results {
    const batch = this.#window[0];
    if (this.#sent === 0 || batch === undefined || requestId !== String(this.#frontId)) {
      throw new Broken(new SiemError(Code.Internal, "the server sent an answer to another request"));
    }
    this.#answerDue = now + this.options.answerTimeoutMs;
    this.#refreshed = false;
    if (outcome.case === "result") {
      this.#failures = 0;
      const results = this.#settle(outcome.value, now);
      if (results.length === 0 && this.#left(now) <= 0) {
        const message = "the server rejected events temporarily until the publisher gave up";
        throw new Broken(new SiemError(Code.ResourceExhausted, message, { retryDelay: 0 }));
      }
      return results;
    }
    if (outcome.case !== "error") {
      throw new Broken(new SiemError(Code.Internal, "the server sent an answer without an outcome"));
    }
    const error = fromStatus(outcome.value);
    if (!this.#isRefusal(error, true)) {
      throw new Broken(error);
    }
    if (batch.length > 1) {
      // The next stream carries both halves, so that the others are not refused with the event at fault.
      this.#split(batch);
      throw new Broken(new SiemError(Code.Unavailable, `a request was refused as a whole: ${error}`));
    }
    this.#failures = 0;
    return this.#refuse(error, now);
  }

  /**
   * Takes the end of a stream. Returns events that are refused for good, and the wait until the next stream; undefined
   * if that follows at once with a new bearer token. Throws `SiemError` if the publisher must end.
   */
  broke(error: SiemError, now: number, tokenCanChange: boolean): { results: Results; wait: number | undefined } {
    const inFlight = this.#sent;
    const front = this.#window[0];
    this.#sent = 0;
    this.#answerDue = undefined;
    let results: Results = [];
    if (error.code === Code.Unauthenticated && tokenCanChange && !this.#refreshed) {
      this.#refreshed = true;
      this.#reclaim(now);
      return { results, wait: undefined };
    }
    if (stop.includes(error.code)) {
      throw error;
    }
    if (front !== undefined && inFlight > 0 && this.#isRefusal(error, false)) {
      if (inFlight > 1) {
        this.#singlyBelow = this.#frontId + inFlight;
      } else if (front.length > 1) {
        this.#split(front);
      } else {
        results = this.#refuse(error, now);
      }
    }
    if (this.isDone) {
      this.#reclaim(now);
      return { results, wait: 0 };
    }
    this.stats.reconnects += 1;
    const left = this.#left(now);
    if (left <= 0) {
      const stalled = Math.round((now - this.#progressAt) / 1000);
      throw new SiemError(error.code, `gave up after ${stalled} s without progress: ${error}`, {
        reasonName: error.reasonName,
        cause: error,
      });
    }
    let wait = this.#wait(this.#failures);
    if (error.retryDelay !== undefined) {
      wait = Math.max(wait, askedWait(error.retryDelay));
    } else {
      wait = Math.min(wait, left);
    }
    this.#failures += 1;
    this.#reclaim(now);
    return { results, wait };
  }

  #left(now: number): number {
    return this.options.giveUpAfterMs - (now - this.#progressAt);
  }

  // Reports whether the request is at fault and would fail again.
  #isRefusal(error: SiemError, isAnswer: boolean): boolean {
    if (error.retryDelay !== undefined) {
      return false;
    }
    if (atFault.includes(error.code) || error.code === Code.ResourceExhausted) {
      return true;
    }
    return isAnswer && (stop.includes(error.code) || error.code === Code.AlreadyExists);
  }

  #split(batch: Item[]): void {
    const half = batch.length >> 1;
    this.#window.splice(0, 1, batch.slice(0, half), batch.slice(half));
    this.#singlyBelow = this.#frontId + 2;
  }

  // Settles the oldest request, of one event, with an error.
  #refuse(error: SiemError, now: number): Results {
    const violation = error.violations[0];
    const rejection = {
      index: 0,
      reason: error.reason,
      field: violation?.field ?? "",
      message: violation?.description ?? String(error),
    };
    // The reason is final here, whatever it is for single events.
    return this.#settle(create(PublishResponseSchema, { rejections: [rejection] }), now, true);
  }

  // Settles the oldest request. Events that were rejected temporarily are deferred.
  #settle(response: PublishResponse, now: number, isFinal = false): Results {
    const batch = this.#window.shift() ?? [];
    this.#frontId += 1;
    this.#sent = Math.max(this.#sent - 1, 0);
    const rejections = new Map(response.rejections.map((each) => [each.index, each]));
    const temporary = new Set<number>();
    let valid = batch.length;
    for (const [index, { reason }] of rejections) {
      if (!isFinal && (reason === ErrorReason.OVERLOADED || reason === ErrorReason.RATE_LIMITED)) {
        temporary.add(index);
      }
      valid -= index < batch.length ? 1 : 0;
    }
    let outcome: Outcome = "accepted";
    if (response.unconfigured > 0 || response.filtered > 0) {
      outcome = "undetermined";
      if (response.unconfigured >= valid) {
        outcome = "unconfigured";
      } else if (response.filtered >= valid) {
        outcome = "filtered";
      }
    }
    let results: Results;
    if (this.#devices.size === 0 && rejections.size === 0) {
      const kept = { outcome };
      results = batch.map((item) => [item, kept]);
    } else {
      results = this.#settleEach(batch, rejections, temporary, { outcome }, now);
    }
    for (const [item, result] of results) {
      this.#bytes -= item.weight;
      this.stats[result.outcome] += 1;
    }
    this.stats.pending -= results.length;
    this.stats.deferred += temporary.size;
    if (results.length > 0) {
      this.#progressAt = now;
    }
    return results;
  }

  #settleEach(
    batch: Item[],
    rejections: Map<number, Rejection>,
    temporary: Set<number>,
    kept: PublishResult,
    now: number,
  ): Results {
    const results: Results = [];
    for (const item of batch) {
      const known = this.#devices.get(item.device);
      if (known !== undefined) {
        known.inWindow -= 1;
      }
    }
    const touched = new Set<string>();
    const opened = new Set<string>();
    let rejectedAgain = false;
    batch.forEach((item, index) => {
      touched.add(item.device);
      let device = this.#devices.get(item.device);
      if (temporary.has(index)) {
        if (device === undefined) {
          device = new Device();
          this.#devices.set(item.device, device);
          opened.add(item.device);
        }
        // The second half of a request that was split must not precede it.
        rejectedAgain ||= device.resent;
        device.resent = false;
        device.rejected = true;
        device.waiting.push(item);
        return;
      }
      const rejection = rejections.get(index);
      if (rejection === undefined) {
        results.push([item, kept]);
      } else {
        rejection.index = 0;
        results.push([item, { outcome: "rejected", rejection }]);
      }
      if (device !== undefined) {
        device.progress = true;
      }
    });
    if (opened.size > 0) {
      for (const waiting of this.#window) {
        for (const item of waiting) {
          const device = opened.has(item.device) ? this.#devices.get(item.device) : undefined;
          if (device !== undefined) {
            device.inWindow += 1;
          }
        }
      }
    }
    if (opened.size > 0 || rejectedAgain) {
      for (const key of this.#withdraw()) {
        touched.add(key);
      }
    }
    this.#schedule(touched, now);
    return results;
  }

  // Deferred events.

  // Defers events that must be sent again although earlier ones of their device are deferred.
  #reclaim(now: number): void {
    if (this.#devices.size > 0) {
      this.#schedule(this.#withdraw(), now);
    }
  }

  // Moves events that must not be sent now out of the window. Returns their devices.
  #withdraw(): Set<string> {
    const touched = new Set<string>();
    const unsent: Item[][] = [];
    for (const batch of this.#window.slice(this.#sent)) {
      const staying: Item[] = [];
      for (const item of batch) {
        const device = this.#devices.get(item.device);
        if (device === undefined || device.resent) {
          staying.push(item);
          continue;
        }
        device.inWindow -= 1;
        device.waiting.push(item);
        touched.add(item.device);
      }
      if (staying.length > 0) {
        unsent.push(staying);
      }
    }
    this.#window = [...this.#window.slice(0, this.#sent), ...unsent];
    return touched;
  }

  // Decides when devices without events in the window may send again.
  #schedule(touched: Iterable<string>, now: number): void {
    for (const key of touched) {
      const device = this.#devices.get(key);
      if (device === undefined || device.inWindow > 0) {
        continue;
      }
      const first = device.waiting.sort(byOrder)[0];
      if (first === undefined) {
        this.#devices.delete(key);
        continue;
      }
      if (device.progress || !device.rejected) {
        device.failures = 0;
      }
      let at = now;
      if (device.rejected) {
        at += this.#wait(device.failures);
        device.failures += 1;
      }
      device.resent = device.rejected = device.progress = false;
      this.#insert({ at, order: first.order, key });
    }
  }

  #insert(due: Due): void {
    let low = 0;
    let high = this.#due.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      const other = this.#due[middle];
      if (other !== undefined && (other.at < due.at || (other.at === due.at && other.order < due.order))) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    this.#due.splice(low, 0, due);
  }

  // Returns the events of one request, in order for each device.
  #takeDue(now: number): Item[] {
    const batch: Item[] = [];
    let size = requestIdBytes;
    for (let due = this.#due[0]; due !== undefined && due.at <= now; due = this.#due[0]) {
      const device = this.#devices.get(due.key);
      let taken = 0;
      // Events that came since then are newer than all of these.
      for (const item of device?.waiting.sort(byOrder) ?? []) {
        const fits = batch.length < this.options.maxBatchEvents && size + item.framed <= this.options.maxBatchBytes;
        if (batch.length > 0 && (!fits || item.organization !== batch[0]?.organization)) {
          break;
        }
        batch.push(item);
        size += item.framed;
        taken += 1;
      }
      if (device === undefined || taken === 0) {
        break;
      }
      device.waiting.splice(0, taken);
      device.inWindow += taken;
      device.resent = true;
      this.#due.shift();
    }
    return batch;
  }
}
