// Driver of clients/scenario for @siem-relay/client: reads calls from standard input, and answers on standard output.

import { createInterface } from "node:readline";
import {
  type Client,
  ClosedError,
  ConfigurationError,
  connect,
  enumName,
  type EventInit,
  type Publisher,
  SiemError,
  type StatusEvent,
  statusOf,
  type StatusWatch,
  timestamp,
  UnacknowledgedError,
  v1,
} from "@siem-relay/client";

const start = Date.parse("2026-01-02T03:04:05Z");

interface Arguments {
  call: string;
  address: string;
  token?: string;
  tokens?: string[];
  ca?: string;
  certificate?: string;
  key?: string;
  timeout?: number;
  organization_id: string;
  organization_ids: string[];
  resume_token?: string;
  kinesis_stream_arn?: string;
  role_arn?: string;
  external_id?: string;
  etag?: string;
  allow_missing?: boolean;
  page_size?: number;
  page_token?: string;
  stream?: string;
  role_name?: string;
  first: number;
  last: number;
  invalid?: number[];
  event_ids?: boolean;
}

type Answer = Record<string, unknown>;

// Returns the numbered events of a call, as clients/scenario/README.md describes them.
function* events(args: Arguments): Generator<[number, EventInit]> {
  for (let number = args.first; number <= args.last; number += 1) {
    const isInvalid = args.invalid?.includes(number) ?? false;
    const event: EventInit = {
      organizationId: args.organization_id,
      networkId: "00000000-0000-0000-0000-000000000001",
      deviceId: "00000000-0000-0000-0000-000000000002",
      observedTime: timestamp(new Date(start + number)),
      payload: {
        case: "idsDetection",
        value: {
          srcIp: isInvalid ? "192.0.2.256" : "192.0.2.7",
          destIp: "198.51.100.80",
          signature: `detection ${number}`,
        },
      },
    };
    const eventId = `00000000-0000-4000-8000-${String(number).padStart(12, "0")}`;
    yield [number, args.event_ids ? { ...event, eventId } : event];
  }
}

function shown(status: v1.IntegrationStatus | undefined): Answer {
  return {
    status: enumName(v1.StatusSchema, statusOf(status)),
    reason: enumName(v1.StatusReasonSchema, status?.reason ?? 0),
  };
}

function integration(found: v1.Integration | undefined): Answer {
  return {
    organization_id: found?.organizationId,
    integration_id: found?.integrationId,
    etag: found?.etag,
    accepted: Number(found?.counts?.accepted ?? 0n),
    delivered: Number(found?.counts?.delivered ?? 0n),
    pending: Number(found?.counts?.pending ?? 0n),
    ...shown(found?.status),
  };
}

function statusEvent(event: StatusEvent): Answer {
  switch (event.kind) {
    case "snapshot": {
      const statuses = Object.fromEntries(
        [...event.statuses].map(([name, { status }]) => [name, shown(status)["status"]]),
      );
      return {
        kind: "snapshot",
        organizations: Object.keys(statuses).sort(),
        statuses,
        absent: [...event.absent].sort(),
      };
    }
    case "current":
      return { kind: "current", organization_id: event.organizationId, ...shown(event.current.status) };
    default:
      return { kind: event.kind, organization_id: event.organizationId };
  }
}

let client: Client | undefined;
let watch: StatusWatch | undefined;
let publisher: Publisher | undefined;
let rejected: { number: number; reason: string; field: string }[] = [];

function opened<T>(value: T | undefined): T {
  if (value === undefined) {
    throw new ClosedError("this call needs another one before");
  }
  return value;
}

