// The calls of the API, and the status watch: what Node and browsers have in common.

import type { MessageInitShape } from "@bufbuild/protobuf";
import type { CallOptions, Caller } from "./caller.js";
import { EventService, type PublishRequestSchema, type PublishResponse } from "./gen/siem/v1/event_pb.js";
import {
  type ConfigureRequestSchema,
  type ConfigureResponse,
  type DeleteRequestSchema,
  type DeleteResponse,
  type GenerateExternalIdRequestSchema,
  type GenerateExternalIdResponse,
  type GetOnboardingRequestSchema,
  type GetOnboardingResponse,
  type GetRequestSchema,
  type GetResponse,
  type ListAuditEntriesRequestSchema,
  type ListAuditEntriesResponse,
  type ListRequestSchema,
  type ListResponse,
  type SendTestRequestSchema,
  type SendTestResponse,
  SiemIntegrationService,
} from "./gen/siem/v1/integration_pb.js";
import { StatusWatch, type WatchOptions } from "./watch.js";

const { method: integrations } = SiemIntegrationService;
const { method: events } = EventService;

/**
 * A client of one server, or of several behind one address. `connect` makes it; it connects at the first use and again
 * after each loss.
 *
 * Each call has one deadline over all its attempts, and fails with `SiemError`; with `ClosedError` if the client is
 * closed. Requests are messages of `v1`, or objects with the same members.
 */
export class Client {
  /** @internal */
  constructor(
    /** @internal */
    protected readonly caller: Caller,
    private readonly disconnect: () => void,
    /** Default of `silenceMs`. */
    private readonly silenceMs = 90_000,
  ) {}

  /** Ends all calls, all watches and the connection. Close publishers before: their events would be unacknowledged. */
  close(): void {
    this.caller.close();
    this.disconnect();
  }

  /**
   * Creates or replaces the integration of an organization. With an etag it is not sent again after a lost answer: the
   * second one would be refused although the first has succeeded.
   */
  configure(
    request: MessageInitShape<typeof ConfigureRequestSchema>,
    options: CallOptions = {},
  ): Promise<ConfigureResponse> {
    return this.caller.unary(integrations.configure, request, options, !request.etag);
  }

  /** Issues a new external ID to an organization. It is not sent again after a lost answer. */
  generateExternalId(
    request: MessageInitShape<typeof GenerateExternalIdRequestSchema>,
    options: CallOptions = {},
  ): Promise<GenerateExternalIdResponse> {
    return this.caller.unary(integrations.generateExternalId, request, options, false);
  }

  /** Returns an integration with its status and counts. */
  get(request: MessageInitShape<typeof GetRequestSchema>, options: CallOptions = {}): Promise<GetResponse> {
    return this.caller.unary(integrations.get, request, options, true);
  }

  /** Returns one page of the integrations of all organizations. */
  list(request: MessageInitShape<typeof ListRequestSchema> = {}, options: CallOptions = {}): Promise<ListResponse> {
    return this.caller.unary(integrations.list, request, options, true);
  }

  /**
   * Removes an integration and its pending events. Without `allowMissing` it is not sent again after a lost answer.
   */
  delete(request: MessageInitShape<typeof DeleteRequestSchema>, options: CallOptions = {}): Promise<DeleteResponse> {
    return this.caller.unary(integrations.delete, request, options, request.allowMissing === true);
  }

  /** Writes a test event, and returns the verdict. It is not sent again after a lost answer. */
  sendTest(
    request: MessageInitShape<typeof SendTestRequestSchema>,
    options: CallOptions = {},
  ): Promise<SendTestResponse> {
    return this.caller.unary(integrations.sendTest, request, options, false);
  }

  /** Returns the documents that a customer applies in its AWS account. */
  getOnboarding(
    request: MessageInitShape<typeof GetOnboardingRequestSchema>,
    options: CallOptions = {},
  ): Promise<GetOnboardingResponse> {
    return this.caller.unary(integrations.getOnboarding, request, options, true);
  }

  /** Returns one page of the audit, newest entry first. */
  listAuditEntries(
    request: MessageInitShape<typeof ListAuditEntriesRequestSchema> = {},
    options: CallOptions = {},
  ): Promise<ListAuditEntriesResponse> {
    return this.caller.unary(integrations.listAuditEntries, request, options, true);
  }

  /**
   * Publishes at most 1,000 events and 4 MiB in one call, which is sent again after failures. Temporary rejections are
   * returned like others; a publisher sends those events again.
   */
  publish(
    request: MessageInitShape<typeof PublishRequestSchema>,
    options: CallOptions = {},
  ): Promise<PublishResponse> {
    return this.caller.unary(events.publish, request, options, true);
  }

  /** Returns an endless iterator of statuses: a snapshot, then each change. */
  watchStatus(options: WatchOptions = {}): StatusWatch {
    return new StatusWatch(this.caller, { ...options, silenceMs: options.silenceMs ?? this.silenceMs });
  }
}
