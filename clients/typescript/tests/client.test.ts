// The client against a planned server: deadlines, retries, connections, watches and publishers.

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:net";
import { test, type TestContext } from "node:test";
import { Code } from "@connectrpc/connect";
import {
  type Client,
  ClosedError,
  connect,
  type ConnectOptions,
  type PublishResult,
  SiemError,
  type StatusEvent,
  UnacknowledgedError,
  v1,
} from "../src/index.js";
import { event, Fake, portOf, Proxy, until } from "./fake.js";

const fast = { minWaitMs: 10, maxWaitMs: 100 };
const request = { organizationId: "acme" };

async function start(t: TestContext, options: ConnectOptions = {}, maxStreams = 100): Promise<[Fake, Client]> {
  const fake = await Fake.start(0, maxStreams);
  const client = connect({ address: fake.address, timeoutMs: 20_000, retry: fast, ...options });
  t.after(() => {
    client.close();
    fake.stop();
  });
  return [fake, client];
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const port = portOf(server);
  server.close();
  await once(server, "close");
  return port;
}

async function next(watch: AsyncIterator<StatusEvent>): Promise<StatusEvent> {
  const { done, value } = await watch.next();
  assert.ok(!done);
  return value as StatusEvent;
}

const current = (resumeToken: string, organizationId: string) => ({
  resumeToken,
  event: { case: "current" as const, value: { organizationId } },
});
const synced = (resumeToken: string) => ({ resumeToken, event: { case: "synced" as const, value: {} } });
const deleted = (resumeToken: string, organizationId: string) => ({
  resumeToken,
  event: { case: "deleted" as const, value: { organizationId } },
});

test("nothing listens", async () => {
  const client = connect({ address: `localhost:${await freePort()}`, timeoutMs: 1_000, retry: fast });
  await assert.rejects(client.get(request), (error: SiemError) => {
    assert.ok(error.attempts > 3 && error.neverSent);
    return error.code === Code.Unavailable && /ECONNREFUSED/.test(error.message);
  });
  client.close();
});

test("a call that was never sent may be sent later", async () => {
  const port = await freePort();
  const client = connect({ address: `127.0.0.1:${port}`, retry: fast });
  const pending = client.sendTest(request);
  await new Promise((resolve) => setTimeout(resolve, 200));
  // The server starts only now.
  const fake = await Fake.start(port);
  assert.equal((await pending).delivered, true);
  assert.equal(fake.seen("SendTest").length, 1);
  client.close();
  fake.stop();
});

test("calls end when they are cancelled, and when the client is closed", async (t) => {
  const [fake, client] = await start(t);
  fake.plan("Get", ...Array<object>(3).fill({ error: { code: Code.Unavailable, retryAfterMs: 900 } }));
  const abort = new AbortController();
  const cancelled = client.get(request, { signal: abort.signal });
  const closed = client.get(request);
  await until(() => fake.seen("Get").length === 2, "both calls wait");
  abort.abort(new Error("by the user"));
  await assert.rejects(cancelled, /by the user/);
  client.close();
  await assert.rejects(closed, ClosedError);
  await assert.rejects(client.get(request), ClosedError);
  assert.throws(() => client.watchStatus(), ClosedError);
  await assert.rejects(client.get(request, { signal: abort.signal }), /by the user/);
});

test("all violations and the reason are typed", async (t) => {
  const [fake, client] = await start(t);
  const violations = ["role_arn", "external_id"];
  fake.plan("Configure", { error: { code: Code.InvalidArgument, reason: "INVALID_FIELD", violations } });
  await assert.rejects(client.configure(request), (error: SiemError) => {
    assert.deepEqual(error.violations.map(({ field }) => field), violations);
    assert.deepEqual([error.reason, error.reasonName], [v1.ErrorReason.INVALID_FIELD, "INVALID_FIELD"]);
    return error instanceof SiemError && error.code === Code.InvalidArgument && error.codeName === "INVALID_ARGUMENT";
  });
  assert.match(fake.seen("Configure")[0]?.header.get("user-agent") ?? "", /^siem-client-typescript\/0\.1\.0/);
});

