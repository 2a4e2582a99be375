"""Lists all integrations, page by page: list.py ADDRESS."""

import sys

import siem_client
from siem_client import v1

with siem_client.connect(sys.argv[1]) as client:
    request = v1.ListRequest(page_size=100)
    while True:
        page = client.list(request)
        for integration in page.integrations:
            status = siem_client.status_of(integration.status)
            print(integration.organization_id, siem_client.enum_name(v1.Status, status))
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
