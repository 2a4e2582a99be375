// Bearer tokens: kept while they are valid, fetched ahead of their expiry, once for all calls.

import { Code } from "@connectrpc/connect";
import { ConfigurationError, SiemError } from "./errors.js";

// RFC 6750, b64token.
const form = /^[A-Za-z0-9\-._~+/]+=*$/;
// Part of its lifetime after which a token is replaced.
const refreshAt = 0.8;
// A fresh token that looks expired: the clocks differ, and the server decides.
const skewedMs = 30_000;
const minPauseMs = 1_000;
const maxPauseMs = 30_000;
// Time after which a function that has not answered is called again.
const fetchMs = 30_000;

/** A token with its expiry. A JWT needs none: the client reads its claim `exp`. */
export interface Token {
  /** The token, without `Bearer`. */
  readonly value: string;
  /** Time of expiry, if it is known. */
  readonly expiresAt?: Date;
}

/** A function that gives a token. It is called once for all calls, ahead of the expiry and after a refusal. */
export type TokenFunction = () => string | Token | Promise<string | Token>;

/** A token that may be replaced at any time. */
export interface TokenSource {
  /** Milliseconds after which it is read again, also if it has not expired. */
  readonly rereadMs: number;
  /** Reads it. */
  readonly read: TokenFunction;
}

function checked(token: unknown): Token {
  const made = typeof token === "string" ? { value: token } : (token as Token | null | undefined);
  if (typeof made !== "object" || made === null || typeof made.value !== "string") {
    throw new TypeError("the token function returned neither a string nor a Token");
  }
  if (!form.test(made.value)) {
    throw new TypeError("the token is empty, or has characters that a bearer token cannot have");
  }
  if (made.expiresAt !== undefined && Number.isNaN(made.expiresAt.getTime())) {
    throw new TypeError("expiresAt of the token is not a valid Date");
  }
  return made;
}

// Returns the time of expiry in milliseconds since 1970, if it is known.
function expiry(token: Token): number | undefined {
  if (token.expiresAt !== undefined) {
    return token.expiresAt.getTime();
  }
  const parts = token.value.split(".");
  if (parts.length !== 3) {
    return undefined;
  }
  try {
    const claims: unknown = JSON.parse(atob((parts[1] ?? "").replaceAll("-", "+").replaceAll("_", "/")));
    const exp = typeof claims === "object" && claims !== null && "exp" in claims ? claims.exp : undefined;
    return typeof exp === "number" && Number.isFinite(exp) ? exp * 1000 : undefined;
  } catch {
    return undefined;
  }
}

/** The current token. No I/O; `now` is in milliseconds since 1970. */
export class TokenState {
  #value: string | undefined;
  #refreshAt: number | undefined;
  #validUntil: number | undefined;
  #failures = 0;
  #blockedUntil = 0;
  error: unknown;

  constructor(private readonly rereadMs: number | undefined) {}

  /** Returns the token if it may be sent. */
  usable(now: number): string | undefined {
    return this.#validUntil !== undefined && now >= this.#validUntil ? undefined : this.#value;
  }

