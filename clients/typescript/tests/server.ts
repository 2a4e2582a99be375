// The built server and its AWS stand-in as processes. Environment: SIEM_RELAY_BIN.

import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { connect, type ConnectOptions } from "../src/index.js";
import { portOf, until } from "./fake.js";

export const binary = process.env["SIEM_RELAY_BIN"];
/** Reason to skip a test of the built server. */
export const skip = binary === undefined ? "SIEM_RELAY_BIN names no server" : false;

const account = "111122223333";
const vendor = "444455556666";

/** Returns the port of loopback that was free a moment ago. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const port = portOf(server);
  server.close();
  await once(server, "close");
  return port;
}

/** Returns a new directory, which is removed after the test. */
export function temporary(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), "siem-client-"));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

function cleanEnvironment(settings: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const kept = Object.entries(process.env).filter(([name]) => !/^(AWS|SIEM_RELAY|OTEL)_/.test(name));
  return { ...Object.fromEntries(kept), AWS_EC2_METADATA_DISABLED: "true", ...settings };
}

/** Runs the program to its end. */
export function runBinary(...args: string[]): string {
  const done = spawnSync(binary as string, args, { encoding: "utf8", env: cleanEnvironment({}) });
  if (done.status !== 0) {
    throw new Error(`siem-relay ${args.join(" ")} ended with ${done.status}\n${done.stdout}${done.stderr}`);
  }
  return done.stdout;
}

function start(t: TestContext, log: string, args: string[], settings: NodeJS.ProcessEnv): ChildProcess {
  const output = openSync(log, "a");
  const child = spawn(binary as string, args, { env: cleanEnvironment(settings), stdio: ["ignore", output, output] });
  t.after(() => child.kill("SIGKILL"));
  return child;
}

/** `siem-relay serve`, at the same address and with the same data each time. */
export class Relay {
  #child: ChildProcess | undefined;

  private constructor(
    private readonly t: TestContext,
    private readonly directory: string,
    readonly port: number,
    private readonly aws: NodeJS.ProcessEnv,
    private readonly flags: string[],
  ) {}

  static async start(
    t: TestContext,
    flags: string[] = [],
    aws: NodeJS.ProcessEnv = { AWS_REGION: "us-west-2", AWS_ACCESS_KEY_ID: "x", AWS_SECRET_ACCESS_KEY: "x" },
    secure: ConnectOptions = {},
  ): Promise<Relay> {
    const relay = new Relay(t, temporary(t), await freePort(), aws, flags);
    await relay.start(secure);
    return relay;
  }

  get address(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  async start(secure: ConnectOptions = {}): Promise<void> {
    const data = join(this.directory, "data");
    const log = join(this.directory, "serve.log");
    const args = ["serve", "--listen", `127.0.0.1:${this.port}`, "--data-dir", data, ...this.flags];
    const child = (this.#child = start(this.t, log, args, this.aws));
    const client = connect({ address: `127.0.0.1:${this.port}`, ...secure });
    try {
      await client.list();
    } catch (error) {
      throw new Error(`the server is not ready, exit code ${child.exitCode}\n${readFileSync(log, "utf8")}`, {
        cause: error,
      });
    } finally {
      client.close();
    }
  }

  async kill(): Promise<void> {
    const child = this.#child as ChildProcess;
    const ended = once(child, "exit");
    child.kill("SIGKILL");
    await ended;
  }
}

/** `siem-relay sandbox --aws-only`, with the service's own credentials. */
export class StandIn {
  private constructor(private readonly endpoint: string) {}

  static async start(t: TestContext): Promise<StandIn> {
    const port = await freePort();
    const log = join(temporary(t), "stand-in.log");
    start(t, log, ["sandbox", "--aws-only", "--port", String(port)], {});
    const standIn = new StandIn(`http://127.0.0.1:${port}`);
    let isReady = false;
    const probe = async () => {
      while (!isReady) {
        isReady = await fetch(standIn.endpoint).then(
          () => true,
          () => false,
        );
      }
    };
    void probe();
    await until(() => isReady, "the stand-in is ready");
    await standIn.#control("credentials", {
      access_key_id: "AKIAIOSFODNN7EXAMPLE",
      secret_access_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
      principal_arn: `arn:aws:iam::${vendor}:user/siem-relay`,
      policy: policy(["sts:AssumeRole"], "arn:aws:iam::*:role/*"),
    });
    return standIn;
  }

  /** Variables of the service. */
  get aws(): NodeJS.ProcessEnv {
    return {
      AWS_REGION: "us-west-2",
      AWS_ACCESS_KEY_ID: "AKIAIOSFODNN7EXAMPLE",
      AWS_SECRET_ACCESS_KEY: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
      AWS_ENDPOINT_URL_STS: this.endpoint,
      AWS_ENDPOINT_URL_KINESIS: this.endpoint,
    };
  }

  async #control(path: string, body: object): Promise<void> {
    const answer = await fetch(`${this.endpoint}/_control/${path}`, {
      method: "PUT",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    });
    if (!answer.ok) {
      throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
    }
  }

  /** Makes a customer's stream and role; returns their ARNs. */
  async customer(name: string, externalId: string): Promise<{ stream: string; role: string }> {
    const { stream, role } = arns(name);
    const trust = {
      Version: "2012-10-17",
      Statement: [
        {
          Effect: "Allow",
          Principal: { AWS: `arn:aws:iam::${vendor}:root` },
          Action: "sts:AssumeRole",
          Condition: { StringEquals: { "sts:ExternalId": externalId } },
        },
      ],
    };
    await this.#control("streams", { stream_arn: stream, shards: 2 });
    await this.#control("roles", {
      role_arn: role,
      trust_policy: JSON.stringify(trust),
      permission_policy: policy(["kinesis:PutRecord", "kinesis:PutRecords"], stream),
    });
    return { stream, role };
  }
}

/** Returns ARNs of a customer. */
export function arns(name: string): { stream: string; role: string } {
  return {
    stream: `arn:aws:kinesis:us-west-2:${account}:stream/${name}`,
    role: `arn:aws:iam::${account}:role/${name}`,
  };
}

function policy(actions: string[], resource: string): string {
  return JSON.stringify({
    Version: "2012-10-17",
    Statement: [{ Effect: "Allow", Action: actions, Resource: resource }],
  });
}
