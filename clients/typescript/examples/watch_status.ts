// Follows the statuses of all integrations: watch_status.js ADDRESS [RESUME_TOKEN]

import { connect, enumName, statusOf, v1 } from "@siem-relay/client";

const [address, resumeToken] = process.argv.slice(2);
const client = connect({ address });
const watch = client.watchStatus({ resumeToken });
for await (const event of watch) {
  if (event.kind === "snapshot") {
    console.log(`${event.statuses.size} integrations`);
  } else if (event.kind === "current") {
    const { status } = event.current;
    console.log(event.organizationId, enumName(v1.StatusSchema, statusOf(status)), status?.message);
  } else {
    console.log(event.organizationId, event.kind);
  }
  // A later run that is given this token continues here.
  console.log(`resume token ${watch.resumeToken}`);
}
