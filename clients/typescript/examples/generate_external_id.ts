// Issues an external ID: generate_external_id.js ADDRESS ORGANIZATION

import { connect } from "@siem-relay/client";

const [address, organizationId = "acme"] = process.argv.slice(2);
const client = connect({ address });
console.log((await client.generateExternalId({ organizationId })).externalId);
client.close();
