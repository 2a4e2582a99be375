package examples;

import com.meter.siem.client.SiemClient;
import com.meter.siem.v1.GetOnboardingRequest;
import com.meter.siem.v1.OnboardingDocument;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;

/** Writes the documents that a customer applies: ADDRESS STREAM_ARN ROLE_NAME EXTERNAL_ID PRINCIPAL DIRECTORY. */
public final class GetOnboarding {
  private GetOnboarding() {}

  public static void main(String[] arguments) throws IOException {
    GetOnboardingRequest request =
        GetOnboardingRequest.newBuilder()
            .setStream(arguments[1])
            .setRoleName(arguments[2])
            .setExternalId(arguments[3])
            .setPrincipal(arguments[4])
            .build();
    try (SiemClient client = SiemClient.connect(arguments[0])) {
      for (OnboardingDocument document : client.getOnboarding(request).getDocumentsList()) {
        Files.writeString(Path.of(arguments[5], document.getFileName()), document.getText());
        System.out.println(document.getFileName() + ": " + document.getTitle());
      }
    }
  }
}
