package examples;

import com.meter.siem.client.Messages;
import com.meter.siem.client.SiemClient;
import com.meter.siem.v1.Integration;
import com.meter.siem.v1.ListRequest;
import com.meter.siem.v1.ListResponse;

/** Lists all integrations, page by page: ADDRESS. */
public final class List {
  private List() {}

  public static void main(String[] arguments) {
    try (SiemClient client = SiemClient.connect(arguments[0])) {
      ListRequest.Builder request = ListRequest.newBuilder().setPageSize(100);
      do {
        ListResponse page = client.list(request.build());
        for (Integration integration : page.getIntegrationsList()) {
          System.out.println(integration.getOrganizationId() + " " + Messages.statusOf(integration.getStatus()));
        }
        request.setPageToken(page.getNextPageToken());
      } while (!request.getPageToken().isEmpty());
    }
  }
}
