// Tests of publish against a server in memory that rejects on demand.

import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient, createRouterTransport } from "@connectrpc/connect";
import { RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { ErrorReason } from "./gen/siem/v1/error_pb.js";
import { EventSchema, EventService, PublishResponseSchema, RejectionSchema } from "./gen/siem/v1/event_pb.js";
import { publish } from "./publish.js";

// Returns a client, and the event ids of each request and those that were accepted. Events are
// rejected with OVERLOADED as often as planned, those of the device `invalid` finally.
function server(overloads: Record<string, number>, failures: ConnectError[] = []) {
  const requests: string[] = [];
  const accepted: string[] = [];
  const transport = createRouterTransport(({ rpc }) => {
    rpc(EventService.method.publish, (request) => {
      requests.push(request.events.map((event) => event.eventId).join(""));
      const failure = failures.shift();
      if (failure !== undefined) {
        throw failure;
      }
      const response = create(PublishResponseSchema);
      request.events.forEach(({ eventId = "", deviceId }, index) => {
        const left = overloads[eventId] ?? 0;
        if (left > 0) {
          overloads[eventId] = left - 1;
          response.rejections.push(create(RejectionSchema, { index, reason: ErrorReason.OVERLOADED }));
        } else if (deviceId === "invalid") {
          response.rejections.push(create(RejectionSchema, { index, reason: ErrorReason.INVALID_FIELD }));
        } else {
          response.accepted++;
          accepted.push(eventId);
        }
      });
      return response;
    });
  });
  return { client: createClient(EventService, transport), requests, accepted };
}

function event(eventId: string, deviceId = "device") {
  return create(EventSchema, { eventId, deviceId });
}

test("sends again until accepted, in order", async () => {
  const { client, requests, accepted } = server({ b: 2, c: 2, d: 3 });
  const answer = await publish(client, [..."abcd"].map((id) => event(id)));
  assert.deepEqual(answer, create(PublishResponseSchema, { accepted: 4 }));
  assert.deepEqual(requests, ["abcd", "bcd", "bcd", "d"]);
  assert.deepEqual(accepted, [..."abcd"]);
});

test("reports final rejections with their index", async () => {
  const { client, requests } = server({ a: 1, b: 1 });
  const answer = await publish(client, [event("a"), event("b", "invalid"), event("c", "invalid")]);
  assert.equal(answer.accepted, 1);
  assert.deepEqual(
    answer.rejections.map(({ index, reason }) => [index, reason]),
    [
      [1, ErrorReason.INVALID_FIELD],
      [2, ErrorReason.INVALID_FIELD],
    ],
  );
  assert.deepEqual(requests, ["abc", "ab"]);
});

test("returns temporary rejections at the deadline", async () => {
  const { client, requests } = server({ b: Infinity });
  const answer = await publish(client, [event("a"), event("b")], 400);
  assert.equal(answer.accepted, 1);
  assert.deepEqual(
    answer.rejections.map(({ index, reason }) => [index, reason]),
    [[1, ErrorReason.OVERLOADED]],
  );
  assert.ok(requests.length > 1 && requests.length < 8, `${requests.length} requests`);
});

test("sends a failed request again", async () => {
  const info = { desc: RetryInfoSchema, value: { retryDelay: durationFromMs(1) } };
  const { client, requests } = server({}, [
    new ConnectError("planned", Code.ResourceExhausted, undefined, [info]),
    new ConnectError("planned", Code.Unavailable),
  ]);
  assert.equal((await publish(client, [event("a")])).accepted, 1);
  assert.deepEqual(requests, ["a", "a", "a"]);
});

test("throws other errors", async () => {
  const { client, requests } = server({}, [new ConnectError("planned", Code.InvalidArgument)]);
  await assert.rejects(publish(client, [event("a")]), { code: Code.InvalidArgument });
  assert.deepEqual(requests, ["a"]);
});
