package examples;

import com.meter.siem.client.SiemClient;
import com.meter.siem.v1.GenerateExternalIdRequest;

/** Issues an external ID: ADDRESS ORGANIZATION. */
public final class GenerateExternalId {
  private GenerateExternalId() {}

  public static void main(String[] arguments) {
    try (SiemClient client = SiemClient.connect(arguments[0])) {
      GenerateExternalIdRequest request =
          GenerateExternalIdRequest.newBuilder().setOrganizationId(arguments[1]).build();
      System.out.println(client.generateExternalId(request).getExternalId());
    }
  }
}
