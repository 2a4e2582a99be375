// Shows an integration: get.js ADDRESS ORGANIZATION

import { connect, enumName, SiemError, statusOf, toJson, v1 } from "@siem-relay/client";

const [address, organizationId = "acme"] = process.argv.slice(2);
const client = connect({ address });
try {
  const { integration } = await client.get({ organizationId });
  console.log(enumName(v1.StatusSchema, statusOf(integration?.status)), integration?.status?.message);
  // 64-bit numbers are of the type bigint, which JSON.stringify refuses; toJson makes texts of them.
  console.log(`${integration?.counts?.delivered} of ${integration?.counts?.accepted} events delivered`);
  if (integration !== undefined) {
    console.log(JSON.stringify(toJson(integration)));
  }
} catch (error) {
  if (!(error instanceof SiemError && error.reason === v1.ErrorReason.INTEGRATION_NOT_FOUND)) {
    throw error;
  }
  console.error(`${organizationId} has no integration`);
  process.exitCode = 1;
} finally {
  client.close();
}
