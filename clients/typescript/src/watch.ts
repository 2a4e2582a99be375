// Follows StreamStatus over disconnects and restarts of the server.

import type { MessageInitShape } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import type { Caller } from "./caller.js";
import { sleep } from "./caller.js";
import { ConfigurationError, fromReason, SiemError } from "./errors.js";
import {
  SiemIntegrationService,
  type StatusAbsent,
  type StatusCurrent,
  type StatusDeleted,
  type StreamStatusRequestSchema,
  type StreamStatusResponse,
} from "./gen/siem/v1/integration_pb.js";
import { askedWait, backoff, type RetryOptions } from "./retry.js";

// Failures that come again however often the stream is opened.
const final: readonly Code[] = [
  Code.Unimplemented,
  Code.Unauthenticated,
  Code.PermissionDenied,
  Code.NotFound,
  Code.InvalidArgument,
  Code.OutOfRange,
  Code.FailedPrecondition,
];

/** The complete current statuses. It replaces everything that the watch returned before. */
export interface StatusSnapshot {
  readonly kind: "snapshot";
  /** Current status of each integration, by organization. */
  readonly statuses: ReadonlyMap<string, StatusCurrent>;
  /** Those of the named organizations that have no integration. */
  readonly absent: ReadonlySet<string>;
}

/** An event of a watch: a new picture, or a change of it. */
export type StatusEvent =
  | StatusSnapshot
  | { readonly kind: "current"; readonly organizationId: string; readonly current: StatusCurrent }
  | { readonly kind: "deleted"; readonly organizationId: string; readonly deleted: StatusDeleted }
  | { readonly kind: "absent"; readonly organizationId: string; readonly absent: StatusAbsent };

/** Options of a watch. */
export interface WatchOptions {
  /** Organizations, at most 1,000; none means all. */
  readonly organizationIds?: readonly string[] | undefined;
  /** `resumeToken` of an earlier watch, to continue after its last event. */
  readonly resumeToken?: string | undefined;
  /**
   * Milliseconds without a message after which the stream is opened again. By default 90,000, beside which the
   * connection is tested by pings, and 45,000 in browsers, which have none. It must exceed the server's setting
   * `heartbeat-seconds`.
   */
  readonly silenceMs?: number | undefined;
  /** Called when the stream is open, and with the reason when it has broken and will be opened again. */
  readonly onConnection?: ((isOpen: boolean, error?: SiemError) => void) | undefined;
}

/** State of a watch between messages. No I/O. */
export class WatchState {
  // Token of the last message. That of the last returned event is `resumeToken`.
  #token: string;
  resumeToken: string;
  // The incomplete picture; undefined while changes are returned one by one.
  #picture: { statuses: Map<string, StatusCurrent>; absent: Set<string> } | undefined;
  #failures = 0;
  #refreshed = false;
  #sentToken = "";

  constructor(
    private readonly organizationIds: readonly string[],
    resumeToken: string,
    private readonly retry: RetryOptions,
  ) {
    this.#token = this.resumeToken = resumeToken;
    if (resumeToken === "") {
      this.#startPicture();
    }
  }

