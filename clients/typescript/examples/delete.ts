// Removes an integration: delete.js ADDRESS ORGANIZATION

import { connect } from "@siem-relay/client";

const [address, organizationId = "acme"] = process.argv.slice(2);
const client = connect({ address });
// With allowMissing the call may be repeated after a lost answer.
const { counts } = await client.delete({ organizationId, allowMissing: true });
console.log(`${counts?.delivered ?? 0n} events were delivered, ${counts?.discarded ?? 0n} discarded`);
client.close();
