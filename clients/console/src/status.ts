// Words and icons of statuses.

import { dateOf, enumName, statusOf, v1 } from "@siem-relay/client/browser";
import { h, icon } from "./dom.ts";

/** A status as the page shows it. */
export interface Look {
  readonly name: string;
  /** Class of the style sheet. */
  readonly kind: string;
  readonly path: string;
}

const question = "M5.5 6a2.500 2.500 0 1 1 3.700 2.200C8.400 8.700 8 9.200 8 10M8 12.200v.3";
const unknown: Look = { name: "Unknown", kind: "unknown", path: question };
const looks = new Map<v1.Status, Look>([
  [v1.Status.ACTIVE, { name: "Active", kind: "active", path: "M3.500 8.500l3 3 6-7" }],
  [v1.Status.UNAUTHORIZED, { name: "Unauthorized", kind: "unauthorized", path: "M4 4l8 8M12 4l-8 8" }],
  [v1.Status.FAILING, { name: "Failing", kind: "failing", path: "M8 3.500v5.500M8 12v.3" }],
  [v1.Status.PAUSED, { name: "Paused", kind: "unknown", path: "M5.500 4v8M10.500 4v8" }],
]);

/** Returns the words and the icon of a status. */
export function lookOf(status: v1.IntegrationStatus | undefined): Look {
  return looks.get(statusOf(status)) ?? unknown;
}

/** Makes the icon and the word of a status. */
export function statusLabel(look: Look): HTMLSpanElement {
  return h("span", { className: `status ${look.kind}` }, h("span", { className: "mark" }, icon(look.path)), look.name);
}

/** Returns a time in the reader's language and time zone. */
export function timeText(time: Parameters<typeof dateOf>[0]): string {
  const date = dateOf(time);
  return date === undefined ? "never" : date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

/** Returns the words of an enum's value, such as `Assume role denied` for `STATUS_REASON_ASSUME_ROLE_DENIED`. */
export function words(schema: Parameters<typeof enumName>[0], value: number, prefix: string): string {
  const name = enumName(schema, value).replace(prefix, "").replaceAll("_", " ").toLowerCase();
  const sentence = name.charAt(0).toUpperCase() + name.slice(1);
  return sentence.replace(/kms/i, "KMS").replace(/external id/i, "External ID");
}

/** Returns the lines that explain a status. */
export function explanation(status: v1.IntegrationStatus | undefined): [string, string][] {
  if (status === undefined) {
    return [];
  }
  const lines: [string, string][] = [["Last update", timeText(status.lastAttemptTime ?? status.sinceTime)]];
  lines.push(["In this status since", timeText(status.sinceTime)], ["Last delivery", timeText(status.lastDeliveryTime)]);
  if (status.reason !== v1.StatusReason.UNSPECIFIED) {
    lines.push(["Reason", words(v1.StatusReasonSchema, status.reason, "STATUS_REASON_")]);
  }
  if (status.message !== "") {
    lines.push(["Remedy", status.message]);
  }
  if (status.awsErrorCode !== "") {
    lines.push(["AWS", [status.awsErrorCode, status.awsRequestId && `request ${status.awsRequestId}`].filter(Boolean).join(", ")]);
  }
  return lines;
}
