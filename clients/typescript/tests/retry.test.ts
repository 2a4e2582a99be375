// Decisions about failures, tokens, addresses and messages.

import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { create, fromBinary } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { codeName, fromReason, fromStatus, NeverSent, SiemError } from "../src/errors.js";
import { StatusSchema } from "../src/gen/google/rpc/status_pb.js";
import { connect, enumName, statusOf, TokenFile, timestamp, toJson, v1 } from "../src/index.js";
import { connect as connectBrowser } from "../src/browser.js";
import { askedWait, Attempts, backoff, isTemporary } from "../src/retry.js";
import { TokenState, Tokens } from "../src/tokens.js";

test("the jitter follows the limit", () => {
  for (let repeat = 0; repeat < 50; repeat += 1) {
    const wait = backoff({ minWaitMs: 100, maxWaitMs: 5_000 }, 20);
    assert.ok(wait >= 2_500 && wait <= 5_000);
    assert.ok(askedWait(1_000) >= 1_000);
  }
  const spread = new Set(Array.from({ length: 20 }, () => backoff({}, 1_000)));
  assert.ok(spread.size > 10);
});

test("lost connections are UNAVAILABLE, whatever they arrive as", () => {
  const reset = Object.assign(new Error("read ECONNRESET"), { code: "ECONNRESET" });
  const status = (code: number) => ({ "grpc-status": String(code) });
  const cases: [ConnectError, Code][] = [
    [new ConnectError("x", Code.Aborted, undefined, undefined, reset), Code.Unavailable],
    [new ConnectError("x", Code.Internal, undefined, undefined, reset), Code.Unavailable],
    [new ConnectError("http/2 stream closed with error code CANCEL (0x8)", Code.Canceled), Code.Unavailable],
    [new ConnectError("protocol error: missing status", Code.Internal), Code.Unavailable],
    [new ConnectError("protocol error: incomplete envelope", Code.InvalidArgument), Code.Unavailable],
    [new ConnectError("missing trailer", Code.Unknown), Code.Unavailable],
    [new ConnectError("fetch failed", Code.Unknown, undefined, undefined, new TypeError("fetch failed")), Code.Unavailable],
    [new ConnectError("the operation timed out", Code.DeadlineExceeded), Code.DeadlineExceeded],
    [new ConnectError("HTTP 403", Code.PermissionDenied), Code.PermissionDenied],
    [new ConnectError("a defect", Code.Internal, status(13)), Code.Internal],
    [new ConnectError("h2 protocol error: connection reset", Code.Internal, status(13)), Code.Unavailable],
    [new ConnectError("stale etag of the connection", Code.Aborted, status(10)), Code.Aborted],
    [new ConnectError("no such connection", Code.NotFound, status(5)), Code.NotFound],
  ];
  for (const [error, code] of cases) {
    const found = fromReason(error);
    assert.equal(found.code, code, error.message);
    assert.equal(isTemporary(found, true), code === Code.Unavailable, error.message);
    assert.ok(!isTemporary(found, false), error.message);
  }
});

test("calls that no server has seen are sent again, whatever they are", () => {
  const never = new ConnectError("x", Code.Unavailable, undefined, undefined, new NeverSent("refused"));
  assert.ok(isTemporary(fromReason(never), false));
  const refused = new ConnectError("http/2 stream closed with error code REFUSED_STREAM (0x7)", Code.Unavailable);
  assert.ok(isTemporary(fromReason(refused), false));
  assert.ok(isTemporary(new SiemError(Code.Unavailable, "", { reasonName: "STORAGE_FAILED" }), false));
  assert.ok(!isTemporary(new SiemError(Code.Unavailable, "", { reasonName: "SHUTTING_DOWN", retryDelay: 1 }), false));
});

test("one deadline over all attempts", () => {
  const attempts = new Attempts({ minWaitMs: 1_000, maxWaitMs: 1_000 }, 0, 3_000, true);
  let now = 0;
  const error = new SiemError(Code.Unavailable, "planned");
  assert.throws(() => {
    for (;;) {
      now += attempts.failed(error, now, false) ?? 0;
    }
  }, error);
  assert.ok(now < 3_000 && error.attempts >= 3);
});

test("details are read whatever they are", () => {
  const any = (type: string, value: number[]) => ({ typeUrl: `x/${type}`, value: new Uint8Array(value) });
  const status = create(StatusSchema, {
    code: 99,
    message: "m",
    details: [any("google.rpc.ErrorInfo", [255]), any("google.rpc.RetryInfo", [10, 2, 8, 3]), any("unknown", [1])],
  });
  const error = fromStatus(status);
  assert.deepEqual([error.code, error.retryDelay, error.reasonName], [Code.Unknown, 3_000, ""]);
  assert.equal(String(error), "UNKNOWN: m");
  assert.equal(codeName(Code.Canceled), "CANCELLED");
  assert.equal(codeName(Code.FailedPrecondition), "FAILED_PRECONDITION");
  assert.equal(new SiemError(Code.Aborted, "", { reasonName: "ETAG_MISMATCH" }).reason, v1.ErrorReason.ETAG_MISMATCH);
  assert.equal(new SiemError(Code.Aborted, "", { reasonName: "NEWER" }).reason, v1.ErrorReason.UNSPECIFIED);
});

test("a hundred calls fetch one token", async () => {
  let fetched = 0;
  const tokens = new Tokens(async () => {
    fetched += 1;
    await new Promise((resolve) => setTimeout(resolve, 20));
    return `token${fetched}`;
  });
  const values = await Promise.all(Array.from({ length: 100 }, () => tokens.get(5_000)));
  assert.deepEqual([new Set(values), fetched], [new Set(["token1"]), 1]);
  tokens.refused("token1");
  tokens.refused("token1");
  await Promise.all(Array.from({ length: 100 }, () => tokens.get(5_000)));
  assert.equal(fetched, 2);
  // A late refusal of the old one does not drop the new one.
  tokens.refused("token1");
  assert.equal(await tokens.get(5_000), "token2");
});

