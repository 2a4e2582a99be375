/**
 * Client of the `siem.v1` API of siem-relay for Node, over gRPC.
 *
 * @example
 * ```ts
 * import { connect, enumName, statusOf, v1 } from "@siem-relay/client";
 *
 * const client = connect({ address: "http://127.0.0.1:50051" });
 * const { integration } = await client.get({ organizationId: "acme" });
 * console.log(enumName(v1.StatusSchema, statusOf(integration?.status)), integration?.status?.message);
 * client.close();
 * ```
 *
 * @module
 */

import { readFile } from "node:fs/promises";
import { compressionGzip, createGrpcTransport } from "@connectrpc/connect-node";
import { checkAddress, checkObject } from "./address.js";
import { Caller, type CommonOptions } from "./caller.js";
import { Client as CommonClient } from "./client.js";
import { checkTls, Connections } from "./connection.js";
import type { PublisherOptions } from "./publishCore.js";
import { Publisher } from "./publisher.js";
import type { Tls } from "./tls.js";
import type { TokenSource } from "./tokens.js";
import { version } from "./version.js";

export * from "./common.js";
export type { Outcome, PublisherOptions, PublisherStats, PublishResult } from "./publishCore.js";
export { Publisher, Sent } from "./publisher.js";
export type { Pem, Tls } from "./tls.js";

/** Address of a server that runs on this machine. */
export const defaultAddress = "http://127.0.0.1:50051";

// List and ListAuditEntries have pages of 2 MiB and more.
const maxMessageBytes = 16 << 20;

/**
 * A file with a token, such as a projected service account token of Kubernetes. It is read again every minute, ahead of
 * the token's expiry, and when the server refuses the token.
 */
export class TokenFile implements TokenSource {
  readonly rereadMs = 60_000;

  /** `path`: path of the file. */
  constructor(readonly path: string) {}

  /** Reads the file. */
  readonly read = async (): Promise<string> => (await readFile(this.path, "utf8")).trim();
}

/** Options of `connect`. */
export interface ConnectOptions extends CommonOptions {
  /**
   * `http://HOST:PORT`, `https://HOST:PORT`, or `HOST:PORT` (TLS if `tls` is given, else plaintext); by default
   * `defaultAddress`.
   */
  readonly address?: string | undefined;
  /** Authorities to trust and the client's certificate. `https` without it trusts Node's own list. */
  readonly tls?: Tls | undefined;
  /** Compresses requests. */
  readonly gzip?: boolean | undefined;
}

/** A client for Node: the calls, the status watch, and a publisher. */
export class Client extends CommonClient {
  /** Returns a publisher for many events. Close it. */
  publisher(options: PublisherOptions = {}): Publisher {
    return new Publisher(this.caller, options);
  }
}

/**
 * Returns a client, which connects at its first use. Throws `ConfigurationError` if an argument cannot be used, or if a
 * token would be sent in clear to another machine.
 */
export function connect(options: ConnectOptions = {}): Client {
  checkObject(options);
  const { tls } = options;
  const address = options.address ?? defaultAddress;
  const { origin } = checkAddress(address, tls !== undefined, options.token !== undefined);
  if (tls !== undefined) {
    checkTls(tls);
  }
  const sessionManager = new Connections(origin, tls ?? {});
  const transport = createGrpcTransport({
    baseUrl: origin,
    sessionManager,
    readMaxBytes: maxMessageBytes,
    ...(options.gzip ? { sendCompression: compressionGzip } : {}),
  });
  const header = { "user-agent": `siem-client-typescript/${version}` };
  return new Client(new Caller(transport, options, header), () => sessionManager.close());
}
