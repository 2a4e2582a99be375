// A server that answers as planned, over gRPC and gRPC-Web, and a proxy that can fall silent.

import { once } from "node:events";
import { createServer as createHttpServer } from "node:http";
import { createServer as createHttp2Server, type Http2Server, type ServerHttp2Session } from "node:http2";
import { createServer, connect as connectTcp, type AddressInfo, type Server, type Socket } from "node:net";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { anyPack, durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type ConnectRouter, type HandlerContext } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../src/gen/google/rpc/error_details_pb.js";
import { StatusSchema } from "../src/gen/google/rpc/status_pb.js";
import type { EventInit } from "../src/messages.js";
import { v1 } from "../src/common.js";

export interface PlannedError {
  code: Code;
  reason?: string;
  retryAfterMs?: number;
  violations?: string[];
}

export interface Planned {
  error?: PlannedError;
  /** Answer of Get, or answers of StreamStatus. */
  get?: MessageInitShape<typeof v1.GetResponseSchema>;
  messages?: MessageInitShape<typeof v1.StreamStatusResponseSchema>[];
  /** The stream stays open after its messages. */
  open?: boolean;
  /** The connection is destroyed after the messages. */
  cut?: boolean;
  /** The request of PublishStream is not answered. */
  silent?: boolean;
  /** PublishStream ends with the error, instead of an answer. */
  end?: PlannedError;
}

export interface Call {
  method: string;
  request: unknown;
  authorization: string;
  header: Headers;
}

function details({ reason, retryAfterMs, violations }: PlannedError) {
  return [
    ...(reason === undefined ? [] : [{ desc: ErrorInfoSchema, value: { domain: "siem.v1", reason } }]),
    ...(retryAfterMs === undefined
      ? []
      : [{ desc: RetryInfoSchema, value: { retryDelay: durationFromMs(retryAfterMs) } }]),
    ...(violations === undefined
      ? []
      : [
          {
            desc: BadRequestSchema,
            value: { fieldViolations: violations.map((field) => ({ field, description: "planned" })) },
          },
        ]),
  ];
}

function failure(planned: PlannedError): ConnectError {
  return new ConnectError("planned", planned.code, undefined, details(planned));
}

/** Returns the port of a server that listens. */
export function portOf(server: Server | Http2Server): number {
  return (server.address() as AddressInfo).port;
}

export class Fake {
  readonly calls: Call[] = [];
  readonly sessions = new Set<ServerHttp2Session>();
  readonly #plans = new Map<string, Planned[]>();
  readonly #server: Http2Server;
  readonly #web: ReturnType<typeof createHttpServer>;
  readonly #sockets = new Set<Socket>();

