// Checks of an address, and of what is to be sent there.

import { ConfigurationError } from "./errors.js";

/** Refuses what a program without types may give instead of options. */
export function checkObject(options: unknown): void {
  if (typeof options !== "object" || options === null) {
    throw new ConfigurationError(`options: ${String(options)} is no object; use connect({ address: "https://HOST:PORT" })`);
  }
}

/** Returns the origin of a server, such as `https://relay.example.com`. */
export function checkAddress(address: string, hasTls: boolean, hasToken: boolean): URL {
  let url: URL;
  try {
    url = new URL(/^[a-z][a-z0-9+.-]*:\/\//i.test(address) ? address : `${hasTls ? "https" : "http"}://${address}`);
  } catch {
    throw new ConfigurationError(`address ${address} cannot be read; use http://HOST:PORT or https://HOST:PORT`);
  }
  if (url.protocol !== "http:" && url.protocol !== "https:") {
    throw new ConfigurationError(`address ${address}: the scheme is ${url.protocol.slice(0, -1)}; use http or https`);
  }
  if (url.pathname !== "/" || url.search !== "" || url.hash !== "" || url.username !== "" || url.password !== "") {
    throw new ConfigurationError(`address ${address} is not of the form http://HOST:PORT or https://HOST:PORT`);
  }
  if (url.protocol === "http:" && hasTls) {
    throw new ConfigurationError(`address ${address} is plaintext, but tls is given; use https`);
  }
  if (url.protocol === "http:" && hasToken && !isLoopback(url.hostname)) {
    throw new ConfigurationError(
      `address ${address}: a token is not sent in clear to another machine; use https, or loopback`,
    );
  }
  return url;
}

// `URL` has brought addresses into their canonical form.
function isLoopback(hostname: string): boolean {
  return hostname === "localhost" || hostname === "[::1]" || /^127\.\d+\.\d+\.\d+$/.test(hostname);
}
