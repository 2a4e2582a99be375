"""Publishes one event in one call: publish.py ADDRESS ORGANIZATION."""

import sys
import uuid

import siem_client
from siem_client import v1

address, organization = sys.argv[1:]
event = v1.Event(
    organization_id=organization,
    network_id="6f9619ff-8b86-4d01-b42d-00cf4fc964ff",
    device_id="7d444840-9dc0-41d1-b245-5ffdce74fad2",
    observed_time=siem_client.timestamp(),
    event_id=str(uuid.uuid4()),
    ids_detection=v1.IdsDetection(src_ip="192.0.2.10", dest_ip="198.51.100.7", signature="example"),
)
with siem_client.connect(address) as client:
    answer = client.publish(v1.PublishRequest(events=[event]))
    print(f"{answer.accepted} accepted")
    for rejection in answer.rejections:
        print(f"{rejection.field}: {rejection.message}")
