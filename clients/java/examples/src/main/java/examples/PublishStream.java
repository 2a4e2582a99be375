package examples;

import com.meter.siem.client.Messages;
import com.meter.siem.client.Publisher;
import com.meter.siem.client.SiemClient;
import com.meter.siem.client.UnacknowledgedException;
import com.meter.siem.v1.Event;
import com.meter.siem.v1.IdsDetection;
import java.time.Duration;

/** Publishes a number of events over PublishStream: ADDRESS ORGANIZATION COUNT. */
public final class PublishStream {
  private PublishStream() {}

  public static void main(String[] arguments) {
    int count = Integer.parseInt(arguments[2]);
    try (SiemClient client = SiemClient.connect(arguments[0]);
        Publisher publisher = client.publisher()) {
      for (int number = 0; number < count; number++) {
        Event event =
            Event.newBuilder()
                .setOrganizationId(arguments[1])
                .setNetworkId("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")
                .setDeviceId("7d444840-9dc0-41d1-b245-5ffdce74fad2")
                .setObservedTime(Messages.timestamp())
                .setIdsDetection(
                    IdsDetection.newBuilder()
                        .setSrcIp("192.0.2.10")
                        .setDestIp("198.51.100.7")
                        .setSignature("example " + number))
                .build();
        // Waits while too many are unanswered. The answers may be dropped: the statistics count them.
        publisher
            .send(event)
            .thenAccept(answer -> answer.rejection().ifPresent(rejection -> System.out.println(rejection.getMessage())));
      }
      publisher.flush(Duration.ofSeconds(60));
      System.out.println(publisher.stats().accepted() + " accepted");
    } catch (UnacknowledgedException error) {
      error.unacknowledged().forEach(event -> System.err.println("to be published again: " + event.getEventId()));
      throw error;
    }
  }
}
