// The calls of a client: deadlines, retries, tokens, and their end when the client is closed.

import type { DescMessage, DescMethodUnary, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import type { Transport } from "@connectrpc/connect";
import { ClosedError, ConfigurationError, fromReason, type SiemError } from "./errors.js";
import { Attempts, type RetryOptions } from "./retry.js";
import { type Token, type TokenFunction, Tokens, type TokenSource } from "./tokens.js";

const defaultTimeoutMs = 30_000;
// Eight digits, the limit of `grpc-timeout`.
const maxTimeoutMs = 99_999_999;

// Timers end at once beyond this.
const maxTimerMs = 0x7fffffff;

/** Options of one call. */
export interface CallOptions {
  /** Deadline in milliseconds over all attempts; by default that of `connect`. */
  readonly timeoutMs?: number | undefined;
  /** Cancels the call, which then fails with the reason of the signal. */
  readonly signal?: AbortSignal | undefined;
}

/** Options of a connection that all environments have. */
export interface CommonOptions {
  /** Bearer token, or a function that gives it. */
  readonly token?: string | Token | TokenFunction | TokenSource | undefined;
  /** Deadline of a call over all attempts in milliseconds, 30,000 by default, where the call has none of its own. */
  readonly timeoutMs?: number | undefined;
  /** Waits between attempts. */
  readonly retry?: RetryOptions | undefined;
  /** Called with each failure after which an attempt follows, and the wait before that in milliseconds. */
  readonly onRetry?: ((error: SiemError, waitMs: number) => void) | undefined;
}

/** Returns the deadline of a call. */
export function checkTimeout(timeoutMs: number | undefined, byDefault = defaultTimeoutMs): number {
  if (timeoutMs === undefined) {
    return byDefault;
  }
  if (!(timeoutMs > 0) || timeoutMs > maxTimeoutMs) {
    throw new ConfigurationError(`timeoutMs: ${timeoutMs} is not a number of milliseconds from 1 to ${maxTimeoutMs}`);
  }
  return timeoutMs;
}

/** Makes calls over a transport. */
export class Caller {
  readonly retry: RetryOptions;
  readonly #tokens: Tokens | undefined;
  readonly #timeoutMs: number;
  readonly #onRetry: CommonOptions["onRetry"];
  readonly #open = new Set<AbortController>();
  #isClosed = false;

  constructor(
    readonly transport: Transport,
    options: CommonOptions,
    private readonly header: Record<string, string>,
  ) {
    this.#tokens = options.token === undefined ? undefined : new Tokens(options.token);
    this.#timeoutMs = checkTimeout(options.timeoutMs);
    this.retry = options.retry ?? {};
    this.#onRetry = options.onRetry;
  }

  /** Whether `close` was called. */
  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** Whether fetching the token again can give another one. */
  get tokenCanChange(): boolean {
    return this.#tokens?.canChange ?? false;
  }

  /** Ends all calls. */
  close(): void {
    this.#isClosed = true;
    for (const controller of this.#open) {
      controller.abort(new ClosedError("the client is closed"));
    }
  }

  /** Returns a controller that `close` aborts, until it is released. */
  begin(): AbortController {
    if (this.#isClosed) {
      throw new ClosedError("the client is closed");
    }
    const controller = new AbortController();
    this.#open.add(controller);
    return controller;
  }

  /** Releases a controller of `begin`. */
  release(controller: AbortController): void {
    this.#open.delete(controller);
  }

  /** Returns the headers of a call, and the token in them. */
  async authorize(timeoutMs: number): Promise<{ header: Record<string, string>; token: string }> {
    if (this.#tokens === undefined) {
      return { header: this.header, token: "" };
    }
    const token = await this.#tokens.get(timeoutMs);
    return { header: { ...this.header, authorization: `Bearer ${token}` }, token };
  }

  /** Drops a token that the server refused. */
  tokenRefused(token: string): void {
    this.#tokens?.refused(token);
  }

  /** Reports a failure after which an attempt follows. */
  retries(error: SiemError, waitMs: number): void {
    this.#onRetry?.(error, waitMs);
  }

  /**
   * Makes a call, with as many attempts as its deadline and its kind allow. `resend`: it may be sent again after a lost
   * answer.
   */
  async unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
    options: CallOptions,
    resend: boolean,
  ): Promise<MessageShape<O>> {
    const timeoutMs = checkTimeout(options.timeoutMs, this.#timeoutMs);
    options.signal?.throwIfAborted();
    const controller = this.begin();
    const { signal } = controller;
    const cancel = () => controller.abort(options.signal?.reason);
    options.signal?.addEventListener("abort", cancel);
    const attempts = new Attempts(this.retry, performance.now(), timeoutMs, resend);
    try {
      for (;;) {
        let token = "";
        let error: SiemError;
        try {
          const authorized = await this.authorize(attempts.left(performance.now()));
          signal.throwIfAborted();
          token = authorized.token;
          const left = attempts.left(performance.now());
          return (await this.transport.unary(method, signal, left, authorized.header, request)).message;
        } catch (reason) {
          signal.throwIfAborted();
          error = fromReason(reason);
        }
        const wait = attempts.failed(error, performance.now(), this.tokenCanChange);
        if (wait === undefined) {
          this.tokenRefused(token);
          continue;
        }
        this.retries(error, wait);
        await sleep(wait, signal);
      }
    } finally {
      options.signal?.removeEventListener("abort", cancel);
      this.release(controller);
    }
  }
}

/** Waits, at most 24 days, or throws the reason of the signal. */
export async function sleep(ms: number, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  await new Promise<void>((resolve, reject) => {
    const end = () => {
      clearTimeout(timer);
      reject(signal.reason as Error);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", end);
      resolve();
    }, Math.min(ms, maxTimerMs));
    signal.addEventListener("abort", end);
  });
}
