// Options of transport security, apart from code whose declarations need the types of Node.

/**
 * A certificate or key: its PEM as text or bytes, or the path of a file, which is read for each new connection, so that
 * it may be replaced at any time.
 */
export type Pem = string | Uint8Array;

/** Transport security. */
export interface Tls {
  /** Certificates of the authorities to trust; those of Node by default. */
  readonly ca?: Pem | undefined;
  /** Certificate chain of this client, for a server that asks for one. */
  readonly certificate?: Pem | undefined;
  /** Private key of `certificate`. */
  readonly key?: Pem | undefined;
  /** Name to expect in the server's certificate, if it is not the host of the address. */
  readonly serverName?: string | undefined;
}
