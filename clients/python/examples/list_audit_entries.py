"""Prints the newest audit entries of an organization: list_audit_entries.py ADDRESS ORGANIZATION."""

import sys

import siem_client
from siem_client import v1

address, organization = sys.argv[1:]
with siem_client.connect(address) as client:
    answer = client.list_audit_entries(v1.ListAuditEntriesRequest(organization_id=organization, page_size=10))
    for entry in answer.entries:
        print(f"{entry.time.ToJsonString()} {siem_client.enum_name(v1.AuditAction, entry.action)} by {entry.principal}")
