"""Creates or replaces an integration: configure.py ADDRESS ORGANIZATION STREAM_ARN ROLE_ARN EXTERNAL_ID."""

import sys

import siem_client
from siem_client import v1

address, organization, stream, role, external_id = sys.argv[1:]
request = v1.ConfigureRequest(
    organization_id=organization, kinesis_stream_arn=stream, role_arn=role, external_id=external_id
)
with siem_client.connect(address) as client:
    try:
        answer = client.configure(request)
    except siem_client.SiemError as error:
        for violation in error.violations:
            print(f"{violation.field}: {violation.description}", file=sys.stderr)
        sys.exit(str(error))
    print(f"{answer.integration.integration_id} etag {answer.integration.etag}")
    for warning in answer.warnings:
        print(f"warning: {warning}")
