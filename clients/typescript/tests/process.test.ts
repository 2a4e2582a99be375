// Processes that use the client, with the built server: restarts, short-lived connections, TLS, and their ends.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { connect as connectBrowser } from "../src/browser.js";
import { connect, type ConnectOptions, type SiemError, timestamp, TokenFile, v1 } from "../src/index.js";
import { Fake, portOf, until } from "./fake.js";
import { arns, binary, Relay, runBinary, skip, temporary } from "./server.js";

const index = new URL("../src/index.js", import.meta.url).href;
const externalId = "external-id-of-the-processes";

interface Ended {
  code: number | null;
  output: string;
  seconds: number;
}

// Runs a program with `client` and `address` until it ends by itself, within a minute.
function program(directory: string, address: string, body: string): Promise<Ended> {
  const path = join(directory, `${Math.random()}.mjs`);
  writeFileSync(
    path,
    `import { connect } from ${JSON.stringify(index)};\n` +
      `const client = connect({ address: ${JSON.stringify(address)} });\n${body}\n`,
  );
  const began = performance.now();
  const child = spawn(process.execPath, ["--unhandled-rejections=strict", path], { timeout: 60_000 });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => (output += text));
  }
  return new Promise((resolve) =>
    child.on("close", (code) => resolve({ code, output, seconds: (performance.now() - began) / 1000 })),
  );
}

const get = 'const { integration } = await client.get({ organizationId: "acme" });';

test("a process ends when all is closed, and not in the middle of a call", async (t) => {
  const fake = await Fake.start();
  const directory = temporary(t);
  t.after(() => fake.stop());
  const planned = Array<object>(6).fill({ messages: [{ resumeToken: "1", event: { case: "synced", value: {} } }], open: true });
  fake.plan("StreamStatus", ...planned);
  fake.plan("Get", ...Array<object>(2).fill({ error: { code: 14, retryAfterMs: 900 } }));
  for (const body of [
    // The wait for the next attempt.
    `${get} console.log("done"); client.close();`,
    // An idle connection does not keep it alive.
    `${get} console.log("done");`,
    `for await (const event of client.watchStatus()) { console.log("done"); break; }`,
    `const watch = client.watchStatus(); await watch.next(); client.close();
     console.log((await watch.next()).done ? "done" : "");`,
    `const publisher = client.publisher(); const sent = await publisher.send({ organizationId: "acme" });
     await publisher.close(); console.log((await sent.answer).outcome === "accepted" ? "done" : ""); client.close();`,
    // A call that fails while the connection is being opened.
    `client.get({ organizationId: "acme" }).catch(({ name }) => console.log(name === "ClosedError" ? "done" : name));
     client.close();`,
  ]) {
    const { code, output, seconds } = await program(directory, fake.address, body);
    assert.deepEqual([code, output], [0, "done\n"], body);
    assert.ok(seconds < 30, `it ended after ${seconds} s`);
  }
  // A connection that is being opened, for ten seconds at most, does not outlive the client.
  const deaf = createServer().listen(0, "127.0.0.1");
  await once(deaf, "listening");
  t.after(() => deaf.close());
  const body = `const call = client.get({ organizationId: "acme" }).catch(({ name }) => console.log(name));
    setTimeout(() => { const at = performance.now(); client.close();
      process.once("exit", () => console.log(performance.now() - at < 5_000 ? "soon" : "late")); }, 300);`;
  const { code, output } = await program(directory, `http://127.0.0.1:${portOf(deaf)}`, body);
  assert.deepEqual([code, output], [0, "ClosedError\nsoon\n"]);
});

