// Shows the latest changes of an organization's integration: list_audit_entries.js ADDRESS ORGANIZATION

import { connect, dateOf, enumName, v1 } from "@siem-relay/client";

const [address, organizationId = "acme"] = process.argv.slice(2);
const client = connect({ address });
const { entries } = await client.listAuditEntries({ organizationId, pageSize: 20 });
for (const { time, action, principal, changes } of entries) {
  console.log(dateOf(time)?.toISOString(), enumName(v1.AuditActionSchema, action), "by", principal);
  for (const { field, oldValue, newValue } of changes) {
    console.log(`  ${field}: ${oldValue} -> ${newValue}`);
  }
}
client.close();
