"""The server under test as a process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc
from harness import Failure, Process, binary, clean_environment, free_port


def healthy(address: str) -> bool:
    """Returns whether grpc.health.v1 says SERVING for the whole server."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check", lambda request: request, lambda answer: answer)
        try:
            # A HealthCheckResponse with status SERVING.
            return bool(check(b"", timeout=5) == b"\x08\x01")
        except grpc.RpcError:
            return False


class Relay(Process):
    """`siem-relay serve` on loopback, on a free port unless an address is given.

    `launcher` is a command that executes the one behind it.
    """

    def __init__(
        self,
        directory: Path,
        aws: Mapping[str, str],
        *flags: str | Path,
        address: str | None = None,
        launcher: Sequence[str] = (),
    ) -> None:
        self.address = address or f"127.0.0.1:{free_port()}"
        super().__init__(
            [*launcher, binary(), "serve", "--listen", self.address, "--data-dir", directory / "data", *flags],
            directory / "serve.log",
            clean_environment(**aws),
            lambda: healthy(self.address),
        )

    def expect_alive(self) -> None:
        """Fails unless the process runs and health says SERVING."""
        self.expect_running()
        if not healthy(self.address):
            raise Failure("the server no longer says SERVING")