test("a server that is killed under calls", async (t) => {
  const [fake, client] = await start(t);
  for (let round = 0; round < 20; round += 1) {
    const calls = Array.from({ length: 20 }, () => client.get(request));
    if (round % 2 === 0) {
      await client.get(request);
    }
    fake.cut();
    await Promise.all(calls);
  }
});

test("a graceful GOAWAY on an idle connection, and one under calls", async (t) => {
  const [fake, client] = await start(t);
  await client.get(request);
  for (let round = 0; round < 20; round += 1) {
    for (const session of fake.sessions) {
      session.goaway(0);
      session.close();
    }
    // Meets the connection while it is closing.
    await Promise.all(Array.from({ length: 10 }, () => client.get(request)));
    for (const session of fake.sessions) {
      session.goaway(0);
    }
    await new Promise((resolve) => setTimeout(resolve, round % 3));
    await client.get(request);
  }
});

test("calls beyond the server's limit of streams do not wait", async (t) => {
  const [fake, client] = await start(t, {}, 5);
  fake.plan("StreamStatus", ...Array<object>(12).fill({ messages: [synced("1")], open: true }));
  const watches = Array.from({ length: 12 }, () => client.watchStatus());
  for (const watch of watches) {
    assert.equal((await next(watch)).kind, "snapshot");
  }
  await client.get(request, { timeoutMs: 5_000 });
  assert.equal(fake.sessions.size, 3);
});

