// HTTP/2 connections of Node. Connect's own manager ends the process with uncaught errors: a session that was destroyed
// after a GOAWAY emits its error when nobody listens any more, and its timer pings destroyed sessions.

import { readFileSync } from "node:fs";
import { type ClientHttp2Session, type ClientHttp2Stream, connect, constants } from "node:http2";
import type { ClientSessionRequestOptions, OutgoingHttpHeaders, SecureClientSessionOptions } from "node:http2";
import { createSecureContext, type SecureContextOptions } from "node:tls";
import { Code, ConnectError } from "@connectrpc/connect";
import type { createGrpcTransport } from "@connectrpc/connect-node";
import { ClosedError, ConfigurationError, NeverSent } from "./errors.js";
import type { Pem, Tls } from "./tls.js";

type SessionManager = NonNullable<Parameters<typeof createGrpcTransport>[0]["sessionManager"]>;

// A connection whose peer vanished ends after at most 40 s. Pings are sent only while a call is open.
const aliveMs = 30_000;
const pingMs = 10_000;
const connectMs = 10_000;
// Until the server names its own limit of streams.
const assumedStreams = 100;
const sessionMemoryMib = 64;

function read(name: string, pem: Pem | undefined): string | undefined {
  if (pem === undefined) {
    return undefined;
  }
  let text = typeof pem === "string" ? pem : new TextDecoder().decode(pem);
  if (typeof pem === "string" && !pem.includes("-----BEGIN")) {
    try {
      text = readFileSync(pem, "utf8");
    } catch (error) {
      throw new ConfigurationError(`tls.${name}: ${(error as Error).message}`);
    }
  }
  if (!text.includes("-----BEGIN")) {
    throw new ConfigurationError(`tls.${name}: this is no PEM; convert DER with openssl`);
  }
  return text;
}

function secureOptions(tls: Tls): SecureContextOptions {
  if ((tls.certificate === undefined) !== (tls.key === undefined)) {
    throw new ConfigurationError("tls: certificate and key must be given together");
  }
  return { ca: read("ca", tls.ca), cert: read("certificate", tls.certificate), key: read("key", tls.key) };
}

/** Checks certificates and key, which may change later. */
export function checkTls(tls: Tls): void {
  const options = secureOptions(tls);
  try {
    createSecureContext(options);
  } catch (error) {
    throw new ConfigurationError(`tls: ${(error as Error).message}; check that the key is that of the certificate`);
  }
}

/** The connections of a client: one, and further ones if the server limits the streams of one connection. */
export class Connections implements SessionManager {
  readonly #sessions = new Set<Session>();
  #opening: Promise<void> | undefined;
  readonly #ending = new AbortController();

  constructor(
    readonly authority: string,
    private readonly tls: Tls,
  ) {}

  /** Opens a stream, on a new connection if there is none that can take it. */
  async request(
    method: string,
    path: string,
    headers: OutgoingHttpHeaders,
    options: ClientSessionRequestOptions,
  ): Promise<ClientHttp2Stream> {
    for (;;) {
      if (this.#ending.signal.aborted) {
        throw new ClosedError("the client is closed");
      }
      const session = [...this.#sessions].find((each) => each.canTake);
      if (session === undefined) {
        this.#opening ??= this.#open().finally(() => (this.#opening = undefined));
        await this.#opening;
        continue;
      }
      if (session.isDoubtful) {
        await session.verify();
        continue;
      }
      try {
        return session.request({ ...headers, ":method": method, ":path": path }, options);
      } catch (error) {
        // The session may have ended since the last event; it cannot take streams then.
        if (session.canTake) {
          throw error;
        }
      }
    }
  }

  /** Notes that the peer lives. */
  notifyResponseByteRead(stream: ClientHttp2Stream): void {
    for (const session of this.#sessions) {
      session.read(stream);
    }
  }

  /** Ends all connections with their streams. */
  close(): void {
    this.#ending.abort();
    for (const session of this.#sessions) {
      session.destroy("the client is closed");
    }
  }

  async #open(): Promise<void> {
    let http2: ClientHttp2Session;
    try {
      http2 = await establish(this.authority, this.tls, this.#ending.signal);
    } catch (error) {
      const cause = new NeverSent(describe(error), { cause: error });
      const message = `no connection to ${this.authority}: ${cause.message}`;
      throw new ConnectError(message, Code.Unavailable, undefined, undefined, cause);
    }
    const session = new Session(http2);
    this.#sessions.add(session);
    http2.once("close", () => this.#sessions.delete(session));
  }
}

// Texts of errors whose own message is empty: Node tries all addresses of a host.
function describe(error: unknown): string {
  if (error instanceof AggregateError) {
    return error.errors.map(describe).join(", ");
  }
  return error instanceof Error ? error.message || error.name : String(error);
}

// Returns a session whose peer has sent its SETTINGS. So it speaks HTTP/2, and has taken the client certificate.
async function establish(authority: string, tls: Tls, ending: AbortSignal): Promise<ClientHttp2Session> {
  const options: SecureClientSessionOptions = { maxSessionMemory: sessionMemoryMib };
  if (authority.startsWith("https:")) {
    Object.assign(options, secureOptions(tls));
    if (tls.serverName !== undefined) {
      options.servername = tls.serverName;
    }
  }
  const http2 = connect(authority, options);
  // For the life of the session: errors also arrive as the end of its streams.
  http2.on("error", () => undefined);
  const end = () => http2.destroy();
  ending.addEventListener("abort", end);
  http2.once("close", () => ending.removeEventListener("abort", end));
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      reject(new Error(`no answer within ${connectMs / 1000} s`));
      http2.destroy();
    }, connectMs);
    http2.once("error", reject);
    http2.once("close", () => {
      clearTimeout(timer);
      const isAnonymous = authority.startsWith("https:") && tls.certificate === undefined;
      const hint = isAnonymous ? "; if it asks for a client certificate, give tls.certificate and tls.key" : "";
      reject(new Error(`the server closed the connection${hint}`));
    });
    http2.once("remoteSettings", () => {
      clearTimeout(timer);
      http2.off("error", reject);
      resolve(http2);
    });
  });
}

