// Shows the statuses of a page's own server in a list, `<ul id="statuses">`, and whether they are current.

import { connect, enumName, statusOf, v1 } from "@siem-relay/client/browser";

const client = connect();
const list = document.getElementById("statuses");
let statuses = new Map<string, v1.StatusCurrent>();
const watch = client.watchStatus({
  onConnection: (isOpen) => list?.classList.toggle("stale", !isOpen),
});
for await (const event of watch) {
  if (event.kind === "snapshot") {
    statuses = new Map(event.statuses);
  } else if (event.kind === "current") {
    statuses.set(event.organizationId, event.current);
  } else {
    statuses.delete(event.organizationId);
  }
  list?.replaceChildren(
    ...[...statuses].map(([organizationId, { status }]) => {
      const item = document.createElement("li");
      item.textContent = `${organizationId}: ${enumName(v1.StatusSchema, statusOf(status))}`;
      return item;
    }),
  );
}
