"""Follows the statuses of all integrations: watch_status.py ADDRESS [RESUME_TOKEN]."""

import sys

import siem_client
from siem_client import v1

address, resume_token = sys.argv[1], "".join(sys.argv[2:])
with siem_client.connect(address) as client, client.watch_status(resume_token=resume_token) as watch:
    for event in watch:
        if isinstance(event, siem_client.StatusSnapshot):
            print(f"{len(event.statuses)} integrations")
        elif isinstance(event, v1.StatusCurrent):
            status = siem_client.status_of(event.status)
            print(event.organization_id, siem_client.enum_name(v1.Status, status), event.status.message)
        elif isinstance(event, v1.StatusDeleted):
            print(event.organization_id, "deleted")
        # A later run that is given this token continues here.
        print(f"resume token {watch.resume_token}", flush=True)
