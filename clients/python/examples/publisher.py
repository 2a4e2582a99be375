"""Publishes many events over PublishStream: publisher.py ADDRESS ORGANIZATION COUNT."""

import sys

import siem_client
from siem_client import v1

address, organization, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with siem_client.connect(address) as client, client.publisher() as publisher:
    answers = []
    for number in range(count):
        event = v1.Event(
            organization_id=organization,
            network_id="6f9619ff-8b86-4d01-b42d-00cf4fc964ff",
            device_id="7d444840-9dc0-41d1-b245-5ffdce74fad2",
            observed_time=siem_client.timestamp(),
            ids_detection=v1.IdsDetection(src_ip="192.0.2.10", dest_ip="198.51.100.7", signature=f"example {number}"),
        )
        # Waits while too many are unanswered. The answers may be dropped: `stats` counts them.
        answers.append(publisher.send(event))
    try:
        publisher.flush(timeout=60)
    except siem_client.UnacknowledgedError as error:
        sys.exit(str(error))
    print(f"{publisher.stats.accepted} accepted")
    for number, answer in enumerate(answers):
        rejection = answer.result().rejection
        if rejection is not None:
            print(f"{number}: {rejection.field}: {rejection.message}")
