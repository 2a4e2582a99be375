"""The server under test as a process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import grpc
from harness import Failure, Process, binary, clean_environment, free_port


def healthy(address: str) -> bool:
    """Returns whether grpc.health.v1 says SERVING for the whole server."""
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address, options=options) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check", lambda request: request, lambda answer: answer)
        try:
            # A HealthCheckResponse with status SERVING.
            return bool(check(b"", timeout=5) == b"\x08\x01")
        except grpc.RpcError:
            return False


class Relay(Process):
    """`siem-relay serve` on a free port of loopback."""

    def __init__(self, directory: Path, aws: Mapping[str, str], *flags: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        super().__init__(
            [binary(), "serve", "--listen", self.address, "--data-dir", directory / "data", *flags],
            directory / "serve.log",
            clean_environment(**aws),
            lambda: healthy(self.address),
        )

    def expect_alive(self) -> None:
        """Fails unless the process runs and health says SERVING."""
        self.expect_running()
        if not healthy(self.address):
            raise Failure("the server no longer says SERVING")
