// Notifications, and the words of errors.

import { Code, SiemError } from "@siem-relay/client/browser";
import { h } from "./dom.ts";

const region = h("div", { className: "notices", attrs: { role: "status", "aria-live": "polite" } });
const successMs = 10_000;

/** Element of the notifications, which lie above the page. */
export const notices: HTMLElement = region;

/** Shows a notification. A success disappears by itself, a failure when it is closed. */
export function notify(kind: "success" | "failure", text: string): void {
  const close = h("button", { type: "button", className: "close", attrs: { "aria-label": "Close the notification" } }, "×");
  const notice = h("div", { className: `notice ${kind}` }, h("p", {}, text), close);
  close.addEventListener("click", () => notice.remove());
  region.append(notice);
  // A few are enough to read.
  while (region.children.length > 3) {
    region.firstElementChild?.remove();
  }
  if (kind === "success") {
    setTimeout(() => notice.remove(), successMs);
  }
}

/** Returns the words of an error for a person. */
export function describe(error: unknown): string {
  if (!(error instanceof SiemError)) {
    return error instanceof Error ? error.message : String(error);
  }
  switch (error.code) {
    case Code.Unavailable:
      return "The service cannot be reached. Try again in a moment.";
    case Code.DeadlineExceeded:
      return "The service did not answer in time. Try again in a moment.";
    case Code.Aborted:
      return "The integration was changed in the meantime. Close this form, look at the new values, and try again.";
    default:
      return error.message;
  }
}