const calls: Record<string, (args: Arguments) => Answer | Promise<Answer>> = {
  connect({ address, token, tokens, ca, certificate, key }) {
    client?.close();
    const rest = [...(tokens ?? [])];
    client = connect({
      address,
      token: tokens === undefined ? token : () => (rest.length > 1 ? rest.shift() : rest[0]) as string,
      tls: ca === undefined ? undefined : { ca, certificate, key },
    });
    return {};
  },
  async configure({ call: _, ...args }) {
    const answer = await opened(client).configure({
      organizationId: args.organization_id,
      kinesisStreamArn: args.kinesis_stream_arn ?? "",
      roleArn: args.role_arn ?? "",
      externalId: args.external_id ?? "",
      etag: args.etag ?? "",
    });
    return integration(answer.integration);
  },
  async get({ organization_id: organizationId, timeout }) {
    const timeoutMs = timeout === undefined ? undefined : timeout * 1000;
    return integration((await opened(client).get({ organizationId }, { timeoutMs })).integration);
  },
  async list({ page_size: pageSize = 0, page_token: pageToken = "" }) {
    const answer = await opened(client).list({ pageSize, pageToken });
    const names = answer.integrations.map(({ organizationId }) => organizationId);
    return { organization_ids: names, next_page_token: answer.nextPageToken };
  },
  async generate_external_id({ organization_id: organizationId }) {
    return { external_id: (await opened(client).generateExternalId({ organizationId })).externalId };
  },
  async get_onboarding({ stream = "", role_name: roleName = "", external_id: externalId = "" }) {
    const answer = await opened(client).getOnboarding({ stream, roleName, externalId });
    return { file_names: answer.documents.map(({ fileName }) => fileName), role_arn: answer.roleArn };
  },
  async list_audit_entries({ organization_id: organizationId = "" }) {
    const { entries } = await opened(client).listAuditEntries({ organizationId });
    const actions = entries.map(({ action }) => enumName(v1.AuditActionSchema, action));
    return { actions, principals: entries.map(({ principal }) => principal) };
  },
  async delete({ organization_id: organizationId, allow_missing: allowMissing = false, etag = "" }) {
    const { counts } = await opened(client).delete({ organizationId, allowMissing, etag });
    return { accepted: Number(counts?.accepted ?? 0n), pending: Number(counts?.pending ?? 0n) };
  },
  async send_test({ organization_id: organizationId }) {
    const answer = await opened(client).sendTest({ organizationId });
    return { delivered: answer.delivered, message: answer.message, ...shown(answer.status) };
  },
  watch_open({ organization_ids: organizationIds, resume_token: resumeToken }) {
    watch = opened(client).watchStatus({ organizationIds, resumeToken });
    return {};
  },
  async watch_next() {
    const { done, value } = await opened(watch).next();
    if (done) {
      throw new ClosedError("the watch has ended");
    }
    return statusEvent(value);
  },
  watch_token: () => ({ resume_token: opened(watch).resumeToken }),
  watch_close() {
    opened(watch).close();
    return {};
  },
  async publish(args) {
    const answer = await opened(client).publish({ events: [...events(args)].map(([, event]) => event) });
    const rejections = answer.rejections.map(({ index, reason, field }) => ({
      index,
      reason: enumName(v1.ErrorReasonSchema, reason),
      field,
    }));
    return { accepted: answer.accepted, unconfigured: answer.unconfigured, rejections };
  },
  publisher_open() {
    publisher = opened(client).publisher();
    rejected = [];
    return {};
  },
  async send(args) {
    let sent = 0;
    for (const [number, event] of events(args)) {
      const queued = await opened(publisher).send(event);
      void queued.answer.then(
        ({ rejection }) => {
          if (rejection !== undefined) {
            const reason = enumName(v1.ErrorReasonSchema, rejection.reason);
            rejected.push({ number, reason, field: rejection.field });
          }
        },
        () => undefined,
      );
      sent += 1;
    }
    return { sent };
  },
  async flush({ timeout = 30 }) {
    await opened(publisher).flush(timeout * 1000);
    const { accepted, filtered, unconfigured } = opened(publisher).stats;
    return { accepted, filtered, unconfigured, rejected: rejected.sort((a, b) => a.number - b.number) };
  },
  async publisher_close({ timeout = 30 }) {
    try {
      await opened(publisher).close(timeout * 1000);
    } catch (error) {
      if (error instanceof UnacknowledgedError) {
        return { unacknowledged: error.unacknowledged.map(({ eventId }) => eventId) };
      }
      throw error;
    }
    return { unacknowledged: [] };
  },
};

async function answer(args: Arguments): Promise<Answer> {
  try {
    const call = calls[args.call];
    if (call === undefined) {
      throw new Error(`there is no call ${args.call}`);
    }
    return await call(args);
  } catch (error) {
    if (error instanceof SiemError) {
      const { codeName: code, reasonName: reason, message } = error;
      return { error: { code, reason, violations: error.violations.map(({ field }) => field), message } };
    }
    if (error instanceof ConfigurationError) {
      return { error: { code: "CONFIGURATION", message: error.message } };
    }
    throw error;
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(`${JSON.stringify(await answer(JSON.parse(line) as Arguments))}\n`);
}
client?.close();
