// Publishes events until the answer to each is final.

import { setTimeout } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type Client } from "@connectrpc/connect";
import { RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { ErrorReason } from "./gen/siem/v1/error_pb.js";
import {
  PublishResponseSchema,
  type Event,
  type EventService,
  type PublishResponse,
  type Rejection,
} from "./gen/siem/v1/event_pb.js";

const minWaitMs = 100;
const maxWaitMs = 5_000;

// Publishes at most 1,000 events and 4 MiB, and sends those again that are rejected temporarily.
//
// Returns one answer for all events, with the indices of `events`. It has a rejection with the
// reason OVERLOADED only for an event that was rejected until `giveUpAfterMs` had passed. A
// request that fails as UNAVAILABLE, or with a RetryInfo, is sent again too; other errors are
// thrown, and so is the last one at the end. Events may have been accepted before an error:
// publish all of them again, unchanged.
//
// Events are sent again unchanged, so their CloudEvents ids remain the same. To keep the events
// of a device in order, publish its later events after this function has returned. Other devices
// do not have to wait if they are published by concurrent calls.
export async function publish(
  client: Client<typeof EventService>,
  events: readonly Event[],
  giveUpAfterMs = 300_000,
): Promise<PublishResponse> {
  const deadline = performance.now() + giveUpAfterMs;
  const total = create(PublishResponseSchema);
  let waiting = [...events.entries()];
  for (let failures = 0; ; failures++) {
    let wait: number;
    try {
      const timeoutMs = Math.max(Math.ceil(deadline - performance.now()), 1);
      const answer = await client.publish({ events: waiting.map(([, event]) => event) }, { timeoutMs });
      total.accepted += answer.accepted;
      total.unconfigured += answer.unconfigured;
      const overloaded: Rejection[] = [];
      const again: typeof waiting = [];
      for (const rejection of answer.rejections) {
        const rejected = waiting[rejection.index];
        if (rejected === undefined) {
          throw new Error("the server rejects an event that was not sent");
        }
        rejection.index = rejected[0];
        if (rejection.reason === ErrorReason.OVERLOADED) {
          overloaded.push(rejection);
          again.push(rejected);
        } else {
          total.rejections.push(rejection);
        }
      }
      if (again.length < waiting.length) {
        failures = 0;
      }
      wait = ownWait(failures);
      if (again.length === 0 || performance.now() + wait >= deadline) {
        total.rejections.push(...overloaded);
        total.rejections.sort((a, b) => a.index - b.index);
        return total;
      }
      waiting = again;
    } catch (error) {
      if (!(error instanceof ConnectError)) {
        throw error;
      }
      const asked = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
      wait = asked === undefined ? ownWait(failures) : Math.min(durationMs(asked) * between(1, 1.25), maxWaitMs);
      const retriable = asked !== undefined || error.code === Code.Unavailable;
      if (!retriable || performance.now() + wait >= deadline) {
        throw error;
      }
    }
    await setTimeout(wait);
  }
}

// Returns the wait after a number of earlier failures. Jitter spreads the attempts of many clients.
function ownWait(failures: number): number {
  return Math.min(minWaitMs * 2 ** failures, maxWaitMs) * between(0.5, 1);
}

function between(from: number, to: number): number {
  return from + Math.random() * (to - from);
}
