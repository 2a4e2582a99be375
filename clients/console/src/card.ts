// The card of the SIEM integration: badge, configuration, counts, test and deletion.

import { Code, enumName, SiemError, v1 } from "@siem-relay/client/browser";
import { h, icon, setText } from "./dom.ts";
import type { Drawer } from "./drawer.ts";
import { describe, notify } from "./notices.ts";
import type { Session } from "./session.ts";
import { explanation, lookOf, timeText, words } from "./status.ts";

// Counts are read again after this time while the page is visible; the status is pushed.
const refreshMs = 5_000;
const cells = [
  "AWS Kinesis ARN",
  "Role ARN",
  "External ID",
  "Accepted",
  "Delivered",
  "Pending",
  "Oldest pending",
  "Next retry",
  "Expired",
  "Discarded",
] as const;

/** The card of one organization. */
export class Card {
  readonly element: HTMLElement;
  readonly confirmation: HTMLDialogElement;
  readonly #title = h("h2", { id: "card-title" }, "SIEM integration");
  readonly #owner = h("p", { className: "owner" });
  readonly #badge = h("button", { type: "button", className: "badge", attrs: { "aria-describedby": "tip" } });
  readonly #tip = h("div", { id: "tip", className: "tip", attrs: { role: "tooltip" } });
  readonly #note = h("p", { className: "note" });
  readonly #announcement = h("p", { className: "hidden", attrs: { "aria-live": "polite" } });
  readonly #values = new Map<string, HTMLElement>(cells.map((name) => [name, h("dd", {}, "–")]));
  readonly #configure = h("button", { type: "button", className: "primary" }, "Configure");
  readonly #test = h("button", { type: "button" }, "Send test event");
  readonly #delete = h("button", { type: "button", className: "danger" }, "Delete");
  readonly #confirm = h("button", { type: "button", className: "danger" }, "Delete");
  readonly #question = h("p", { className: "error", attrs: { role: "alert" } });
  readonly #result = h("div", { className: "result", tabIndex: 0, attrs: { role: "region", "aria-labelledby": "test-title" } });
  #organizationId = "";
  #integration: v1.Integration | undefined;
  #status: v1.IntegrationStatus | undefined;
  #announced = "";
  #reading: AbortController | undefined;
  #isTesting = false;

