package examples;

import com.meter.siem.client.Messages;
import com.meter.siem.client.SiemClient;
import com.meter.siem.v1.Event;
import com.meter.siem.v1.IdsDetection;
import com.meter.siem.v1.PublishRequest;
import com.meter.siem.v1.PublishResponse;
import com.meter.siem.v1.Rejection;
import java.util.UUID;

/** Publishes one event in one call: ADDRESS ORGANIZATION. */
public final class Publish {
  private Publish() {}

  public static void main(String[] arguments) {
    Event event =
        Event.newBuilder()
            .setOrganizationId(arguments[1])
            .setNetworkId("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")
            .setDeviceId("7d444840-9dc0-41d1-b245-5ffdce74fad2")
            .setObservedTime(Messages.timestamp())
            .setEventId(UUID.randomUUID().toString())
            .setIdsDetection(
                IdsDetection.newBuilder()
                    .setSrcIp("192.0.2.10")
                    .setDestIp("198.51.100.7")
                    .setSignature("example"))
            .build();
    try (SiemClient client = SiemClient.connect(arguments[0])) {
      PublishResponse answer = client.publish(PublishRequest.newBuilder().addEvents(event).build());
      System.out.println(answer.getAccepted() + " accepted");
      for (Rejection rejection : answer.getRejectionsList()) {
        System.out.println(rejection.getField() + ": " + rejection.getMessage());
      }
    }
  }
}
