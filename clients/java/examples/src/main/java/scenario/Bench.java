package scenario;

import com.meter.siem.client.Messages;
import com.meter.siem.client.Publisher;
import com.meter.siem.client.SiemClient;
import com.meter.siem.v1.Event;
import com.meter.siem.v1.IdsDetection;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.UUID;

/**
 * Measures the publisher: ADDRESS EVENTS, against a server with the integration {@code acme}.
 *
 * <p>Prints the throughput from the first event to the last answer, and the peak of this process's memory (on Linux).
 */
public final class Bench {
  private Bench() {}

  public static void main(String[] arguments) throws IOException {
    int total = Integer.parseInt(arguments[1]);
    long began = System.nanoTime();
    try (SiemClient client = SiemClient.connect(arguments[0]);
        Publisher publisher = client.publisher()) {
      for (int number = 0; number < total; number++) {
        publisher.send(event(number));
      }
      publisher.flush();
      System.out.println(publisher.stats());
    }
    double seconds = (System.nanoTime() - began) / 1e9;
    double cpu = ProcessHandle.current().info().totalCpuDuration().orElse(Duration.ZERO).toMillis() / 1e3;
    System.out.printf(
        "%d events in %.1f s, %,.0f events/s, %.1f s of CPU with the start of the JVM%n", total, seconds, total / seconds, cpu);
    Path status = Path.of("/proc/self/status");
    if (Files.exists(status)) {
      Files.readAllLines(status).stream().filter(line -> line.startsWith("VmHWM")).forEach(System.out::println);
    }
  }

  /** Returns a detection of about 300 bytes. */
  private static Event event(int number) {
    return Event.newBuilder()
        .setOrganizationId("acme")
        .setNetworkId(new UUID(0, 0).toString())
        .setDeviceId(new UUID(0, number % 100).toString())
        .setObservedTime(Messages.timestamp())
        .setIdsDetection(
            IdsDetection.newBuilder()
                .setSrcIp("192.0.2.7")
                .setSrcPort(1024 + number % 60_000)
                .setDestIp("198.51.100.80")
                .setDestPort(443)
                .setProto("TCP")
                .setAppProto("tls")
                .setSignatureId(number)
                .setSignature("detection " + number)
                .setCategory("Misc activity")
                .setSeverity(3)
                .setContextJson("{\"tls\":{\"sni\":\"www.example.com\",\"version\":\"TLS 1.3\"}}"))
        .build();
  }
}
