// Publishes one event in one call: publish.js ADDRESS ORGANIZATION

import { randomUUID } from "node:crypto";
import { connect, type EventInit, timestamp } from "@siem-relay/client";

const [address, organizationId = "acme"] = process.argv.slice(2);
const event: EventInit = {
  organizationId,
  networkId: "6f9619ff-8b86-4d01-b42d-00cf4fc964ff",
  deviceId: "7d444840-9dc0-41d1-b245-5ffdce74fad2",
  observedTime: timestamp(),
  eventId: randomUUID(),
  payload: {
    case: "idsDetection",
    value: { srcIp: "192.0.2.10", destIp: "198.51.100.7", signature: "example" },
  },
};
const client = connect({ address });
const answer = await client.publish({ events: [event] });
console.log(`${answer.accepted} accepted`);
for (const { field, message } of answer.rejections) {
  console.log(`${field}: ${message}`);
}
client.close();