/** One connection. */
class Session {
  #streams = 0;
  // Streams and checks that keep the process alive.
  #holds = 0;
  #lastRead = performance.now();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #verifying: Promise<void> | undefined;

  constructor(private readonly http2: ClientHttp2Session) {
    http2.unref();
    http2.once("close", () => clearTimeout(this.#timer));
  }

  /** Whether a stream can be opened now. */
  get canTake(): boolean {
    const limit = Math.max(this.http2.remoteSettings.maxConcurrentStreams ?? assumedStreams, 1);
    // After a GOAWAY it is closed, while its streams go on.
    return !this.http2.closed && !this.http2.destroyed && this.#streams < limit;
  }

  /** Whether the peer may have vanished since something was last read. */
  get isDoubtful(): boolean {
    return this.#streams === 0 && performance.now() - this.#lastRead > aliveMs;
  }

  /** Asks whether the peer lives, and destroys the session if it does not answer. */
  verify(): Promise<void> {
    this.#verifying ??= new Promise<void>((resolve) => {
      this.#hold();
      this.#ping(() => {
        this.#unhold();
        this.#verifying = undefined;
        resolve();
      });
    });
    return this.#verifying;
  }

  request(headers: OutgoingHttpHeaders, options: ClientSessionRequestOptions): ClientHttp2Stream {
    const stream = this.http2.request(headers, options);
    // Connect listens a little later, and an error until then would end the process.
    stream.on("error", () => undefined);
    this.#streams += 1;
    this.#hold();
    if (this.#streams === 1) {
      this.#schedule(aliveMs);
    }
    stream.once("close", () => {
      this.#streams -= 1;
      this.#unhold();
      if (this.#streams === 0) {
        clearTimeout(this.#timer);
      }
    });
    return stream;
  }

  read(stream: ClientHttp2Stream): void {
    if (stream.session === this.http2) {
      this.#lastRead = performance.now();
    }
  }

  destroy(problem: string): void {
    if (!this.http2.destroyed) {
      this.http2.destroy(new ConnectError(problem, Code.Unavailable), constants.NGHTTP2_CANCEL);
    }
  }

  #hold(): void {
    this.#holds += 1;
    if (this.#holds === 1 && !this.http2.destroyed) {
      this.http2.ref();
    }
  }

  #unhold(): void {
    this.#holds -= 1;
    if (this.#holds === 0 && !this.http2.destroyed) {
      this.http2.unref();
    }
  }

  #schedule(ms: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#check(), ms).unref();
  }

  #check(): void {
    const left = this.#lastRead + aliveMs - performance.now();
    if (left > 0) {
      this.#schedule(left);
    } else {
      this.#ping(() => this.#streams > 0 && this.#schedule(aliveMs));
    }
  }

  // Calls `done` when the session is alive or destroyed.
  #ping(done: () => void): void {
    let isDone = false;
    const end = () => {
      clearTimeout(timer);
      if (!isDone) {
        isDone = true;
        done();
      }
    };
    const timer = setTimeout(() => {
      // An answer may have waited for a process that was busy.
      setImmediate(() => {
        if (!isDone) {
          this.destroy(`the server did not answer a ping within ${pingMs / 1000} s`);
          end();
        }
      });
    }, pingMs).unref();
    if (this.http2.destroyed) {
      end();
      return;
    }
    try {
      this.http2.ping((error) => {
        if (error === null) {
          this.#lastRead = performance.now();
        }
        end();
      });
    } catch (error) {
      this.destroy(describe(error));
      end();
    }
  }
}
