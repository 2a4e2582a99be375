// Measures the publisher: `bench.js ADDRESS EVENTS`, against a server with the integration `acme`. Prints the throughput
// from the first `send` to the last answer, and the growth of the peak of this process's memory.

import { connect, type EventInit, timestamp } from "@siem-relay/client";

const [address, count] = process.argv.slice(2);
const total = Number(count);

function uuid(number: number): string {
  return `00000000-0000-0000-0000-${String(number).padStart(12, "0")}`;
}

// Returns a detection of about 300 bytes.
function event(number: number): EventInit {
  return {
    organizationId: "acme",
    networkId: uuid(0),
    deviceId: uuid(number % 100),
    observedTime: timestamp(),
    payload: {
      case: "idsDetection",
      value: {
        srcIp: "192.0.2.7",
        srcPort: 1024 + (number % 60_000),
        destIp: "198.51.100.80",
        destPort: 443,
        proto: "TCP",
        appProto: "tls",
        signatureId: number,
        signature: `detection ${number}`,
        category: "Misc activity",
        severity: 3,
        contextJson: '{"tls":{"sni":"www.example.com","version":"TLS 1.3"}}',
      },
    },
  };
}

const client = connect({ address });
await client.get({ organizationId: "acme" });
const before = process.resourceUsage();
const began = performance.now();
const publisher = client.publisher();
for (let number = 0; number < total; number += 1) {
  await publisher.send(event(number));
}
await publisher.close(600_000);
const seconds = (performance.now() - began) / 1000;
const after = process.resourceUsage();
client.close();
const cpu = (after.userCPUTime + after.systemCPUTime - before.userCPUTime - before.systemCPUTime) / 1e6;
console.log(publisher.stats);
console.log(
  `${total} events in ${seconds.toFixed(1)} s, ${Math.round(total / seconds)} events/s, ${cpu.toFixed(1)} s of CPU,` +
    ` ${Math.round((after.maxRSS - before.maxRSS) / 1024)} MiB more memory`,
);
