package examples;

import com.meter.siem.client.Messages;
import com.meter.siem.client.SiemClient;
import com.meter.siem.v1.AuditAction;
import com.meter.siem.v1.AuditEntry;
import com.meter.siem.v1.ListAuditEntriesRequest;
import com.meter.siem.v1.ListAuditEntriesResponse;

/** Shows the audit of an organization, newest entries first: ADDRESS ORGANIZATION. */
public final class ListAuditEntries {
  private ListAuditEntries() {}

  public static void main(String[] arguments) {
    try (SiemClient client = SiemClient.connect(arguments[0])) {
      ListAuditEntriesRequest.Builder request =
          ListAuditEntriesRequest.newBuilder().setOrganizationId(arguments[1]);
      do {
        ListAuditEntriesResponse page = client.listAuditEntries(request.build());
        for (AuditEntry entry : page.getEntriesList()) {
          // An action that is newer than this program is a number.
          String action = Messages.enumName(AuditAction::forNumber, entry.getActionValue());
          System.out.println(action + " by " + entry.getPrincipal() + ": " + entry.getCode());
        }
        request.setPageToken(page.getNextPageToken());
      } while (!request.getPageToken().isEmpty());
    }
  }
}
