// Decisions about failed attempts, and the waits between them. No I/O; times are arguments, in milliseconds.

import { Code } from "@connectrpc/connect";
import { SiemError } from "./errors.js";
import { ErrorReason } from "./gen/siem/v1/error_pb.js";

/** Waits between attempts. */
export interface RetryOptions {
  /** Milliseconds after the first failure, 100 by default; doubled with each further one in a row. */
  readonly minWaitMs?: number;
  /** Longest wait in milliseconds, 5,000 by default, unless the server asks for a longer one. */
  readonly maxWaitMs?: number;
}

// An attempt with less time than this would only hide the failure before it.
const minAttemptMs = 100;

function between(from: number, to: number): number {
  return from + Math.random() * (to - from);
}

/**
 * Returns the wait after this number of earlier failures in a row. The jitter follows the limit, so that clients stay
 * spread once they have reached it.
 */
export function backoff(options: RetryOptions, failures: number, uniform = between): number {
  const { minWaitMs = 100, maxWaitMs = 5_000 } = options;
  return Math.min(minWaitMs * 2 ** Math.min(failures, 60), maxWaitMs) * uniform(0.5, 1);
}

/** Returns a wait that is never shorter than the one that the server asked for. */
export function askedWait(asked: number, uniform = between): number {
  return asked * uniform(1, 1.25);
}

/**
 * Reports whether the same call can succeed later. `resend`: the call may be sent twice although the first one may
 * have taken effect.
 */
export function isTemporary(error: SiemError, resend: boolean): boolean {
  if (error.code === Code.ResourceExhausted) {
    // The server refused the request before it did anything.
    return error.retryDelay !== undefined;
  }
  // With STORAGE_FAILED nothing was done. SHUTTING_DOWN may end a test event that is already written.
  return (
    error.code === Code.Unavailable && (resend || error.neverSent || error.reason === ErrorReason.STORAGE_FAILED)
  );
}

/** The attempts of one call, which share one deadline. */
export class Attempts {
  readonly #deadline: number;
  #failures = 0;
  #refreshed = false;
  #last: SiemError | undefined;

  constructor(
    private readonly options: RetryOptions,
    now: number,
    timeoutMs: number,
    private readonly resend: boolean,
  ) {
    this.#deadline = now + timeoutMs;
  }

  /** Returns the time until the deadline, a whole number and at least 1. */
  left(now: number): number {
    return Math.max(Math.ceil(this.#deadline - now), 1);
  }

  /**
   * Returns the wait until the next attempt, or undefined if it follows at once with a new token. Throws the error if
   * the call has failed for good.
   */
  failed(error: SiemError, now: number, tokenCanChange: boolean): number | undefined {
    error.attempts = this.#failures + 1;
    if (error.code === Code.DeadlineExceeded && this.#last !== undefined && error.reasonName === "") {
      // The deadline of all attempts says less than the failure that used it up.
      error.message = `${error.message}; the attempt before failed: ${this.#last}`;
    }
    if (error.code === Code.Unauthenticated && tokenCanChange && !this.#refreshed) {
      this.#refreshed = true;
      this.#failures += 1;
      return undefined;
    }
    if (!isTemporary(error, this.resend)) {
      throw error;
    }
    let wait = backoff(this.options, this.#failures);
    if (error.retryDelay !== undefined) {
      wait = Math.max(wait, askedWait(error.retryDelay));
    }
    if (wait + minAttemptMs >= this.#deadline - now) {
      throw error;
    }
    this.#failures += 1;
    this.#last = error;
    return wait;
  }
}
