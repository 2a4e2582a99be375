package examples;

import com.meter.siem.client.SiemClient;
import com.meter.siem.client.SiemException;
import com.meter.siem.v1.ConfigureRequest;
import com.meter.siem.v1.ConfigureResponse;

/** Creates or replaces an integration: ADDRESS ORGANIZATION STREAM_ARN ROLE_ARN EXTERNAL_ID. */
public final class Configure {
  private Configure() {}

  public static void main(String[] arguments) {
    ConfigureRequest request =
        ConfigureRequest.newBuilder()
            .setOrganizationId(arguments[1])
            .setKinesisStreamArn(arguments[2])
            .setRoleArn(arguments[3])
            .setExternalId(arguments[4])
            .build();
    try (SiemClient client = SiemClient.connect(arguments[0])) {
      ConfigureResponse answer = client.configure(request);
      System.out.println(answer.getIntegration().getIntegrationId() + " etag " + answer.getIntegration().getEtag());
      answer.getWarningsList().forEach(warning -> System.out.println("warning: " + warning));
    } catch (SiemException error) {
      error.violations().forEach(violation -> System.err.println(violation.field() + ": " + violation.description()));
      throw error;
    }
  }
}
