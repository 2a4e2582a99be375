// The publisher's state, against a model of a server that rejects, refuses and disconnects at random.

import assert from "node:assert/strict";
import { test } from "node:test";
import { create, fromBinary, type MessageInitShape } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { SiemError } from "../src/errors.js";
import { v1 } from "../src/common.js";
import {
  Broken,
  Item,
  PublishCore,
  type PublisherOptions,
  type PublishResult,
  type RawRequest,
  type Results,
} from "../src/publishCore.js";
import { event } from "./fake.js";

function decoded(request: RawRequest): v1.Event[] {
  return request.events.map((bytes) => fromBinary(v1.EventSchema, bytes));
}

function answer(requestId: string, result: MessageInitShape<typeof v1.PublishResponseSchema>) {
  return create(v1.PublishStreamResponseSchema, { requestId, outcome: { case: "result", value: result } });
}

// mulberry32, so that a failure can be repeated by its seed.
function generator(seed: number): () => number {
  let state = seed + 1;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** A server and a driver, with a clock of their own. */
class Model {
  readonly core: PublishCore;
  readonly random: () => number;
  now = 0;
  unanswered: RawRequest[] = [];
  accepted: string[] = [];
  readonly results = new Map<string, PublishResult["outcome"]>();
  maxInFlight = 0;

  constructor(
    seed: number,
    readonly devices: number,
    options: PublisherOptions,
  ) {
    this.random = generator(seed);
    this.core = new PublishCore(options, (failures) => 100 * 2 ** Math.min(failures, 5));
  }

  take(results: Results): void {
    for (const [item, result] of results) {
      const id = item.event().eventId ?? "";
      assert.ok(!this.results.has(id), "one answer to each event");
      this.results.set(id, result.outcome);
    }
  }

  answer(): void {
    const request = this.unanswered.shift() as RawRequest;
    const events = decoded(request);
    const poisoned = events.some(({ eventId }) => eventId?.endsWith("-13"));
    let reply = answer(request.requestId, {});
    if (poisoned && this.devices === 3) {
      const value = { code: Code.InvalidArgument };
      reply = create(v1.PublishStreamResponseSchema, {
        requestId: request.requestId,
        outcome: { case: "error", value },
      });
    } else {
      // A device whose first event is rejected keeps its order only if the later ones are rejected too.
      const full = new Set(events.map(({ deviceId }) => deviceId).filter(() => this.random() < 0.1));
      const rejections: MessageInitShape<typeof v1.RejectionSchema>[] = [];
      events.forEach(({ deviceId, eventId = "" }, index) => {
        if (full.has(deviceId)) {
          const reason = this.random() < 0.5 ? v1.ErrorReason.OVERLOADED : v1.ErrorReason.RATE_LIMITED;
          rejections.push({ index, reason });
        } else if (eventId.endsWith("7")) {
          rejections.push({ index, reason: v1.ErrorReason.INVALID_FIELD });
        } else {
          this.accepted.push(eventId);
        }
      });
      reply = answer(request.requestId, { rejections });
    }
    try {
      this.take(this.core.answered(reply, this.now));
    } catch (error) {
      assert.ok(error instanceof Broken, String(error));
      this.reopen(error.error);
    }
  }

  reopen(error: SiemError): void {
    this.unanswered = [];
    const { results, wait } = this.core.broke(error, this.now, false);
    this.take(results);
    this.now += wait ?? 0;
  }

  step(): void {
    const chance = this.random();
    if (chance < 0.05) {
      // The answers are lost, although the events were accepted.
      for (const request of this.unanswered) {
        this.accepted.push(...decoded(request).map(({ eventId }) => eventId ?? ""));
      }
      this.reopen(new SiemError(Code.Unavailable, "planned"));
    } else if (chance < 0.5 && this.unanswered.length > 0) {
      this.answer();
    } else {
      const request = this.core.nextRequest(this.now);
      if (request === undefined) {
        this.now += 50;
      } else {
        this.unanswered.push(request);
        this.maxInFlight = Math.max(this.maxInFlight, this.unanswered.length);
      }
    }
  }
}

test("every event gets one answer, and devices keep their order", () => {
  for (let seed = 0; seed < 300; seed += 1) {
    const isSingle = seed % 2 === 0;
    // With one request in flight no later event of a device can overtake a rejected one.
    const options = { maxRequestsInFlight: isSingle ? 1 : 4, maxBatchEvents: 4, giveUpAfterMs: Infinity };
    const model = new Model(seed, (seed % 3) + 1, options);
    const total = 60;
    for (let number = 0; number < total; number += 1) {
      model.core.add(new Item(event(number, `device${number % model.devices}`)), model.now);
      for (let steps = Math.floor(model.random() * 4); steps > 0; steps -= 1) {
        model.step();
      }
    }
    model.core.flush();
    for (let steps = 0; steps < 20_000 && !model.core.isDone; steps += 1) {
      model.step();
    }
    assert.ok(model.core.isDone && model.results.size === total, `seed ${seed}`);
    assert.ok(model.core.unanswered().length === 0 && model.core.oldest() === undefined, `seed ${seed}`);
    assert.ok(model.core.hasCapacity(model.core.options.maxBytesInFlight), `seed ${seed}`);
    assert.ok(model.maxInFlight <= options.maxRequestsInFlight);
    const first = [...new Set(model.accepted)];
    for (let device = 0; device < model.devices && isSingle && model.devices !== 3; device += 1) {
      const numbers = first.filter((id) => id.startsWith(`device${device}-`)).map((id) => Number(id.split("-")[1]));
      assert.deepEqual(
        numbers,
        [...numbers].sort((a, b) => a - b),
        `seed ${seed}, device ${device}`,
      );
    }
    for (const [id, outcome] of model.results) {
      const number = Number(id.split("-")[1]);
      const isFinal = number % 10 === 7 || (number === 13 && model.devices === 3);
      if (!isFinal) {
        assert.equal(outcome, "accepted", `seed ${seed}, ${id}`);
      } else if (!model.accepted.includes(id)) {
        assert.equal(outcome, "rejected", `seed ${seed}, ${id}`);
      }
    }
  }
});

function requestsOf(core: PublishCore): RawRequest[] {
  const requests: RawRequest[] = [];
  for (let next = core.nextRequest(1e9); next !== undefined; next = core.nextRequest(1e9)) {
    requests.push(next);
  }
  return requests;
}

test("requests stay below the limits with their framing", () => {
  const core = new PublishCore({ maxRequestsInFlight: 64 });
  for (let number = 0; number < 9; number += 1) {
    core.add(new Item(event(number, "device", "acme", (1 << 20) - 80)), 0);
  }
  for (let number = 0; number < 2_500; number += 1) {
    core.add(new Item(event(number)), 0);
  }
  core.flush();
  const requests = requestsOf(core);
  for (const { requestId, events } of requests) {
    const request = create(v1.PublishStreamRequestSchema, { requestId, events: decoded({ requestId, events }) });
    // A tag and up to four bytes of length for each event.
    assert.ok(events.reduce((sum, { length }) => sum + length + 5, 0) <= (4 << 20) + 5 && request.events.length <= 1_000);
  }
  assert.equal(requests.reduce((sum, { events }) => sum + events.length, 0), 2_509);
  // As few requests as the limits allow, but for the last of each kind.
  assert.ok(requests.length <= 6);
});

test("requests carry one organization while there are few", () => {
  for (const [organizations, expected] of [
    [8, 8],
    [9, 1],
  ] as const) {
    const core = new PublishCore({ maxRequestsInFlight: 64 });
    for (let number = 0; number < 40; number += 1) {
      core.add(new Item(event(number, "device", `org${number % organizations}`)), 0);
    }
    assert.equal(requestsOf(core).length, expected);
  }
});

test("outcomes of unconfigured and filtered events", () => {
  for (const [organizations, unconfigured, filtered, outcome] of [
    [1, 0, 0, "accepted"],
    [1, 9, 0, "unconfigured"],
    [1, 0, 9, "filtered"],
    [9, 4, 0, "undetermined"],
  ] as const) {
    const core = new PublishCore({});
    for (let number = 0; number < 9; number += 1) {
      core.add(new Item(event(number, "device", `org${number % organizations}`)), 0);
    }
    requestsOf(core);
    const accepted = 9 - unconfigured - filtered;
    const results = core.answered(answer("1", { accepted, unconfigured, filtered }), 0);
    assert.deepEqual(new Set(results.map(([, result]) => result.outcome)), new Set([outcome]));
  }
});

test("it gives up after a time without progress", () => {
  const core = new PublishCore({ giveUpAfterMs: 10_000 });
  core.add(new Item(event(1)), 0);
  let now = 0;
  assert.throws(() => {
    for (;;) {
      const { wait = 0 } = core.broke(new SiemError(Code.Unavailable, "planned"), now, false);
      assert.ok(wait > 0 && wait <= 5_000);
      now += wait;
    }
  }, /gave up after 10 s/);
  assert.equal(Math.round(now), 10_000);
});

test("it never sends earlier than the server asks", () => {
  const core = new PublishCore({ maxRetryWaitMs: 1_000 });
  core.add(new Item(event(1)), 0);
  const { wait } = core.broke(new SiemError(Code.ResourceExhausted, "planned", { retryDelay: 30_000 }), 0, false);
  assert.ok(wait !== undefined && wait >= 30_000 && wait <= 37_500);
});

test("options out of range are refused by name", () => {
  for (const options of [{ maxRequestsInFlight: 65 }, { maxBatchEvents: 0 }, { lingerMs: NaN }]) {
    assert.throws(() => new PublishCore(options), new RegExp(`^ConfigurationError: ${Object.keys(options)[0]}: `));
  }
});

test("the second half of a split request waits for the first", () => {
  const core = new PublishCore({}, () => 1_000);
  for (const number of [1, 2]) {
    core.add(new Item(event(number)), 0);
  }
  core.flush();
  const sent = (now: number): RawRequest => {
    const request = core.nextRequest(now);
    assert.ok(request !== undefined);
    return request;
  };
  const overloaded = (request: RawRequest, now: number): void => {
    const rejections = request.events.map((_, index) => ({ index, reason: v1.ErrorReason.OVERLOADED }));
    assert.deepEqual(core.answered(answer(request.requestId, { rejections }), now), []);
  };
  overloaded(sent(0), 0);
  const outcome = { case: "error" as const, value: { code: Code.InvalidArgument } };
  const refusal = create(v1.PublishStreamResponseSchema, { requestId: sent(1_000).requestId, outcome });
  assert.throws(
    () => core.answered(refusal, 1_000),
    (broken) => {
      assert.ok(broken instanceof Broken);
      core.broke(broken.error, 1_000, false);
      return true;
    },
  );
  const half = sent(1_000);
  assert.deepEqual(decoded(half).map(({ eventId }) => eventId), [event(1).eventId]);
  overloaded(half, 1_000);
  assert.equal(core.nextRequest(1_000), undefined, "event 2 would overtake event 1");
  assert.equal(decoded(sent(2_000))[0]?.eventId, event(1).eventId);
});