  #startPicture(): void {
    this.#picture = { statuses: new Map(), absent: new Set() };
  }

  /** Returns the request of the next stream. */
  request(): MessageInitShape<typeof StreamStatusRequestSchema> {
    this.#sentToken = this.#token;
    return { organizationIds: [...this.organizationIds], resumeToken: this.#token };
  }

  /** Takes a message; returns the event to return, if there is one. */
  received({ event, resumeToken }: StreamStatusResponse): StatusEvent | undefined {
    this.#failures = 0;
    this.#refreshed = false;
    if (event.case === "reset") {
      // The token that was sent has been refused, and must not be sent again.
      this.#token = resumeToken === this.#sentToken ? "" : resumeToken;
      this.#startPicture();
      return undefined;
    }
    this.#token = resumeToken || this.#token;
    const picture = this.#picture;
    if (picture === undefined) {
      this.resumeToken = this.#token;
      switch (event.case) {
        case "current":
          return { kind: "current", organizationId: event.value.organizationId, current: event.value };
        case "deleted":
          return { kind: "deleted", organizationId: event.value.organizationId, deleted: event.value };
        case "absent":
          return { kind: "absent", organizationId: event.value.organizationId, absent: event.value };
        default:
          return undefined;
      }
    }
    switch (event.case) {
      case "current":
        picture.statuses.set(event.value.organizationId, event.value);
        picture.absent.delete(event.value.organizationId);
        return undefined;
      case "deleted":
        picture.statuses.delete(event.value.organizationId);
        if (this.organizationIds.includes(event.value.organizationId)) {
          picture.absent.add(event.value.organizationId);
        }
        return undefined;
      case "absent":
        picture.statuses.delete(event.value.organizationId);
        picture.absent.add(event.value.organizationId);
        return undefined;
      case "synced":
        this.#picture = undefined;
        this.resumeToken = this.#token;
        return { kind: "snapshot", ...picture };
      default:
        return undefined;
    }
  }

  /**
   * Returns the wait until the next stream, or undefined if it follows at once with a new bearer token. Throws the
   * error if the stream would be refused again.
   */
  failed(error: SiemError, tokenCanChange: boolean): number | undefined {
    if (error.code === Code.Unauthenticated && tokenCanChange && !this.#refreshed) {
      this.#refreshed = true;
      return undefined;
    }
    const isTokenRefused =
      error.code === Code.InvalidArgument && error.violations.some(({ field }) => field === "resume_token");
    if (isTokenRefused && this.#sentToken !== "") {
      // Nothing is known of the changes since then: a new picture.
      this.#token = "";
      this.#startPicture();
      return 0;
    }
    if (final.includes(error.code) || (error.code === Code.ResourceExhausted && error.retryDelay === undefined)) {
      throw error;
    }
    let wait = backoff(this.retry, this.#failures);
    if (error.retryDelay !== undefined) {
      wait = Math.max(wait, askedWait(error.retryDelay));
    }
    this.#failures += 1;
    return wait;
  }
}

/**
 * An endless iterator of status events: a snapshot, then each change. A broken stream is opened again and continues
 * after its last message. `for await` ends when the watch or the client is closed, and closes the watch when it is
 * left; it throws `SiemError` if the server refuses the watch, for example with PERMISSION_DENIED.
 */
export class StatusWatch implements AsyncIterableIterator<StatusEvent> {
  readonly #caller: Caller;
  readonly #state: WatchState;
  readonly #silenceMs: number;
  readonly #onConnection: WatchOptions["onConnection"];
  readonly #controller: AbortController;
  readonly #events: AsyncGenerator<StatusEvent, undefined>;
  // Error that the caller's own function has thrown.
  #thrown: unknown;

  /** @internal */
  constructor(caller: Caller, options: WatchOptions & { readonly silenceMs: number }) {
    this.#silenceMs = options.silenceMs;
    if (!(this.#silenceMs > 0) || this.#silenceMs > 0x7fffffff) {
      throw new ConfigurationError(`silenceMs: ${this.#silenceMs} is not a positive number of milliseconds below 2^31`);
    }
    this.#caller = caller;
    this.#state = new WatchState([...(options.organizationIds ?? [])], options.resumeToken ?? "", caller.retry);
    this.#onConnection = options.onConnection;
    this.#controller = caller.begin();
    this.#events = this.#run();
  }

  /** Token that continues after the last returned event, in another process too; empty before the first one. */
  get resumeToken(): string {
    return this.#state.resumeToken;
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  /** Waits for the next event. */
  async next(): Promise<IteratorResult<StatusEvent, undefined>> {
    return this.#events.next();
  }

  /** Closes the watch. */
  async return(): Promise<IteratorResult<StatusEvent, undefined>> {
    this.close();
    return this.#events.return(undefined);
  }

  /** Ends the stream and the iteration. */
  close(): void {
    this.#controller.abort();
    this.#caller.release(this.#controller);
  }

  async *#run(): AsyncGenerator<StatusEvent, undefined> {
    const { signal } = this.#controller;
    try {
      while (!signal.aborted) {
        const bearer = { token: "" };
        let error: SiemError;
        try {
          yield* this.#stream(signal, bearer);
          error = new SiemError(Code.Unavailable, "the server ended the stream");
        } catch (reason) {
          if (this.#thrown !== undefined) {
            throw this.#thrown;
          }
          error = fromReason(reason);
        }
        if (signal.aborted) {
          break;
        }
        const wait = this.#state.failed(error, this.#caller.tokenCanChange);
        if (wait === undefined) {
          this.#caller.tokenRefused(bearer.token);
        }
        this.#caller.retries(error, wait ?? 0);
        this.#onConnection?.(false, error);
        // Aborted by `close`.
        await sleep(wait ?? 0, signal).catch(() => undefined);
      }
      return undefined;
    } finally {
      this.close();
    }
  }

  #opened(): void {
    try {
      this.#onConnection?.(true);
    } catch (error) {
      this.#thrown = error ?? new Error("onConnection failed");
      throw error;
    }
  }

  /** Runs one stream until it breaks. */
  async *#stream(ends: AbortSignal, bearer: { token: string }): AsyncGenerator<StatusEvent> {
    const controller = new AbortController();
    const end = () => controller.abort();
    ends.addEventListener("abort", end);
    let isSilent = false;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const silence = () => {
      isSilent = true;
      controller.abort();
    };
    try {
      const { header, token } = await this.#caller.authorize(this.#silenceMs);
      bearer.token = token;
      ends.throwIfAborted();
      timer = setTimeout(silence, this.#silenceMs);
      const method = SiemIntegrationService.method.streamStatus;
      const request = once(this.#state.request());
      const stream = await this.#caller.transport.stream(method, controller.signal, undefined, header, request);
      this.#opened();
      for await (const message of stream.message) {
        clearTimeout(timer);
        const event = this.#state.received(message);
        if (event !== undefined) {
          // The time in which the caller has the event does not count.
          yield event;
        }
        timer = setTimeout(silence, this.#silenceMs);
      }
    } catch (reason) {
      throw isSilent ? new SiemError(Code.Unavailable, "the server is silent") : reason;
    } finally {
      clearTimeout(timer);
      ends.removeEventListener("abort", end);
      controller.abort();
    }
  }
}

async function* once<T>(value: T): AsyncGenerator<T> {
  yield value;
}