test("a dead connection is noticed within 45 seconds", async (t) => {
  const [fake] = await start(t);
  const proxy = await Proxy.start(fake.port);
  fake.plan("StreamStatus", { messages: [synced("1")], open: true });
  const errors: SiemError[] = [];
  const client = connect({ address: proxy.address, retry: fast, onRetry: (error) => errors.push(error) });
  t.after(() => {
    client.close();
    proxy.stop();
  });
  const watch = client.watchStatus();
  await next(watch);
  proxy.isSilent = true;
  const began = performance.now();
  void watch.next();
  while (errors.length === 0 && performance.now() - began < 60_000) {
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  assert.ok(performance.now() - began < 45_000);
  assert.match(String(errors[0]), /^UNAVAILABLE: the server did not answer a ping/);
});

test("a silent stream is opened again", async (t) => {
  const [fake, client] = await start(t);
  fake.plan(
    "StreamStatus",
    { messages: [current("1", "a"), synced("2")], open: true },
    { messages: [deleted("3", "a")], open: true },
  );
  const states: boolean[] = [];
  const watch = client.watchStatus({ silenceMs: 300, onConnection: (isOpen) => states.push(isOpen) });
  const first = await next(watch);
  assert.ok(first.kind === "snapshot" && first.statuses.has("a"));
  assert.equal(watch.resumeToken, "2");
  // The time in which the caller has the event does not count.
  await new Promise((resolve) => setTimeout(resolve, 500));
  assert.equal(fake.seen("StreamStatus").length, 1);
  assert.equal((await next(watch)).kind, "deleted");
  assert.equal(watch.resumeToken, "3");
  assert.deepEqual(states, [true, false, true]);
  watch.close();
  assert.deepEqual(await watch.next(), { done: true, value: undefined });
});

test("a watch ends by close, by leaving its loop, and with the client", async (t) => {
  const [fake, client] = await start(t);
  fake.plan("StreamStatus", ...Array<object>(3).fill({ messages: [synced("1")], open: true }));
  const closed = client.watchStatus();
  await next(closed);
  const pending = closed.next();
  closed.close();
  assert.equal((await pending).done, true);
  for await (const seen of client.watchStatus()) {
    assert.equal(seen.kind, "snapshot");
    break;
  }
  const last = client.watchStatus();
  await next(last);
  const ending = last.next();
  client.close();
  assert.equal((await ending).done, true);
});

test("a watch ends with an error that would come again", async (t) => {
  const [fake, client] = await start(t);
  fake.plan("StreamStatus", { error: { code: Code.PermissionDenied, reason: "PERMISSION_DENIED" } });
  const watch = client.watchStatus();
  await assert.rejects(watch.next(), { code: Code.PermissionDenied });
  assert.equal((await watch.next()).done, true);
});

test("a failing function of the caller ends the watch with its error", async (t) => {
  const [fake, client] = await start(t);
  for (const failing of [true, false]) {
    fake.plan("StreamStatus", { messages: [synced("1")] }, { open: true });
    const watch = client.watchStatus({
      onConnection: (isOpen) => {
        if (isOpen === failing) {
          throw new Error("of the caller");
        }
      },
    });
    await assert.rejects(async () => {
      for await (const seen of watch) {
        assert.equal(seen.kind, "snapshot");
      }
    }, /of the caller/);
  }
});

test("a long wait that the server asks for is no short one", async (t) => {
  const [fake, client] = await start(t);
  const waits: number[] = [];
  fake.plan("StreamStatus", { error: { code: Code.Unavailable, retryAfterMs: 2 ** 33 } });
  const other = connect({ address: fake.address, retry: fast, onRetry: (_, wait) => waits.push(wait) });
  const watch = other.watchStatus();
  const pending = watch.next();
  await until(() => waits.length === 1, "it waits");
  await new Promise((resolve) => setTimeout(resolve, 200));
  assert.deepEqual([waits.length, fake.seen("StreamStatus").length], [1, 1]);
  other.close();
  assert.equal((await pending).done, true);
  await client.get(request);
});

test("a watch takes a new bearer token", async (t) => {
  const tokens = ["one", "two"];
  const [fake, client] = await start(t, { token: () => tokens.shift() ?? "three" });
  const expired = { code: Code.Unauthenticated, reason: "UNAUTHENTICATED" };
  fake.plan(
    "StreamStatus",
    { messages: [synced("1")], end: expired },
    { messages: [deleted("2", "a")], end: expired },
    { error: expired },
  );
  const watch = client.watchStatus();
  await next(watch);
  assert.equal((await next(watch)).kind, "deleted");
  // A token that was never accepted is not replaced once more.
  await assert.rejects(watch.next(), { code: Code.Unauthenticated });
  assert.deepEqual(
    fake.seen("StreamStatus").map(({ authorization }) => authorization),
    ["Bearer one", "Bearer two", "Bearer three"],
  );
});

test("concurrent calls share the new token", async (t) => {
  let fetched = 0;
  const [fake, client] = await start(t, { token: () => `token${(fetched += 1)}` });
  await client.list();
  const refused = { error: { code: Code.Unauthenticated, reason: "UNAUTHENTICATED" } };
  fake.plan("Get", ...Array<object>(20).fill(refused));
  await Promise.all(Array.from({ length: 20 }, () => client.get(request)));
  assert.equal(fetched, 2);
  assert.equal(fake.seen("Get").length, 40);
});

test("a full publisher waits, and keeps the order of the calls", async (t) => {
  const [fake, client] = await start(t);
  fake.plan("PublishStream", { error: { code: Code.Unavailable, retryAfterMs: 900 } });
  const publisher = client.publisher({ maxBytesInFlight: 20_000 });
  const answers: Promise<PublishResult>[] = [];
  // Without awaiting: the calls must not overtake each other.
  const sends = Array.from({ length: 200 }, async (_, number) => {
    answers.push((await publisher.send(event(number))).answer);
  });
  await until(() => fake.seen("PublishStream").length > 0, "the first request is there");
  assert.ok(publisher.stats.pending > 10 && publisher.stats.pending < 20);
  await publisher.flush();
  await Promise.all(sends);
  assert.deepEqual(new Set((await Promise.all(answers)).map(({ outcome }) => outcome)), new Set(["accepted"]));
  await publisher.close();
  const ids = fake.seen("PublishStream").flatMap((call) => (call.request as v1.PublishStreamRequest).events);
  const wanted = Array.from({ length: 200 }, (_, number) => `device-${number}`);
  assert.deepEqual([...new Set(ids.map(({ eventId }) => eventId))], wanted);
  await assert.rejects(publisher.send(event(1)), ClosedError);
});

test("a refused publisher ends and names its events", async (t) => {
  const [fake, client] = await start(t);
  fake.plan("PublishStream", { end: { code: Code.PermissionDenied, reason: "PERMISSION_DENIED" } });
  const publisher = client.publisher();
  const sent = await publisher.send(event(1));
  await assert.rejects(publisher.flush(10_000), (error: UnacknowledgedError) => {
    assert.ok(error instanceof UnacknowledgedError && error.cause instanceof SiemError);
    assert.equal(error.unacknowledged[0]?.eventId, "device-1");
    return /device-1/.test(error.message);
  });
  await assert.rejects(sent.answer, { code: Code.PermissionDenied });
  await assert.rejects(publisher.send(event(2)), /PERMISSION_DENIED|planned/);
  await assert.rejects(publisher.close(), UnacknowledgedError);
});

test("an answer that does not come opens a new stream", async (t) => {
  const [fake, client] = await start(t);
  fake.plan("PublishStream", { silent: true });
  const publisher = client.publisher({ answerTimeoutMs: 300, minRetryWaitMs: 10 });
  const sent = await publisher.send(event(1));
  assert.equal((await sent.answer).outcome, "accepted");
  await publisher.close();
  assert.equal(fake.seen("PublishStream").length, 2);
});

test("close while an answer is missing names the events", async (t) => {
  const [fake, client] = await start(t);
  fake.plan("PublishStream", { silent: true }, { silent: true });
  const publisher = client.publisher();
  await publisher.send(event(1));
  await until(() => fake.seen("PublishStream").length === 1, "the first request is there");
  // It does not wait for the answer to the first one.
  const second = await publisher.send(event(2));
  await until(() => fake.seen("PublishStream").length === 2, "the second request is there");
  await assert.rejects(publisher.close(100), /device-1, acme\/device\/device-2/);
  await assert.rejects(second.answer, UnacknowledgedError);
});

test("a server that is killed under a publisher", async (t) => {
  const [fake, client] = await start(t);
  const publisher = client.publisher({ maxBatchEvents: 50, minRetryWaitMs: 1, maxRetryWaitMs: 10 });
  for (let number = 0; number < 5_000; number += 1) {
    await publisher.send(event(number));
    if (number % 500 === 499) {
      fake.cut();
    }
  }
  await publisher.close();
  assert.equal(publisher.stats.accepted, 5_000);
  assert.ok(publisher.stats.reconnects > 0);
});

test("a closed client ends its publishers", async (t) => {
  const [fake, client] = await start(t);
  fake.plan("PublishStream", { silent: true });
  const publisher = client.publisher();
  await publisher.send(event(1));
  await until(() => fake.seen("PublishStream").length === 1, "the request is there");
  client.close();
  await assert.rejects(publisher.close(10_000), /the client is closed; 1 unacknowledged/);
});

test("compressed requests, and events that are copied", async (t) => {
  const [fake, client] = await start(t, { gzip: true });
  await client.get(request);
  const publisher = client.publisher();
  const reused = event(1, "device", "acme", 100_000);
  await publisher.send(reused);
  reused.eventId = "changed";
  await publisher.send(reused);
  await publisher.close();
  const [call] = fake.seen("PublishStream");
  assert.equal(call?.header.get("grpc-encoding"), "gzip");
  const { events } = call?.request as v1.PublishStreamRequest;
  assert.deepEqual(events.map(({ eventId }) => eventId), ["device-1", "changed"]);
});

test("an unused publisher opens no stream", async (t) => {
  const [fake, client] = await start(t);
  const publisher = client.publisher();
  await publisher.flush(1_000);
  await publisher.close();
  assert.equal(fake.seen("PublishStream").length, 0);
});

test("an event that cannot be encoded takes no other along", async (t) => {
  const [, client] = await start(t);
  const publisher = client.publisher();
  const good = await publisher.send(event(1));
  const payload = { case: "idsDetection" as const, value: { srcPort: -1 } };
  await assert.rejects(publisher.send({ organizationId: "acme", payload }), /src_port/);
  assert.equal((await good.answer).outcome, "accepted");
  await publisher.close();
  assert.equal(publisher.stats.accepted, 1);
});
