// Publishes many events over PublishStream: publisher.js ADDRESS ORGANIZATION COUNT

import { connect, type Sent, timestamp, UnacknowledgedError } from "@siem-relay/client";

const [address, organizationId = "acme", count] = process.argv.slice(2);
const client = connect({ address });
const publisher = client.publisher();
const sent: Sent[] = [];
for (let number = 0; number < Number(count); number += 1) {
  // Waits while too many are unanswered. The answers may be dropped: `stats` counts them.
  sent.push(
    await publisher.send({
      organizationId,
      networkId: "6f9619ff-8b86-4d01-b42d-00cf4fc964ff",
      deviceId: "7d444840-9dc0-41d1-b245-5ffdce74fad2",
      observedTime: timestamp(),
      payload: {
        case: "idsDetection",
        value: { srcIp: "192.0.2.10", destIp: "198.51.100.7", signature: `example ${number}` },
      },
    }),
  );
}
try {
  await publisher.close(60_000);
  for (const [number, { answer }] of sent.entries()) {
    const { rejection } = await answer;
    if (rejection !== undefined) {
      console.log(`${number}: ${rejection.field}: ${rejection.message}`);
    }
  }
} catch (error) {
  if (!(error instanceof UnacknowledgedError)) {
    throw error;
  }
  console.error(error.message);
  process.exitCode = 1;
} finally {
  console.log(`${publisher.stats.accepted} accepted`);
  client.close();
}
