"""Shows an integration: get.py ADDRESS ORGANIZATION."""

import sys

import siem_client
from siem_client import v1

address, organization = sys.argv[1:]
with siem_client.connect(address) as client:
    try:
        integration = client.get(v1.GetRequest(organization_id=organization)).integration
    except siem_client.SiemError as error:
        if error.reason == v1.ERROR_REASON_INTEGRATION_NOT_FOUND:
            sys.exit(f"{organization} has no integration")
        raise
    status = siem_client.status_of(integration.status)
    print(siem_client.enum_name(v1.Status, status), integration.status.message)
    print(f"{integration.counts.delivered} of {integration.counts.accepted} events delivered")
