// The publisher: it drives a PublishCore over streams.

import { create, createFileRegistry, type DescMessage, type DescMethodStreaming } from "@bufbuild/protobuf";
import {
  FieldDescriptorProto_Label as Label,
  FieldDescriptorProto_Type as Type,
  FileDescriptorProtoSchema,
} from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import type { Caller } from "./caller.js";
import { ClosedError, fromReason, SiemError, UnacknowledgedError } from "./errors.js";
import { EventService, type PublishStreamResponseSchema } from "./gen/siem/v1/event_pb.js";
import type { EventInit } from "./messages.js";
import {
  Broken,
  Item,
  PublishCore,
  type PublisherOptions,
  type PublisherStats,
  type PublishResult,
  type RawRequest,
  type Results,
} from "./publishCore.js";

const defaultCloseMs = 30_000;
const tokenMs = 30_000;
// Time that the server has to end a stream whose requests are all answered.
const endMs = 1_000;

/** An event that a publisher has queued. */
export class Sent {
  readonly #item: Item;
  #answer: Promise<PublishResult> | undefined;

  /** @internal */
  constructor(item: Item) {
    this.#item = item;
  }

  /**
   * The final answer to the event. It fails with `UnacknowledgedError`, or the error that ended the publisher, if there
   * will be none. It need not be awaited.
   */
  get answer(): Promise<PublishResult> {
    if (this.#answer === undefined) {
      const item = this.#item;
      this.#answer = new Promise((resolve, reject) => {
        item.settled = (result, error) => (result === undefined ? reject(error as Error) : resolve(result));
        if (item.result !== undefined || item.error !== undefined) {
          item.settled(item.result, item.error);
        }
      });
      // A failure that nobody awaits does not end the process.
      this.#answer.catch(() => undefined);
    }
    return this.#answer;
  }
}

interface Sender {
  readonly item: Item;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

/**
 * Publishes events over PublishStream, and opens the stream again whenever it breaks. `Client.publisher` makes it.
 *
 * Unanswered events are kept and sent again, unchanged and so under the same CloudEvents ids: none is lost, and consumers
 * drop those that were accepted twice. Events of a device keep their order. A temporary rejection (OVERLOADED,
 * RATE_LIMITED) defers the event and later ones of its device; other devices go on.
 */
export class Publisher {
  readonly #caller: Caller;
  readonly #core: PublishCore;
  // Calls of `send` that wait for capacity, oldest first.
  readonly #senders: Sender[] = [];
  // Those that wait for a change.
  readonly #waiters = new Set<() => void>();
  #running: Promise<void> | undefined;
  #stream: AbortController | undefined;
  #closing = false;
  #failure: Error | undefined;

  /** @internal */
  constructor(caller: Caller, options: PublisherOptions) {
    this.#caller = caller;
    this.#core = new PublishCore(options);
  }

