package examples;

import com.meter.siem.client.SiemClient;
import com.meter.siem.v1.DeleteRequest;
import com.meter.siem.v1.EventCounts;

/** Removes an integration: ADDRESS ORGANIZATION. */
public final class Delete {
  private Delete() {}

  public static void main(String[] arguments) {
    try (SiemClient client = SiemClient.connect(arguments[0])) {
      // With allow_missing the call may be repeated after a lost answer.
      DeleteRequest request =
          DeleteRequest.newBuilder().setOrganizationId(arguments[1]).setAllowMissing(true).build();
      EventCounts counts = client.delete(request).getCounts();
      System.out.println(counts.getDelivered() + " events were delivered, " + counts.getDiscarded() + " discarded");
    }
  }
}
