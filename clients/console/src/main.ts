// The page "Services": the card of one organization's SIEM integration, and the list of all.

import { type SiemError } from "@siem-relay/client/browser";
import { Card } from "./card.ts";
import { h, setText } from "./dom.ts";
import { Drawer } from "./drawer.ts";
import { List } from "./list.ts";
import { describe, notices, notify } from "./notices.ts";
import { type Connection, Session } from "./session.ts";

const connectionTexts: Record<Connection, string> = {
  connecting: "Connecting…",
  open: "Live",
  broken: "Connection lost. Reconnecting…",
  refused: "Not signed in, or no right to read",
  paused: "Paused while this page is hidden",
};

let templateUrl: string | undefined;
let isFirst = true;

const connection = h("p", { className: "connection", attrs: { role: "status" } }, connectionTexts.connecting);

const session = new Session({
  statuses: (organizationId) => {
    list.update(session.statuses, session.isComplete);
    const [only] = session.statuses.keys();
    if (isFirst && organizationId === undefined) {
      isFirst = false;
      if (chosen() === "" && session.statuses.size === 1 && only !== undefined) {
        choose(only);
      }
    }
    if (organizationId === undefined || organizationId === chosen()) {
      card.statusChanged();
    }
  },
  connection: (state) => {
    setText(connection, connectionTexts[state]);
    connection.dataset["state"] = state;
  },
  tokenNeeded: askForToken,
  refused: (error) => notify("failure", `The statuses are not shown: ${describe(error)}`),
});
const drawer = new Drawer(
  session,
  () => templateUrl,
  (integration) => {
    card.saved(integration);
    choose(integration.organizationId);
  },
);
const card = new Card(session, drawer, askForToken);
const list = new List(choose);

// The organization is in the address of the page, so that a link leads to its card.
function chosen(): string {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

function choose(organizationId: string): void {
  location.hash = encodeURIComponent(organizationId);
}

function show(): void {
  organization.value = chosen();
  card.show(chosen());
  list.select(chosen());
}

// Signing in.
const token = h("input", { id: "token", type: "password", autocomplete: "off", spellcheck: false });
const tokenProblem = h("p", { className: "error", attrs: { role: "alert" } });
const signIn = h(
  "form",
  { noValidate: true },
  h("div", { className: "field" }, h("label", { htmlFor: "token" }, "Token"), token),
  h("p", { className: "hint" }, "The page keeps it in memory only: it is forgotten when the page is closed or loaded again."),
  tokenProblem,
  h("div", { className: "buttons end" }, h("button", { type: "submit", className: "primary" }, "Sign in")),
);
const signInDialog = h("dialog", { attrs: { "aria-labelledby": "sign-in-title" } }, h("h2", { id: "sign-in-title" }, "Sign in"), signIn);
let hasToken = false;

function askForToken(error: SiemError): void {
  if (signInDialog.open) {
    return;
  }
  token.value = "";
  tokenProblem.textContent = hasToken ? `The token was refused; it may have expired. Paste a new one. (${error.message})` : "";
  signInDialog.showModal();
}

signInDialog.addEventListener("cancel", (event) => event.preventDefault());
signIn.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = token.value.trim().replace(/^Bearer\s+/i, "");
  if (text === "") {
    tokenProblem.textContent = "Paste a token.";
    return;
  }
  try {
    session.signIn(text);
  } catch (error) {
    tokenProblem.textContent = describe(error);
    return;
  }
  hasToken = true;
  token.value = "";
  signInDialog.close();
});

// The page.
const organization = h("input", { id: "organization", autocomplete: "off", spellcheck: false });
const picker = h(
  "form",
  { className: "picker" },
  h("label", { htmlFor: "organization" }, "Organization"),
  organization,
  h("button", { type: "submit" }, "Open"),
);
picker.addEventListener("submit", (event) => {
  event.preventDefault();
  choose(organization.value.trim());
});
addEventListener("hashchange", show);

async function loadSettings(): Promise<void> {
  try {
    const settings = (await (await fetch("settings.json")).json()) as { templateUrl?: string | null };
    templateUrl = settings.templateUrl ?? undefined;
  } catch {
    // Without them there is no link to CloudFormation; everything else works.
  }
}

document.body.append(
  h("header", {}, h("h1", {}, "Services"), picker, connection),
  h("main", {}, card.element, list.element),
  drawer.element,
  card.confirmation,
  signInDialog,
  notices,
);
show();
void loadSettings();
session.start();