  constructor(
    private readonly session: Session,
    private readonly drawer: Drawer,
    private readonly onTokenNeeded: (error: SiemError) => void,
  ) {
    const values = cells.map((name) => h("div", {}, h("dt", {}, name), this.#values.get(name)));
    this.element = h(
      "section",
      { className: "panel card", attrs: { "aria-labelledby": "card-title" } },
      h(
        "div",
        { className: "head" },
        h("div", {}, this.#title, this.#owner),
        h("div", { className: "badge-place" }, this.#badge, this.#tip),
      ),
      this.#announcement,
      this.#note,
      h("dl", {}, ...values),
      h("div", { className: "buttons" }, this.#configure, this.#test, this.#delete),
      h("h3", { id: "test-title" }, "Test event"),
      this.#result,
    );
    const cancel = h("button", { type: "button", autofocus: true }, "Cancel");
    this.confirmation = h(
      "dialog",
      { attrs: { "aria-labelledby": "confirm-title", role: "alertdialog" } },
      h("h2", { id: "confirm-title" }, "Delete SIEM integration"),
      h("p", {}, "Are you sure you want to delete this SIEM integration?"),
      this.#question,
      h("div", { className: "buttons end" }, cancel, this.#confirm),
    );
    cancel.addEventListener("click", () => this.confirmation.close());
    this.#configure.addEventListener("click", () => this.drawer.open(this.#organizationId, this.#integration));
    this.#test.addEventListener("click", () => void this.#sendTest());
    this.#delete.addEventListener("click", () => {
      this.#question.textContent = "";
      this.confirmation.showModal();
    });
    this.#confirm.addEventListener("click", () => void this.#remove());
    this.#badge.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        this.#tip.classList.add("dismissed");
      }
    });
    this.#badge.addEventListener("blur", () => this.#tip.classList.remove("dismissed"));
    document.addEventListener("visibilitychange", () => void this.read());
    setInterval(() => void this.read(), refreshMs);
    this.#clearResult();
    this.#render();
  }

  /** Shows the card of an organization; empty for one that is still to be named. */
  show(organizationId: string): void {
    if (organizationId !== this.#organizationId) {
      this.#organizationId = organizationId;
      this.#reading?.abort();
      this.#reading = undefined;
      this.#integration = undefined;
      this.#announced = "";
      this.#clearResult();
    }
    this.statusChanged();
  }

  /** Shows a new status of the organization, and reads the rest. */
  statusChanged(): void {
    const current = this.session.statuses.get(this.#organizationId);
    if (this.session.isComplete) {
      if (current === undefined || current.integrationId !== this.#integration?.integrationId) {
        this.#integration = undefined;
      }
      this.#status = current?.status;
    }
    this.#render();
    this.#reading?.abort();
    this.#reading = undefined;
    void this.read();
  }

  /** Shows an integration that Configure returned. Its status follows by the stream. */
  saved(integration: v1.Integration): void {
    this.#organizationId = integration.organizationId;
    this.#integration = integration;
    this.#status = integration.status;
    this.#render();
  }

  /** Reads configuration and counts, unless that is in progress. */
  async read(): Promise<void> {
    const organizationId = this.#organizationId;
    if (this.#reading !== undefined || document.hidden || !this.session.statuses.has(organizationId)) {
      return;
    }
    const reading = (this.#reading = new AbortController());
    try {
      const { integration } = await this.session.client.get({ organizationId }, { signal: reading.signal });
      if (this.#reading === reading) {
        this.#integration = integration;
        this.#render();
      }
    } catch (error) {
      // The stream of statuses reports a lost connection and a deletion.
      if (this.#reading === reading && error instanceof SiemError && error.code === Code.Unauthenticated) {
        this.onTokenNeeded(error);
      }
    } finally {
      if (this.#reading === reading) {
        this.#reading = undefined;
      }
    }
  }

  #render(): void {
    const exists = this.#status !== undefined;
    const integration = this.#integration;
    const look = lookOf(this.#status);
    setText(this.#owner, this.#organizationId === "" ? "No organization chosen" : `Organization ${this.#organizationId}`);
    setText(this.#configure, exists ? "Configuration" : "Configure");
    this.#configure.disabled = exists && integration === undefined;
    for (const element of [this.#test, this.#delete]) {
      element.classList.toggle("absent", !exists);
    }
    this.#badge.classList.toggle("absent", !exists);
    this.#badge.className = `badge ${look.kind}${exists ? "" : " absent"}`;
    if (this.#badge.textContent !== look.name) {
      this.#badge.replaceChildren(h("span", { className: "mark" }, icon(look.path)), look.name);
    }
    this.#tip.replaceChildren(h("dl", {}, ...explanation(this.#status).map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text)))));
    const purpose = "Delivers intrusion detections to a Kinesis data stream in your AWS account.";
    const message = this.#status?.message ?? "";
    setText(this.#note, exists && message !== "" ? message : purpose);
    const announcement = exists ? `Status: ${look.name}` : "";
    if (announcement !== this.#announced) {
      this.#announced = announcement;
      this.#announcement.textContent = announcement;
    }
    const counts = integration?.counts;
    const number = (value: bigint | undefined) => (value ?? 0n).toLocaleString();
    const shown: Record<(typeof cells)[number], string | undefined> = {
      "AWS Kinesis ARN": integration?.kinesisStreamArn,
      "Role ARN": integration?.roleArn,
      "External ID": integration && `ends with ${integration.externalIdHint}`,
      Accepted: counts && number(counts.accepted),
      Delivered: counts && number(counts.delivered),
      Pending: counts && number(counts.pending),
      "Oldest pending": counts?.oldestPendingTime && timeText(counts.oldestPendingTime),
      "Next retry": this.#status?.nextRetryTime && timeText(this.#status.nextRetryTime),
      Expired: counts && number(counts.expired),
      Discarded: counts && number(counts.discarded),
    };
    for (const name of cells) {
      const element = this.#values.get(name) as HTMLElement;
      const text = (exists && shown[name]) || "–";
      setText(element, text);
      element.title = text;
    }
  }

  #clearResult(): void {
    this.#result.replaceChildren(h("p", {}, "No test event has been sent from this page."));
  }

  async #sendTest(): Promise<void> {
    if (this.#isTesting) {
      return;
    }
    const organizationId = this.#organizationId;
    this.#isTesting = true;
    this.#test.setAttribute("aria-disabled", "true");
    this.#result.replaceChildren(h("p", {}, "Sending a test event…"));
    try {
      const answer = await this.session.client.sendTest({ organizationId });
      notify(answer.delivered ? "success" : "failure", answer.message);
      if (organizationId === this.#organizationId) {
        this.#showResult(answer);
      }
    } catch (error) {
      notify("failure", describe(error));
      if (organizationId === this.#organizationId) {
        this.#result.replaceChildren(h("p", { className: "error" }, describe(error)));
      }
      if (error instanceof SiemError && error.code === Code.Unauthenticated) {
        this.onTokenNeeded(error);
      }
    } finally {
      this.#isTesting = false;
      this.#test.removeAttribute("aria-disabled");
    }
    void this.read();
  }

  #showResult({ delivered, message, checks, receipt, warnings }: v1.SendTestResponse): void {
    const results = checks.map((check) => {
      const result = enumName(v1.CheckResultSchema, check.result).replace("CHECK_RESULT_", "").toLowerCase();
      const texts = [check.message, check.remedy, check.awsErrorCode && `AWS: ${check.awsErrorCode} ${check.awsRequestId}`];
      return h(
        "li",
        { className: result },
        h("strong", {}, `${words(v1.CheckNameSchema, check.name, "CHECK_NAME_")}: ${result}`),
        ...texts.filter(Boolean).map((text) => h("p", {}, text)),
      );
    });
    const latency = receipt?.latency && Number(receipt.latency.seconds) * 1000 + receipt.latency.nanos / 1e6;
    const proof: [string, string][] = receipt
      ? [
          ["Event", receipt.eventId],
          ["Shard", receipt.shardId],
          ["Sequence number", receipt.sequenceNumber],
          ["Latency", `${Math.round(latency ?? 0)} ms`],
        ]
      : [];
    this.#result.replaceChildren(
      h("p", { className: delivered ? "success" : "error" }, message),
      h("ul", {}, ...results),
      proof.length > 0 && h("h4", {}, "Receipt") || "",
      h("dl", {}, ...proof.map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text)))),
      ...warnings.map((text) => h("p", {}, text)),
    );
  }

  async #remove(): Promise<void> {
    const organizationId = this.#organizationId;
    this.#confirm.disabled = true;
    try {
      await this.session.client.delete({ organizationId, allowMissing: true });
      this.confirmation.close();
      notify("success", "The SIEM integration is deleted.");
    } catch (error) {
      this.#question.textContent = describe(error);
    } finally {
      this.#confirm.disabled = false;
    }
  }
}
