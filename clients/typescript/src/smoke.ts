// Runs the TypeScript stubs against a server: Configure, StreamStatus, Publish,
// SendTest, Get and Delete. Exits with 0 if every answer was correct.
//
// Environment: SIEM_RELAY_ADDRESS (a URL), SMOKE_STREAM_ARN, SMOKE_ROLE_ARN,
// SMOKE_EXTERNAL_ID, SMOKE_ORGANIZATION.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { argv, env } from "node:process";
import { create, toJsonString, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampNow } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { BadRequestSchema, ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { EventSchema, EventService } from "./gen/siem/v1/event_pb.js";
import {
  CheckName,
  CheckResult,
  IntegrationSchema,
  SiemIntegrationService,
  Status,
  type StreamStatusResponse,
} from "./gen/siem/v1/integration_pb.js";
import { publish } from "./publish.js";

const timeoutMs = 60_000;

function setting(name: string, fallback?: string): string {
  const value = env[name] ?? fallback;
  if (value === undefined) {
    throw new Error(`${name} is not set`);
  }
  return value;
}

function check(ok: boolean, what: string): void {
  assert.ok(ok, what);
  console.log(`  ok: ${what}`);
}

// Returns a detection with addresses for documentation; each number gives a different one.
function detection(organizationId: string, deviceId: string, number: number) {
  return create(EventSchema, {
    organizationId,
    networkId: "00000000-0000-0000-0000-000000000001",
    deviceId,
    observedTime: timestampNow(),
    payload: {
      case: "idsDetection",
      value: {
        srcIp: number % 2 ? "2001:db8::7" : "192.0.2.7",
        srcPort: 40000 + number,
        destIp: number % 2 ? "2001:db8::80" : "198.51.100.80",
        destPort: 80,
        proto: "TCP",
        appProto: "http",
        flowId: 18446744073709551615n,
        action: "allowed",
        gid: 1,
        signatureId: 1000000 + number,
        rev: 1,
        signature: `Example détection ${number}`,
        category: "Misc activity",
        severity: 3,
        metadata: { confidence: { values: ["High"] } },
        contextJson: '{"http":{"hostname":"www.example.com"}}',
      },
    },
  } satisfies MessageInitShape<typeof EventSchema>);
}

// Returns the error of a call that must fail.
async function failure(call: Promise<unknown>): Promise<ConnectError> {
  try {
    await call;
  } catch (error) {
    return ConnectError.from(error);
  }
  throw new Error("the call should have failed");
}

// Returns `domain/reason` of the ErrorInfo.
function reason(error: ConnectError): string {
  const info = error.findDetails(ErrorInfoSchema)[0];
  return `${info?.domain}/${info?.reason}`;
}

// Returns the next message that is not a heartbeat.
async function next(stream: AsyncIterator<StreamStatusResponse>): Promise<StreamStatusResponse> {
  for (;;) {
    const { done, value } = await stream.next();
    assert.ok(!done, "the stream continues");
    assert.notEqual(value.resumeToken, "", "each message carries a resume token");
    if (value.event.case !== "heartbeat") {
      return value;
    }
  }
}

async function run(): Promise<void> {
  const address = argv[2] ?? setting("SIEM_RELAY_ADDRESS", "http://127.0.0.1:50051");
  const organizationId = setting("SMOKE_ORGANIZATION", "smoke-typescript");
  const kinesisStreamArn = setting("SMOKE_STREAM_ARN");
  const roleArn = setting("SMOKE_ROLE_ARN");
  const externalId = setting("SMOKE_EXTERNAL_ID");
  const transport = createGrpcTransport({ baseUrl: address, defaultTimeoutMs: timeoutMs });
  const integrations = createClient(SiemIntegrationService, transport);
  const events = createClient(EventService, transport);

  console.log("Configure, malformed");
  const refused = await failure(integrations.configure({ organizationId }));
  check(refused.code === Code.InvalidArgument, "it is INVALID_ARGUMENT");
  check(reason(refused) === "siem.v1/INVALID_FIELD", "its reason is INVALID_FIELD");
  assert.deepEqual(
    refused.findDetails(BadRequestSchema)[0]?.fieldViolations.map((violation) => violation.field).sort(),
    ["external_id", "kinesis_stream_arn", "role_arn"],
    "it names every field at once",
  );

  console.log("Configure");
  const { integration } = await integrations.configure({ organizationId, kinesisStreamArn, roleArn, externalId });
  assert.ok(integration);
  check(integration.organizationId === organizationId, "it answers with the integration");
  check(integration.kinesisStreamArn === kinesisStreamArn && integration.roleArn === roleArn, "the ARNs are kept");
  check(externalId.endsWith(integration.externalIdHint), "the hint is the external ID's end");
  check(!toJsonString(IntegrationSchema, integration).includes(externalId), "the external ID is not returned");
  check(integration.status?.status === Status.UNKNOWN, "a new integration is UNKNOWN");

  console.log("StreamStatus");
  const abort = new AbortController();
  const stream = integrations
    .streamStatus({ organizationIds: [organizationId] }, { signal: abort.signal })
    [Symbol.asyncIterator]();
  const first = await next(stream);
  assert.ok(first.event.case === "current", "the snapshot comes first");
  check(first.event.value.integrationId === integration.integrationId, "the snapshot is of this integration");
  check(first.event.value.status?.status === Status.UNKNOWN, "it is UNKNOWN");
  check((await next(stream)).event.case === "synced", "then the synced marker");

  console.log("Publish");
  const device = randomUUID();
  const batch = [0, 1, 2].map((number) => detection(organizationId, device, number));
  const stray = detection(`${organizationId}-absent`, device, 3);
  const bad = detection(organizationId, "not-a-uuid", 4);
  const published = await publish(events, [...batch, stray, bad], timeoutMs);
  check(published.accepted === 3, "3 events are accepted");
  check(published.unconfigured === 1, "1 is of an organization without integration");
  check(published.rejections.length === 1 && published.rejections[0]?.index === 4, "1 is rejected");
  check(published.rejections[0]?.field === "device_id", "the rejection names the field");

  console.log("StreamStatus, a change");
  for (;;) {
    const { event } = await next(stream);
    assert.ok(event.case === "current", "a change is the current status");
    if (event.value.status?.status === Status.ACTIVE) {
      check(event.value.status.lastDeliveryTime !== undefined, "an ACTIVE status has the time of its last delivery");
      break;
    }
  }

  console.log("SendTest");
  const verdict = await integrations.sendTest({ organizationId });
  check(verdict.delivered, `the test event is delivered ${verdict.message}`);
  for (const name of [CheckName.ASSUME_ROLE, CheckName.WRITE_RECORD]) {
    check(
      verdict.checks.some((c) => c.name === name && c.result === CheckResult.PASSED),
      `${CheckName[name]} passed`,
    );
  }
  check(verdict.receipt?.shardId !== "" && verdict.receipt?.sequenceNumber !== "", "the receipt names shard and number");
  check(verdict.status?.status === Status.ACTIVE, "the status is ACTIVE");

  console.log("Get");
  const counts = (await integrations.get({ organizationId })).integration?.counts;
  assert.ok(counts);
  check(counts.accepted === 3n, "3 events are counted");
  check(
    counts.accepted === counts.delivered + counts.expired + counts.discarded + counts.pending,
    "the counts add up",
  );

  console.log("Delete");
  const final = (await integrations.delete({ organizationId })).counts;
  assert.ok(final);
  check(final.accepted === 3n && final.pending === 0n, "the final counts have nothing pending");
  check(final.delivered + final.expired + final.discarded === 3n, "they add up");
  let message = await next(stream);
  while (message.event.case === "current") {
    message = await next(stream);
  }
  assert.ok(message.event.case === "deleted", "the stream has the deletion");
  check(message.event.value.integrationId === integration.integrationId, "the deletion is of this integration");
  abort.abort();
  // An unread stream would keep the process alive until the call's deadline.
  check((await failure(stream.next())).code === Code.Canceled, "a stream that is cancelled ends");
  const gone = await failure(integrations.get({ organizationId }));
  check(gone.code === Code.NotFound, "Get is NOT_FOUND");
  check(reason(gone) === "siem.v1/INTEGRATION_NOT_FOUND", "its reason is INTEGRATION_NOT_FOUND");
}

await run();
console.log("the TypeScript client works");
