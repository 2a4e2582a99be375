package examples;

import com.meter.siem.client.Messages;
import com.meter.siem.client.SiemClient;
import com.meter.siem.v1.Check;
import com.meter.siem.v1.CheckName;
import com.meter.siem.v1.CheckResult;
import com.meter.siem.v1.SendTestRequest;
import com.meter.siem.v1.SendTestResponse;

/** Writes a test event: ADDRESS ORGANIZATION. */
public final class SendTest {
  private SendTest() {}

  public static void main(String[] arguments) {
    try (SiemClient client = SiemClient.connect(arguments[0])) {
      SendTestRequest request = SendTestRequest.newBuilder().setOrganizationId(arguments[1]).build();
      SendTestResponse verdict = client.sendTest(request);
      for (Check check : verdict.getChecksList()) {
        String name = Messages.enumName(CheckName::forNumber, check.getNameValue());
        String result = Messages.enumName(CheckResult::forNumber, check.getResultValue());
        System.out.println(name + " " + result + " " + check.getRemedy());
      }
      System.out.println(verdict.getDelivered() ? "delivered" : verdict.getMessage());
    }
  }
}
