// Creates or replaces an integration: configure.js ADDRESS ORGANIZATION STREAM_ARN ROLE_ARN EXTERNAL_ID

import { connect, SiemError } from "@siem-relay/client";

const [address, organizationId = "acme", kinesisStreamArn = "", roleArn = "", externalId = ""] = process.argv.slice(2);
const client = connect({ address });
try {
  const answer = await client.configure({ organizationId, kinesisStreamArn, roleArn, externalId });
  console.log(`${answer.integration?.integrationId} etag ${answer.integration?.etag}`);
  for (const warning of answer.warnings) {
    console.log(`warning: ${warning}`);
  }
} catch (error) {
  if (!(error instanceof SiemError)) {
    throw error;
  }
  for (const { field, description } of error.violations) {
    console.error(`${field}: ${description}`);
  }
  console.error(String(error));
  process.exitCode = 1;
} finally {
  client.close();
}