  /** The counts so far. */
  get stats(): Readonly<PublisherStats> {
    return { ...this.#core.stats };
  }

  /**
   * Queues an event. Waits while too many are unanswered: await it, so that memory stays bounded. Later changes of the
   * object have no effect.
   *
   * Fails with `ClosedError` if the publisher is closed or has ended; then the event is not queued.
   */
  async send(event: EventInit): Promise<Sent> {
    this.#checkOpen();
    const item = new Item(event);
    if (this.#senders.length > 0 || !this.#core.hasCapacity(item.weight)) {
      await new Promise<void>((resolve, reject) => {
        this.#senders.push({ item, resolve, reject });
        // Events that linger would be waited for in vain.
        this.#core.flush();
        this.#notify();
      });
    } else {
      this.#add(item);
      if (this.#core.isFull) {
        // A loop of sends without any other wait would never let the requests go.
        await new Promise((resolve) => setImmediate(resolve));
      }
    }
    return new Sent(item);
  }

  /**
   * Waits until every event that was sent before has its final answer. Fails with `UnacknowledgedError` if some have
   * none after `timeoutMs`, or if the publisher has ended; otherwise it continues.
   */
  async flush(timeoutMs?: number): Promise<void> {
    const deadline = timeoutMs === undefined ? undefined : performance.now() + timeoutMs;
    // Those that wait for capacity were sent before, too.
    let last = this.#core.flush();
    const waiting = this.#senders.at(-1)?.item;
    this.#notify();
    for (;;) {
      if (waiting !== undefined && waiting.order > last) {
        last = waiting.order;
      }
      const oldest = this.#core.oldest();
      const isQueued = !this.#senders.some(({ item }) => item === waiting);
      if (isQueued && (oldest === undefined || oldest > last)) {
        return;
      }
      if (this.#failure !== undefined) {
        throw this.#unacknowledged(this.#failure.message);
      }
      const left = deadline === undefined ? undefined : deadline - performance.now();
      if (left !== undefined && left <= 0) {
        throw this.#unacknowledged(`not flushed within ${timeoutMs} ms`);
      }
      await this.#change(left);
    }
  }

  /**
   * Flushes and ends the publisher. Fails with `UnacknowledgedError` if some events have no final answer after
   * `timeoutMs`, 30,000 by default; their answers fail likewise.
   */
  async close(timeoutMs: number = defaultCloseMs): Promise<void> {
    if (this.#closing) {
      return;
    }
    const deadline = performance.now() + timeoutMs;
    this.#closing = true;
    this.#refuseSenders(new ClosedError("the publisher is closed"));
    this.#core.flush();
    this.#notify();
    while (!this.#core.isDone && this.#failure === undefined) {
      const left = deadline - performance.now();
      if (left <= 0) {
        break;
      }
      await this.#change(left);
    }
    let error: UnacknowledgedError | undefined;
    if (!this.#core.isDone) {
      error = this.#unacknowledged(this.#failure?.message ?? `not closed within ${timeoutMs} ms`);
      this.#end(error);
    }
    this.#notify();
    if (this.#running !== undefined && error === undefined) {
      const timer = setTimeout(() => this.#stream?.abort(), endMs);
      await this.#running;
      clearTimeout(timer);
    }
    this.#stream?.abort();
    if (error !== undefined) {
      throw error;
    }
  }

  #checkOpen(): void {
    if (this.#failure !== undefined) {
      throw new ClosedError(`the publisher has ended: ${this.#failure.message}`, { cause: this.#failure });
    }
    if (this.#closing) {
      throw new ClosedError("the publisher is closed");
    }
    if (this.#caller.isClosed) {
      throw new ClosedError("the client is closed");
    }
  }

  #unacknowledged(problem: string): UnacknowledgedError {
    const events = this.#core.unanswered().map((item) => item.event());
    return new UnacknowledgedError(problem, events, this.#failure);
  }

  #add(item: Item): void {
    const isDue = this.#core.add(item, performance.now());
    if (this.#running === undefined) {
      this.#running = this.#run();
    } else if (isDue) {
      this.#notify();
    }
  }

  // Queues events that waited for capacity, in the order of their calls.
  #admit(): void {
    let next = this.#senders[0];
    while (next !== undefined && this.#core.hasCapacity(next.item.weight)) {
      this.#senders.shift();
      this.#add(next.item);
      next.resolve();
      next = this.#senders[0];
    }
    if (next !== undefined) {
      this.#core.flush();
    }
  }

  #refuseSenders(error: ClosedError): void {
    for (const { reject } of this.#senders.splice(0)) {
      reject(error);
    }
  }

  // Ends the publisher. Events without an answer stay in the core, which names them.
  #end(failure: Error): void {
    if (this.#failure === undefined) {
      this.#failure = failure;
      this.#refuseSenders(new ClosedError(`the publisher has ended: ${failure.message}`, { cause: failure }));
    }
    for (const item of this.#core.unanswered()) {
      item.error ??= failure;
      item.settled?.(undefined, failure);
    }
    this.#notify();
  }

