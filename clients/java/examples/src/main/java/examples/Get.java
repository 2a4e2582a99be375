package examples;

import com.meter.siem.client.Messages;
import com.meter.siem.client.SiemClient;
import com.meter.siem.client.SiemException;
import com.meter.siem.v1.ErrorReason;
import com.meter.siem.v1.GetRequest;
import com.meter.siem.v1.Integration;

/** Shows an integration: ADDRESS ORGANIZATION. */
public final class Get {
  private Get() {}

  public static void main(String[] arguments) {
    try (SiemClient client = SiemClient.connect(arguments[0])) {
      GetRequest request = GetRequest.newBuilder().setOrganizationId(arguments[1]).build();
      Integration integration = client.get(request).getIntegration();
      System.out.println(Messages.statusOf(integration.getStatus()) + " " + integration.getStatus().getMessage());
      System.out.println(
          integration.getCounts().getDelivered() + " of " + integration.getCounts().getAccepted() + " events delivered");
    } catch (SiemException error) {
      if (error.reason() != ErrorReason.ERROR_REASON_INTEGRATION_NOT_FOUND) {
        throw error;
      }
      System.out.println(arguments[1] + " has no integration");
    }
  }
}
