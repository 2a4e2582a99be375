"""Writes the documents that a customer applies: get_onboarding.py ADDRESS STREAM_ARN ROLE_NAME EXTERNAL_ID."""

import sys
from pathlib import Path

import siem_client
from siem_client import v1

address, stream, role, external_id = sys.argv[1:]
with siem_client.connect(address) as client:
    answer = client.get_onboarding(v1.GetOnboardingRequest(stream=stream, role_name=role, external_id=external_id))
    for document in answer.documents:
        Path(document.file_name).write_text(document.text)
        print(f"{document.file_name}: {document.title}")