test("a process survives restarts and connections of one second", { skip }, async (t) => {
  const relay = await Relay.start(t, ["--connection-age-seconds", "1"]);
  const { stream, role } = arns("processes");
  const client = connect({ address: relay.address });
  await client.configure({ organizationId: "acme", kinesisStreamArn: stream, roleArn: role, externalId });
  client.close();
  const running = program(
    temporary(t),
    relay.address,
    `let calls = 0, events = 0, snapshots = 0;
     const until = performance.now() + 12_000;
     const watch = client.watchStatus();
     const watching = (async () => { for await (const event of watch) snapshots += event.kind === "snapshot" ? 1 : 0; })();
     const publisher = client.publisher();
     const publishing = (async () => {
       while (performance.now() < until) {
         await publisher.send({ organizationId: "acme", networkId: "00000000-0000-0000-0000-000000000001",
           deviceId: "00000000-0000-0000-0000-000000000002", observedTime: { seconds: BigInt(events) },
           payload: { case: "idsDetection", value: { signature: String(events) } } });
         events += 1;
         await new Promise((resolve) => setTimeout(resolve, 5));
       }
       await publisher.close(30_000);
     })();
     while (performance.now() < until) {
       ${get}
       calls += 1;
       // Idle at times, so that connections end with and without streams.
       await new Promise((resolve) => setTimeout(resolve, calls % 20 === 0 ? 300 : 10));
     }
     await publishing;
     watch.close();
     await watching;
     console.log(JSON.stringify({ calls, events, snapshots, ...publisher.stats }));
     client.close();`,
  );
  for (let round = 0; round < 2; round += 1) {
    await new Promise((resolve) => setTimeout(resolve, 3_000));
    await relay.kill();
    await relay.start();
  }
  const { code, output } = await running;
  assert.equal(code, 0, output);
  const seen = JSON.parse(output) as Record<string, number>;
  t.diagnostic(output.trim());
  assert.ok((seen["calls"] ?? 0) > 10 && (seen["reconnects"] ?? 0) >= 1, output);
  assert.deepEqual([seen["accepted"], seen["pending"], seen["snapshots"]], [seen["events"], 0, 1], output);
});

test("TLS with a token of a file, and with a client certificate", { skip }, async (t) => {
  const made = join(temporary(t), "credentials");
  runBinary("dev-credentials", made);
  const file = (name: string) => join(made, name);
  const flags = ["--tls-cert", file("server.pem"), "--tls-key", file("server.key")];
  flags.push("--tls-client-ca", file("ca.pem"), "--callers", file("callers.toml"));
  const tls = { ca: file("ca.pem") };
  const token = new TokenFile(file("admin.token"));
  const certificate = { ...tls, certificate: readFileSync(file("client.pem")), key: file("client.key") };
  const relay = await Relay.start(t, flags, undefined, { tls, token });
  const address = `https://127.0.0.1:${relay.port}`;
  for (const [options, organizationId] of [
    [{ tls, token }, "by-token"],
    [{ tls: certificate }, "by-certificate"],
  ] as const satisfies [ConnectOptions, string][]) {
    const client = connect({ address, ...options });
    const { stream, role } = arns(organizationId);
    const id = `${externalId}-${organizationId}`;
    await client.configure({ organizationId, kinesisStreamArn: stream, roleArn: role, externalId: id });
    const { entries } = await client.listAuditEntries({ organizationId });
    assert.equal(entries[0]?.action, v1.AuditAction.CREATE);
    const publisher = client.publisher();
    const sent = await publisher.send({
      organizationId,
      networkId: "00000000-0000-0000-0000-000000000001",
      deviceId: "00000000-0000-0000-0000-000000000002",
      observedTime: timestamp(),
      payload: { case: "idsDetection", value: { signature: "one" } },
    });
    assert.equal((await sent.answer).outcome, "accepted");
    await publisher.close();
    client.close();
  }
  const anonymous = connect({ address, tls });
  await assert.rejects(anonymous.list(), (error: SiemError) => error.codeName === "UNAUTHENTICATED");
  anonymous.close();
  const untrusted = connect({ address, token, timeoutMs: 2_000 });
  await assert.rejects(untrusted.list(), (error: SiemError) => error.neverSent && /certificate/.test(error.message));
  untrusted.close();
});

const hasGrpcWeb = !skip && runBinary("serve", "--help").includes("--grpc-web");

test(
  "the browser's entry with the built server",
  { skip: skip || (hasGrpcWeb ? false : `${binary} has no setting --grpc-web`) },
  async (t) => {
    const relay = await Relay.start(t, ["--grpc-web"]);
    const client = connectBrowser({ address: relay.address });
    await assert.rejects(client.configure({ organizationId: "acme" }), (error: SiemError) => {
      assert.deepEqual([error.codeName, error.reasonName], ["INVALID_ARGUMENT", "INVALID_FIELD"]);
      return error.violations.length === 3;
    });
    const opened: boolean[] = [];
    const watch = client.watchStatus({ onConnection: (isOpen) => opened.push(isOpen) });
    const first = await watch.next();
    assert.ok(first.value?.kind === "snapshot" && first.value.statuses.size === 0);
    const change = watch.next();
    await relay.kill();
    await relay.start();
    await until(() => opened.includes(false) && opened.at(-1) === true, "the watch is open again");
    const { stream, role } = arns("browser");
    await client.configure({ organizationId: "acme", kinesisStreamArn: stream, roleArn: role, externalId });
    // It continues after its token, without a new picture.
    assert.equal((await change).value?.kind, "current");
    const { integration } = await client.get({ organizationId: "acme" });
    assert.equal(integration?.counts?.accepted, 0n);
    client.close();
  },
);
