"""The service config for generated stubs, applied by gRPC's own retries."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import grpc
import pytest
from conftest import ROOT
from fake import Fake

from siem_client import v1
from siem_client.v1 import event_pb2, integration_pb2
from siem_client.v1.integration_pb2_grpc import SiemIntegrationServiceStub

CONFIG = (ROOT / "proto/service_config.json").read_text()
UNAVAILABLE = {"error": {"code": "UNAVAILABLE"}}


@pytest.fixture
def stub(fake: Fake) -> Iterator[SiemIntegrationServiceStub]:
    options = [("grpc.service_config", CONFIG), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(f"127.0.0.1:{fake.port}", options=options) as channel:
        yield SiemIntegrationServiceStub(channel)


def test_every_unary_rpc_is_in_it_once() -> None:
    names = [name for method in json.loads(CONFIG)["methodConfig"] for name in method["name"]]
    unary = []
    for file in (event_pb2, integration_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                streams = method.client_streaming or method.server_streaming
                if not streams:
                    unary.append({"service": service.full_name, "method": method.name})
    key = lambda name: (name["service"], name["method"])  # noqa: E731
    assert sorted(names, key=key) == sorted(unary, key=key)


def test_reads_are_tried_again(fake: Fake, stub: SiemIntegrationServiceStub) -> None:
    fake.plan("Get", [UNAVAILABLE, UNAVAILABLE, {"message": {"integration": {"organization_id": "acme"}}}])
    assert stub.Get(v1.GetRequest(organization_id="acme")).integration.organization_id == "acme"
    assert len(fake.seen("Get")) == 3


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "INTERNAL"])
def test_other_failures_are_final(fake: Fake, stub: SiemIntegrationServiceStub, code: str) -> None:
    fake.plan("Get", [{"error": {"code": code, "retry_after": 0.01}}])
    with pytest.raises(grpc.RpcError):
        stub.Get(v1.GetRequest(organization_id="acme"))
    assert len(fake.seen("Get")) == 1


def test_writes_are_not_tried_again(fake: Fake, stub: SiemIntegrationServiceStub) -> None:
    calls: dict[str, Callable[[], object]] = {
        "Configure": lambda: stub.Configure(v1.ConfigureRequest(organization_id="acme")),
        "Delete": lambda: stub.Delete(v1.DeleteRequest(organization_id="acme")),
        "GenerateExternalId": lambda: stub.GenerateExternalId(v1.GenerateExternalIdRequest(organization_id="acme")),
        "SendTest": lambda: stub.SendTest(v1.SendTestRequest(organization_id="acme")),
    }
    for name, call in calls.items():
        fake.plan(name, [UNAVAILABLE])
        with pytest.raises(grpc.RpcError):
            call()
        assert len(fake.seen(name)) == 1, name
