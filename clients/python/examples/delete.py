"""Removes an integration: delete.py ADDRESS ORGANIZATION."""

import sys

import siem_client
from siem_client import v1

address, organization = sys.argv[1:]
with siem_client.connect(address) as client:
    # With allow_missing the call may be repeated after a lost answer.
    answer = client.delete(v1.DeleteRequest(organization_id=organization, allow_missing=True))
    print(f"{answer.counts.delivered} events were delivered, {answer.counts.discarded} discarded")