  #resolve(results: Results): void {
    for (const [item, result] of results) {
      item.settle(result);
    }
    this.#admit();
    this.#notify();
  }

  #notify(): void {
    for (const wake of this.#waiters) {
      wake();
    }
  }

  // Waits for the next `#notify`.
  async #change(ms?: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = ms === undefined ? undefined : setTimeout(() => wake(), Math.min(Math.max(ms, 1), 0x7fffffff));
      const wake = () => {
        clearTimeout(timer);
        this.#waiters.delete(wake);
        resolve();
      };
      this.#waiters.add(wake);
    });
  }

  get #isOver(): boolean {
    return this.#failure !== undefined || (this.#closing && this.#core.isDone);
  }

  // Runs streams until the publisher is closed or fails.
  async #run(): Promise<void> {
    try {
      while (!this.#isOver) {
        if (this.#core.isDone) {
          // No stream is opened before there is something to send.
          await this.#change();
        } else {
          await this.#runStream();
        }
      }
    } catch (error) {
      // A defect here must reach the callers, who would wait for ever.
      this.#end(error instanceof Error ? error : new Error(String(error)));
    }
  }

  // Runs one stream, and waits before the next one.
  async #runStream(): Promise<void> {
    const controller = this.#caller.begin();
    this.#stream = controller;
    let token = "";
    let error: SiemError;
    try {
      const authorized = await this.#caller.authorize(tokenMs);
      token = authorized.token;
      controller.signal.throwIfAborted();
      const requests = this.#requests(controller);
      const stream = await this.#caller.transport.stream(
        publishStream,
        controller.signal,
        undefined,
        authorized.header,
        requests,
      );
      for await (const answer of stream.message) {
        // The answers are there before `flush` returns.
        this.#resolve(this.#core.answered(answer, performance.now()));
      }
      error = new SiemError(Code.Unavailable, "the server ended the stream");
    } catch (reason) {
      if (this.#caller.isClosed) {
        throw new ClosedError("the client is closed");
      }
      error = reason instanceof Broken ? reason.error : fromReason(reason);
      if (this.#core.isOverdue(performance.now())) {
        error = new SiemError(Code.DeadlineExceeded, "the server does not answer");
      }
    } finally {
      this.#stream = undefined;
      controller.abort();
      this.#caller.release(controller);
      this.#notify();
    }
    if (this.#isOver) {
      return;
    }
    const wasDone = this.#core.isDone;
    const { results, wait } = this.#core.broke(error, performance.now(), this.#caller.tokenCanChange);
    this.#resolve(results);
    if (wait === undefined) {
      this.#caller.tokenRefused(token);
      return;
    }
    if (!wasDone) {
      this.#caller.retries(error, wait);
    }
    const until = performance.now() + wait;
    for (let left = wait; left > 0 && !this.#isOver; left = until - performance.now()) {
      await this.#change(left);
      if (this.#caller.isClosed) {
        throw new ClosedError("the client is closed");
      }
    }
  }

  // Returns the requests of one stream.
  async *#requests({ signal }: AbortController): AsyncGenerator<RawRequest> {
    while (!signal.aborted && !this.#isOver) {
      const now = performance.now();
      if (this.#core.isOverdue(now)) {
        this.#stream?.abort();
        return;
      }
      const request = this.#core.nextRequest(now);
      if (request !== undefined) {
        yield request;
        continue;
      }
      const wakeup = this.#core.nextWakeup();
      await this.#change(wakeup === undefined ? undefined : wakeup - now);
    }
  }
}

// PublishStream with requests whose events are encoded already: `repeated bytes` is the same on the wire.
const rawRequest = createFileRegistry(
  create(FileDescriptorProtoSchema, {
    name: "siem_client.proto",
    package: "siem.client",
    syntax: "proto3",
    messageType: [
      {
        name: "RawRequest",
        field: [
          { name: "request_id", jsonName: "requestId", number: 1, type: Type.STRING, label: Label.OPTIONAL },
          { name: "events", jsonName: "events", number: 2, type: Type.BYTES, label: Label.REPEATED },
        ],
      },
    ],
  }),
  () => undefined,
).getMessage("siem.client.RawRequest") as DescMessage;

const publishStream = {
  ...EventService.method.publishStream,
  input: rawRequest,
} as DescMethodStreaming<DescMessage, typeof PublishStreamResponseSchema>;
