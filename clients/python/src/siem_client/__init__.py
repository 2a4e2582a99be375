"""Client of the `siem.v1` API of siem-relay.

    import siem_client
    from siem_client import v1

    with siem_client.connect("http://127.0.0.1:50051") as client:
        print(client.get(v1.GetRequest(organization_id="acme")).integration)

`connect` returns a client for threads, `siem_client.aio.connect` one for asyncio. The messages and enums are in
`siem_client.v1`.
"""

from siem_client._client import Client, StatusWatch, connect
from siem_client._connection import DEFAULT_ADDRESS, Tls
from siem_client._connection import VERSION as __version__
from siem_client._messages import enum_name, status_of, timestamp
from siem_client._errors import (
    ClosedError,
    ConfigurationError,
    ForkedError,
    SiemError,
    UnacknowledgedError,
    Violation,
    WrongLoopError,
)
from siem_client._publish_core import Outcome, PublisherOptions, PublisherStats, PublishResult
from siem_client._publisher import Publisher
from siem_client._retry import RetryOptions
from siem_client._tokens import Token, TokenFile
from siem_client._watch import StatusEvent, StatusSnapshot

__all__ = [
    "DEFAULT_ADDRESS",
    "Client",
    "ClosedError",
    "ConfigurationError",
    "ForkedError",
    "Outcome",
    "PublishResult",
    "Publisher",
    "PublisherOptions",
    "PublisherStats",
    "RetryOptions",
    "SiemError",
    "StatusEvent",
    "StatusSnapshot",
    "StatusWatch",
    "Tls",
    "Token",
    "TokenFile",
    "UnacknowledgedError",
    "Violation",
    "WrongLoopError",
    "__version__",
    "connect",
    "enum_name",
    "status_of",
    "timestamp",
]