  /** Reports whether a new token should be fetched now. */
  wantsFetch(now: number): boolean {
    if (now < this.#blockedUntil) {
      return false;
    }
    return this.usable(now) === undefined || (this.#refreshAt !== undefined && now >= this.#refreshAt);
  }

  /** Takes a new token. */
  fetched(token: Token, now: number): void {
    this.#value = token.value;
    this.error = undefined;
    this.#failures = this.#blockedUntil = 0;
    this.#validUntil = undefined;
    this.#refreshAt = this.rereadMs === undefined ? undefined : now + this.rereadMs;
    const end = expiry(token);
    if (end === undefined) {
      return;
    }
    const life = end - now;
    let refresh = now + skewedMs;
    if (life > 0) {
      refresh = now + life * refreshAt;
      // Not sent in its last moments, as it would expire on the way.
      this.#validUntil = end - Math.min(5_000, life * 0.1);
    }
    this.#refreshAt = Math.min(refresh, this.#refreshAt ?? refresh);
  }

  /** Takes a failure to fetch. The next attempt follows after a pause, for all calls together. */
  failed(error: unknown, now: number): void {
    this.error = error;
    this.#blockedUntil = now + Math.min(minPauseMs * 2 ** Math.min(this.#failures, 10), maxPauseMs);
    this.#failures += 1;
  }

  /** Drops a token that the server refused, unless another call has replaced it already. */
  refused(value: string): void {
    if (this.#value === value) {
      this.#value = undefined;
    }
  }

  /** Leaves the decision about a token that cannot be replaced to the server. */
  keep(): void {
    this.#refreshAt = this.#validUntil = undefined;
  }
}

function unfetched(error?: unknown): SiemError {
  const problem = error === undefined ? " in time" : `: ${error instanceof Error ? error.message : String(error)}`;
  return new SiemError(Code.Unavailable, `the token could not be fetched${problem}`, { neverSent: true, cause: error });
}

/** The token of a client. */
export class Tokens {
  readonly #state: TokenState;
  readonly #fetch: TokenFunction | undefined;
  #fetching: Promise<void> | undefined;

  constructor(token: string | Token | TokenFunction | TokenSource) {
    this.#state = new TokenState(undefined);
    if (typeof token === "function") {
      this.#fetch = token;
    } else if (typeof token === "object" && token !== null && "read" in token) {
      this.#fetch = token.read;
      this.#state = new TokenState(token.rereadMs);
    } else {
      try {
        this.#state.fetched(checked(token), Date.now());
      } catch {
        throw new ConfigurationError(
          "token: this is neither a bearer token, a Token, a function nor a TokenFile; give one of them, without 'Bearer '",
        );
      }
      this.#state.keep();
    }
  }

  /** Whether fetching again can give another token. */
  get canChange(): boolean {
    return this.#fetch !== undefined;
  }

  /** Returns the token, and fetches it where that is needed. Throws UNAVAILABLE if it could not be fetched in time. */
  async get(timeoutMs: number): Promise<string> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      if (this.#fetch !== undefined && this.#fetching === undefined && this.#state.wantsFetch(Date.now())) {
        this.#fetching = this.#run(this.#fetch).finally(() => (this.#fetching = undefined));
      }
      const value = this.#state.usable(Date.now());
      if (value !== undefined) {
        return value;
      }
      if (this.#fetching === undefined) {
        throw unfetched(this.#state.error);
      }
      if (!(await endsWithin(this.#fetching, deadline - performance.now()))) {
        throw unfetched();
      }
    }
  }

  /** Drops a token that the server refused. */
  refused(value: string): void {
    if (this.canChange) {
      this.#state.refused(value);
    }
  }

  async #run(fetch: TokenFunction): Promise<void> {
    try {
      const fetched = Promise.resolve(fetch());
      // A call that waits has a timer of its own; a process without one may end meanwhile.
      if (!(await endsWithin(fetched, fetchMs, false))) {
        throw new Error(`the token function did not answer within ${fetchMs / 1000} s`);
      }
      this.#state.fetched(checked(await fetched), Date.now());
    } catch (error) {
      this.#state.failed(error ?? new Error("the token function failed"), Date.now());
    }
  }
}

// Reports whether a promise settles in time. `keepAlive`: a process of Node does not end before.
async function endsWithin(promise: Promise<unknown>, ms: number, keepAlive = true): Promise<boolean> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<boolean>((resolve) => (timer = setTimeout(resolve, Math.max(ms, 0), false)));
  if (!keepAlive) {
    // A number in browsers.
    (timer as { unref?: () => void } | undefined)?.unref?.();
  }
  const done = promise.then(
    () => true,
    () => true,
  );
  try {
    return await Promise.race([done, late]);
  } finally {
    clearTimeout(timer);
  }
}
