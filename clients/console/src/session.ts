// The connection to the service: token, statuses of all integrations, and their interruption.

import { type Client, Code, connect, SiemError, type v1 } from "@siem-relay/client/browser";

/** State of the stream of statuses. */
export type Connection = "connecting" | "open" | "broken" | "paused" | "refused";

/** Reports of a session. */
export interface Listener {
  /** The statuses have changed: those of one organization, or all. */
  statuses(organizationId?: string): void;
  connection(state: Connection): void;
  /** The service wants a token, or another one. */
  tokenNeeded(error: SiemError): void;
  /** The service refuses to show statuses, for another reason. */
  refused(error: unknown): void;
}

/**
 * The statuses of all integrations that the caller may see, kept current by one stream. The stream is closed while the
 * page is hidden, since without TLS a browser has six connections to a host for all its tabs.
 */
export class Session {
  readonly statuses = new Map<string, v1.StatusCurrent>();
  /** The first snapshot has arrived. */
  isComplete = false;
  client: Client;
  #resumeToken = "";
  #number = 0;
  #hasStarted = false;

  constructor(private readonly listener: Listener) {
    this.client = connect();
    document.addEventListener("visibilitychange", () => {
      if (!this.#hasStarted) {
        return;
      }
      if (document.hidden) {
        this.#number += 1;
        this.#close();
        this.listener.connection("paused");
      } else {
        void this.#watch();
      }
    });
  }

  #close: () => void = () => undefined;

  /** Uses a token from now on. It is kept in memory only. Throws `ConfigurationError` if it cannot be sent. */
  signIn(token: string): void {
    const client = connect({ token });
    this.#close();
    this.client.close();
    this.client = client;
    this.statuses.clear();
    this.#resumeToken = "";
    this.isComplete = false;
    this.start();
  }

  /** Follows the statuses. */
  start(): void {
    this.#hasStarted = true;
    void this.#watch();
  }

  async #watch(): Promise<void> {
    const number = (this.#number += 1);
    this.#close();
    this.listener.connection(this.isComplete ? "broken" : "connecting");
    const watch = this.client.watchStatus({
      resumeToken: this.#resumeToken,
      onConnection: (isOpen) => {
        if (number === this.#number) {
          this.listener.connection(isOpen ? "open" : "broken");
        }
      },
    });
    this.#close = () => watch.close();
    try {
      for await (const event of watch) {
        if (number !== this.#number) {
          return;
        }
        this.#resumeToken = watch.resumeToken;
        switch (event.kind) {
          case "snapshot":
            this.statuses.clear();
            for (const [organization, current] of event.statuses) {
              this.statuses.set(organization, current);
            }
            this.isComplete = true;
            this.listener.statuses();
            break;
          case "current":
            this.statuses.set(event.organizationId, event.current);
            this.listener.statuses(event.organizationId);
            break;
          default:
            this.statuses.delete(event.organizationId);
            this.listener.statuses(event.organizationId);
        }
      }
    } catch (error) {
      if (number !== this.#number) {
        return;
      }
      this.listener.connection("refused");
      if (error instanceof SiemError && error.code === Code.Unauthenticated) {
        this.listener.tokenNeeded(error);
      } else {
        this.listener.refused(error);
      }
    }
  }
}
