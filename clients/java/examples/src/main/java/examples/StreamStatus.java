package examples;

import com.meter.siem.client.Messages;
import com.meter.siem.client.SiemClient;
import com.meter.siem.client.StatusEvent;
import com.meter.siem.client.StatusWatch;
import com.meter.siem.v1.IntegrationStatus;
import java.util.List;

/** Follows the statuses of all integrations: ADDRESS [RESUME_TOKEN]. */
public final class StreamStatus {
  private StreamStatus() {}

  public static void main(String[] arguments) {
    String resumeToken = arguments.length > 1 ? arguments[1] : "";
    try (SiemClient client = SiemClient.connect(arguments[0]);
        StatusWatch watch = client.watchStatus(List.of(), resumeToken)) {
      while (watch.hasNext()) {
        StatusEvent event = watch.next();
        switch (event.kind()) {
          case SNAPSHOT:
            System.out.println(event.snapshot().statuses().size() + " integrations");
            break;
          case CURRENT:
            IntegrationStatus status = event.current().getStatus();
            System.out.println(
                event.current().getOrganizationId() + " " + Messages.statusOf(status) + " " + status.getMessage());
            break;
          case DELETED:
            System.out.println(event.deleted().getOrganizationId() + " deleted");
            break;
          default:
            // Organizations without integration, and kinds that are newer than this program.
        }
        // A later run that is given this token continues here.
        System.out.println("resume token " + watch.resumeToken());
      }
    }
  }
}
