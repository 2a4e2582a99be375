"""Issues an external ID: generate_external_id.py ADDRESS ORGANIZATION."""

import sys

import siem_client
from siem_client import v1

address, organization = sys.argv[1:]
with siem_client.connect(address) as client:
    print(client.generate_external_id(v1.GenerateExternalIdRequest(organization_id=organization)).external_id)