test("a failing function is not called by each call", async () => {
  let calls = 0;
  const tokens = new Tokens(() => {
    calls += 1;
    throw new Error("no identity provider");
  });
  for (let repeat = 0; repeat < 5; repeat += 1) {
    await assert.rejects(tokens.get(1_000), (error: SiemError) => {
      assert.ok(error.neverSent && error.code === Code.Unavailable);
      return /could not be fetched: no identity provider/.test(error.message);
    });
  }
  assert.equal(calls, 1);
  await assert.rejects(new Tokens(() => "two words").get(1_000), /characters/);
  await assert.rejects(new Tokens(() => undefined as unknown as string).get(1_000), /neither/);
});

test("a hanging function does not outlast the deadline", async () => {
  const tokens = new Tokens(() => new Promise<string>(() => undefined));
  await assert.rejects(tokens.get(50), /in time/);
});

test("a token is fetched ahead, and the old one is sent meanwhile", () => {
  const state = new TokenState(undefined);
  state.fetched({ value: "a", expiresAt: new Date(100_000) }, 0);
  assert.ok(!state.wantsFetch(79_000) && state.wantsFetch(80_000));
  assert.equal(state.usable(94_000), "a");
  assert.equal(state.usable(95_000), undefined);
  const claims = Buffer.from(JSON.stringify({ exp: 100, name: "ü" })).toString("base64url");
  state.fetched({ value: `e30.${claims}.c2ln` }, 0);
  assert.ok(!state.wantsFetch(79_000) && state.wantsFetch(80_000));
  state.fetched({ value: "e30.!!.c2ln" }, 0);
  assert.ok(!state.wantsFetch(1e12));
  // The clocks differ: the server decides.
  state.fetched({ value: "b", expiresAt: new Date(1_000) }, 50_000);
  assert.equal(state.usable(60_000), "b");
});

test("a file is read again", async () => {
  const directory = mkdtempSync(join(tmpdir(), "token-"));
  const path = join(directory, "token");
  try {
    writeFileSync(path, "first\n");
    const tokens = new Tokens(new TokenFile(path));
    assert.equal(await tokens.get(1_000), "first");
    writeFileSync(path, "second\n");
    assert.equal(await tokens.get(1_000), "first");
    tokens.refused("first");
    assert.equal(await tokens.get(1_000), "second");
  } finally {
    rmSync(directory, { recursive: true });
  }
});

test("a token is not sent in clear beyond loopback", () => {
  for (const address of [
    "http://192.0.2.1:1",
    "192.0.2.1:1",
    "http://127.0.0.1.example.com:1",
    "http://localhost.example.com:1",
    "http://[2001:db8::1]:1",
  ]) {
    assert.throws(() => connect({ address, token: "t" }), /not sent in clear/, address);
    assert.throws(() => connectBrowser({ address, token: () => "t" }), /not sent in clear/, address);
  }
  for (const address of ["http://127.0.0.1:1", "[::1]:1", "localhost:1", "https://192.0.2.1:1"]) {
    connect({ address, token: "t" }).close();
  }
});

test("bad arguments are refused by name", () => {
  const key = "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n";
  for (const [options, problem] of [
    [{ address: "ftp://localhost:1" }, /scheme is ftp/],
    [{ address: "http://localhost:1/path" }, /form/],
    [{ address: "http://localhost:port" }, /cannot be read/],
    [{ address: "http://localhost:1", tls: {} }, /plaintext, but tls/],
    [{ address: "localhost:1", tls: { certificate: key } }, /together/],
    [{ address: "localhost:1", tls: { ca: "/absent.pem" } }, /tls\.ca: ENOENT/],
    [{ address: "localhost:1", tls: { ca: new Uint8Array([48, 130]) } }, /tls\.ca: this is no PEM/],
    [{ address: "localhost:1", tls: { certificate: key, key } }, /^ConfigurationError: tls: /],
    [{ token: "Bearer x" }, /without 'Bearer '/],
    [{ token: 5 as unknown as string }, /neither a bearer token/],
    [{ timeoutMs: 0 }, /timeoutMs: 0/],
  ] as const) {
    assert.throws(() => connect(options), problem);
  }
  assert.throws(() => connect("http://localhost:1" as unknown as object), /use connect\(\{ address/);
  assert.throws(() => connectBrowser({}), /no page/);
  assert.throws(() => connectBrowser({ address: "https://x", tls: {} } as object), /^ConfigurationError: tls/);
});

test("values that are newer than the package", () => {
  const status = fromBinary(v1.IntegrationStatusSchema, new Uint8Array([8, 99, 16, 98]));
  assert.equal(statusOf(status), v1.Status.UNKNOWN);
  assert.equal(statusOf(undefined), v1.Status.UNKNOWN);
  assert.equal(enumName(v1.StatusReasonSchema, status.reason), "98");
  assert.equal(enumName(v1.StatusSchema, v1.Status.ACTIVE), "STATUS_ACTIVE");
  assert.deepEqual(toJson(status), { status: 99, reason: 98 });
});

test("64-bit numbers are safe in JSON", () => {
  const counts = create(v1.EventCountsSchema, { accepted: 2n ** 64n - 1n, asOfTime: timestamp(new Date(0)) });
  const json = JSON.stringify(toJson(counts));
  assert.equal(json, '{"accepted":"18446744073709551615","asOfTime":"1970-01-01T00:00:00Z"}');
});
