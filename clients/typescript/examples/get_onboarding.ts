// Writes the documents that a customer applies: get_onboarding.js ADDRESS STREAM_ARN ROLE_NAME EXTERNAL_ID

import { writeFile } from "node:fs/promises";
import { basename } from "node:path";
import { connect } from "@siem-relay/client";

const [address, stream = "", roleName = "", externalId = ""] = process.argv.slice(2);
const client = connect({ address });
const { documents } = await client.getOnboarding({ stream, roleName, externalId });
for (const { fileName, title, text } of documents) {
  await writeFile(basename(fileName), text);
  console.log(`${fileName}: ${title}`);
}
client.close();
