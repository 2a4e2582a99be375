"""Writes a test event: send_test.py ADDRESS ORGANIZATION."""

import sys

import siem_client
from siem_client import v1

address, organization = sys.argv[1:]
with siem_client.connect(address) as client:
    verdict = client.send_test(v1.SendTestRequest(organization_id=organization))
    for check in verdict.checks:
        name = siem_client.enum_name(v1.CheckName, check.name)
        print(name, siem_client.enum_name(v1.CheckResult, check.result), check.remedy)
    sys.exit(None if verdict.delivered else verdict.message)