  private constructor(maxConcurrentStreams: number) {
    const routes = (router: ConnectRouter) => this.#routes(router);
    const adapter = connectNodeAdapter({ routes });
    this.#server = createHttp2Server({ settings: { maxConcurrentStreams } }, adapter);
    this.#server.on("session", (session) => {
      this.sessions.add(session);
      session.on("error", () => undefined);
      session.once("close", () => this.sessions.delete(session));
    });
    this.#web = createHttpServer(adapter);
    this.#web.on("connection", (socket) => {
      this.#sockets.add(socket);
      socket.once("close", () => this.#sockets.delete(socket));
    });
  }

  static async start(port = 0, maxConcurrentStreams = 100): Promise<Fake> {
    const fake = new Fake(maxConcurrentStreams);
    fake.#server.listen(port, "127.0.0.1");
    await once(fake.#server, "listening");
    fake.#web.listen(0, "127.0.0.1");
    await once(fake.#web, "listening");
    return fake;
  }

  get port(): number {
    return portOf(this.#server);
  }

  get address(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  get webAddress(): string {
    return `http://127.0.0.1:${portOf(this.#web)}`;
  }

  /** Closes all connections, as a process that is killed does. */
  cut(): void {
    for (const session of this.sessions) {
      session.destroy();
    }
    for (const socket of this.#sockets) {
      socket.destroy();
    }
  }

  stop(): void {
    this.#server.close();
    this.#web.close();
    this.cut();
  }

  plan(method: string, ...answers: Planned[]): void {
    this.#plans.set(method, answers);
    this.calls.splice(0, this.calls.length, ...this.calls.filter((call) => call.method !== method));
  }

  seen(method: string): Call[] {
    return this.calls.filter((call) => call.method === method);
  }

  #take(method: string, request: unknown, context: HandlerContext): Planned {
    const header = context.requestHeader;
    this.calls.push({ method, request, authorization: header.get("authorization") ?? "", header });
    const planned = this.#plans.get(method)?.shift() ?? {};
    if (planned.error !== undefined && method !== "PublishStream") {
      throw failure(planned.error);
    }
    return planned;
  }

  #routes(router: ConnectRouter): void {
    router.service(v1.SiemIntegrationService, {
      get: (request, context) => this.#take("Get", request, context).get ?? {},
      list: (request, context) => (this.#take("List", request, context), {}),
      configure: (request, context) => (this.#take("Configure", request, context), {}),
      delete: (request, context) => (this.#take("Delete", request, context), {}),
      generateExternalId: (request, context) => (this.#take("GenerateExternalId", request, context), {}),
      sendTest: (request, context) => (this.#take("SendTest", request, context), { delivered: true }),
      streamStatus: (request, context) => this.#streamStatus(request, context),
    });
    router.service(v1.EventService, {
      publish: (request, context) => (this.#take("Publish", request, context), { accepted: request.events.length }),
      publishStream: (requests, context) => this.#publishStream(requests, context),
    });
  }

  async *#streamStatus(request: v1.StreamStatusRequest, context: HandlerContext) {
    const planned = this.#take("StreamStatus", request, context);
    yield* planned.messages ?? [];
    if (planned.cut) {
      // The messages must have left.
      await new Promise((resolve) => setTimeout(resolve, 50));
      this.cut();
    }
    if (planned.end !== undefined) {
      throw failure(planned.end);
    }
    if (planned.open) {
      await new Promise((resolve) => context.signal.addEventListener("abort", resolve));
    }
  }

  async *#publishStream(requests: AsyncIterable<v1.PublishStreamRequest>, context: HandlerContext) {
    for await (const request of requests) {
      const planned = this.#take("PublishStream", request, context);
      if (planned.end !== undefined) {
        throw failure(planned.end);
      }
      if (planned.silent) {
        continue;
      }
      if (planned.error !== undefined) {
        const { code } = planned.error;
        const packed = details(planned.error).map(({ desc, value }) => anyPack(desc, create(desc, value as object)));
        const error = create(StatusSchema, { code, message: "planned", details: packed });
        yield { requestId: request.requestId, outcome: { case: "error" as const, value: error } };
        continue;
      }
      const result = { accepted: request.events.length };
      yield { requestId: request.requestId, outcome: { case: "result" as const, value: result } };
    }
  }
}

/** Forwards connections until it falls silent, without closing them. */
export class Proxy {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  isSilent = false;

  private constructor(target: number) {
    this.#server = createServer((near) => {
      const far = connectTcp(target, "127.0.0.1");
      for (const [from, to] of [
        [near, far],
        [far, near],
      ] as const) {
        this.#sockets.add(from);
        from.on("error", () => undefined);
        from.on("data", (data) => this.isSilent || to.write(data));
        from.on("close", () => this.isSilent || to.destroy());
      }
    });
  }

  static async start(target: number): Promise<Proxy> {
    const proxy = new Proxy(target);
    proxy.#server.listen(0, "127.0.0.1");
    await once(proxy.#server, "listening");
    return proxy;
  }

  get address(): string {
    return `http://127.0.0.1:${portOf(this.#server)}`;
  }

  stop(): void {
    this.#server.close();
    for (const socket of this.#sockets) {
      socket.destroy();
    }
  }
}

/** Returns an event with a recognisable id. */
export function event(number: number, device = "device", organizationId = "acme", size = 0): EventInit {
  return {
    organizationId,
    deviceId: device,
    eventId: `${device}-${number}`,
    payload: { case: "idsDetection", value: { signature: `detection ${number}`, contextJson: "x".repeat(size) } },
  };
}

/** Waits until a condition holds; fails after 20 s. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  const deadline = performance.now() + 20_000;
  while (!condition()) {
    if (performance.now() > deadline) {
      throw new Error(`waited, but not until ${what}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
