/**
 * Client of the `siem.v1` API of siem-relay for browsers, over gRPC-Web.
 *
 * It has the names and behaviours of the one for Node, without the publisher: gRPC-Web has no streams of requests. The
 * server needs the setting `grpc-web`.
 *
 * @module
 */

import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { checkAddress, checkObject } from "./address.js";
import { Caller, type CommonOptions } from "./caller.js";
import { Client } from "./client.js";
import { ConfigurationError } from "./errors.js";

export * from "./common.js";
export { Client } from "./client.js";

// One and a half of the server's default heartbeat: browsers do not test their connections.
const silenceMs = 45_000;

/** Options of `connect`. */
export interface ConnectOptions extends CommonOptions {
  /** `https://HOST:PORT`, or `http://HOST:PORT`; by default the origin of the page. */
  readonly address?: string | undefined;
}

/**
 * Returns a client. Throws `ConfigurationError` if an argument cannot be used, or if a token would be sent in clear to
 * another machine.
 */
export function connect(options: ConnectOptions = {}): Client {
  checkObject(options);
  if ("tls" in options) {
    throw new ConfigurationError("tls: the browser decides which authorities and client certificates it uses");
  }
  const address = options.address ?? (globalThis as { location?: { origin: string } }).location?.origin;
  if (address === undefined) {
    throw new ConfigurationError("address: there is no page whose origin it could be; give https://HOST:PORT");
  }
  const { origin } = checkAddress(address, false, options.token !== undefined);
  const transport = createGrpcWebTransport({ baseUrl: origin });
  return new Client(new Caller(transport, options, {}), () => undefined, silenceMs);
}
