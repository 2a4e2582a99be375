// Lists all integrations, page by page: list.js ADDRESS

import { connect, enumName, statusOf, v1 } from "@siem-relay/client";

const client = connect({ address: process.argv[2] });
let pageToken = "";
do {
  const page = await client.list({ pageSize: 100, pageToken });
  for (const { organizationId, status } of page.integrations) {
    console.log(organizationId, enumName(v1.StatusSchema, statusOf(status)));
  }
  pageToken = page.nextPageToken;
} while (pageToken !== "");
client.close();
