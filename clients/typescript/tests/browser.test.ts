// The browser's entry over gRPC-Web, with the fetch of Node.

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type ServerResponse } from "node:http";
import { test, type TestContext } from "node:test";
import { toBinary, create } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { connect, SiemError, type StatusEvent, v1 } from "../src/browser.js";
import { Fake, portOf } from "./fake.js";

const fast = { minWaitMs: 10, maxWaitMs: 100 };
const request = { organizationId: "acme" };
const synced = { resumeToken: "1", event: { case: "synced" as const, value: {} } };
const changed = { resumeToken: "2", event: { case: "deleted" as const, value: { organizationId: "a" } } };

async function next(watch: AsyncIterator<StatusEvent>): Promise<StatusEvent> {
  const { done, value } = await watch.next();
  assert.ok(!done);
  return value as StatusEvent;
}

test("calls, typed errors, retries and tokens over gRPC-Web", async (t) => {
  const fake = await Fake.start();
  t.after(() => fake.stop());
  const tokens = ["one", "two"];
  const client = connect({ address: fake.webAddress, retry: fast, token: async () => tokens.shift() ?? "none" });
  const violations = ["role_arn", "external_id"];
  fake.plan("Configure", { error: { code: Code.InvalidArgument, reason: "INVALID_FIELD", violations } });
  await assert.rejects(client.configure(request), (error: SiemError) => {
    assert.deepEqual(error.violations.map(({ field }) => field), violations);
    return error.reason === v1.ErrorReason.INVALID_FIELD && error.codeName === "INVALID_ARGUMENT";
  });
  fake.plan(
    "Get",
    { error: { code: Code.Unavailable } },
    { error: { code: Code.Unauthenticated, reason: "UNAUTHENTICATED" } },
    { get: { integration: { organizationId: "acme", counts: { accepted: 2n ** 63n } } } },
  );
  const { integration } = await client.get(request);
  assert.equal(integration?.counts?.accepted, 2n ** 63n);
  assert.deepEqual(fake.seen("Get").map(({ authorization }) => authorization), ["Bearer one", "Bearer one", "Bearer two"]);
  assert.match(fake.seen("Get")[0]?.header.get("content-type") ?? "", /^application\/grpc-web/);
  client.close();
});

test("a watch resumes after its stream was cut, and ends when it is closed", async (t) => {
  const fake = await Fake.start();
  t.after(() => fake.stop());
  const client = connect({ address: fake.webAddress, retry: fast });
  fake.plan("StreamStatus", { messages: [synced], cut: true }, { messages: [changed], open: true });
  const errors: SiemError[] = [];
  const watch = client.watchStatus({ onConnection: (_, error) => void (error && errors.push(error)) });
  assert.equal((await next(watch)).kind, "snapshot");
  assert.equal((await next(watch)).kind, "deleted");
  assert.deepEqual(errors.map(({ codeName }) => codeName), ["UNAVAILABLE"]);
  const tokens = fake.seen("StreamStatus").map((call) => (call.request as v1.StreamStatusRequest).resumeToken);
  assert.deepEqual(tokens, ["", "1"]);
  const pending = watch.next();
  watch.close();
  assert.equal((await pending).done, true);
});

// Answers with bytes of gRPC-Web, as a proxy that cuts answers off does.
async function raw(t: TestContext, answer: (response: ServerResponse, number: number) => void): Promise<string> {
  let number = 0;
  const server = createServer((incoming, response) => {
    incoming.resume();
    response.setHeader("content-type", "application/grpc-web+proto");
    answer(response, (number += 1));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  return `http://127.0.0.1:${portOf(server)}`;
}

function frame(flag: number, payload: Uint8Array): Uint8Array {
  const header = Buffer.alloc(5);
  header[0] = flag;
  header.writeUInt32BE(payload.length, 1);
  return Buffer.concat([header, payload]);
}

const message = (body: object) => toBinary(v1.StreamStatusResponseSchema, create(v1.StreamStatusResponseSchema, body));

test("an end without trailers is an error, also in the middle of a message", async (t) => {
  const whole = frame(0, message(synced));
  const address = await raw(t, (response, number) => {
    if (number === 1) {
      response.end(whole);
    } else if (number === 2) {
      response.end(frame(0, message(changed)).subarray(0, 7));
    } else {
      response.write(frame(0, message(changed)));
    }
  });
  const errors: string[] = [];
  const client = connect({ address, retry: fast, onRetry: (error) => errors.push(error.codeName) });
  const watch = client.watchStatus();
  assert.equal((await next(watch)).kind, "snapshot");
  assert.equal((await next(watch)).kind, "deleted");
  assert.deepEqual(errors, ["UNAVAILABLE", "UNAVAILABLE"]);
  client.close();
});

test("an answer that was cut off is not taken for one", async (t) => {
  const integration = create(v1.GetResponseSchema, { integration: { organizationId: "acme" } });
  const body = frame(0, toBinary(v1.GetResponseSchema, integration));
  const address = await raw(t, (response, number) => {
    response.end(number === 1 ? body : Buffer.concat([body, frame(128, Buffer.from("grpc-status: 0\r\n"))]));
  });
  const client = connect({ address, retry: fast });
  assert.equal((await client.get(request)).integration?.organizationId, "acme");
  await assert.rejects(connect({ address: await raw(t, (r) => r.end(body)) }).sendTest(request), { code: Code.Unavailable });
  client.close();
});

test("a server that is not there", async () => {
  const client = connect({ address: "http://127.0.0.1:9", timeoutMs: 500, retry: fast });
  await assert.rejects(client.get(request), (error: SiemError) => error.code === Code.Unavailable && error.attempts > 1);
  // Whether it was sent is not known in a browser.
  await assert.rejects(client.sendTest(request), (error: SiemError) => error.attempts === 1);
  client.close();
});
