// Writes a test event: send_test.js ADDRESS ORGANIZATION

import { connect, enumName, v1 } from "@siem-relay/client";

const [address, organizationId = "acme"] = process.argv.slice(2);
const client = connect({ address });
const verdict = await client.sendTest({ organizationId });
for (const { name, result, remedy } of verdict.checks) {
  console.log(enumName(v1.CheckNameSchema, name), enumName(v1.CheckResultSchema, result), remedy);
}
if (!verdict.delivered) {
  console.error(verdict.message);
  process.exitCode = 1;
}
client.close();
