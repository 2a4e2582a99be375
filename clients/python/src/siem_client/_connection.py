"""Address, transport security and gRPC options of a connection."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from typing import Optional, Union
from urllib.parse import urlsplit

import grpc

from siem_client._errors import ConfigurationError

DEFAULT_ADDRESS = "http://127.0.0.1:50051"
VERSION = "0.1.0"

Pem = Union[bytes, str, "os.PathLike[str]"]


@dataclass(frozen=True)
class Tls:
    """Transport security.

    Each PEM is given as bytes, or as the path of a file, which is read once by `connect`.

    Attributes:
        ca: Certificates of the authorities to trust; `None` for those that gRPC brings along.
        certificate: Certificate chain of this client, for a server that asks for one.
        key: Private key of `certificate`.
        server_name: Name to expect in the server's certificate, if it is not the host of the address.
    """

    ca: Optional[Pem] = None
    certificate: Optional[Pem] = None
    key: Optional[Pem] = None
    server_name: Optional[str] = None

    def __repr__(self) -> str:
        return f"Tls(server_name={self.server_name!r})"


@dataclass(frozen=True)
class Endpoint:
    """A checked address.

    Attributes:
        target: Target of the gRPC channel.
        credentials: Channel credentials; `None` for plaintext.
        options: Options of the channel.
    """

    target: str
    credentials: Optional[grpc.ChannelCredentials]
    options: list[tuple[str, Union[int, str]]]


def _read(name: str, pem: Optional[Pem]) -> Optional[bytes]:
    if pem is None:
        return None
    content = pem
    if not isinstance(content, bytes):
        try:
            with open(content, "rb") as file:
                content = file.read()
        except OSError as error:
            raise ConfigurationError(f"tls.{name}: {error}") from None
    if b"-----BEGIN" not in content:
        raise ConfigurationError(f"tls.{name}: this is no PEM; convert DER with openssl")
    return content


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def endpoint(address: str, tls: Optional[Tls], has_token: bool) -> Endpoint:
    """Checks an address and what is to be sent there.

    Raises:
        ConfigurationError: The address is malformed, its scheme contradicts `tls`, or a token would be sent in
            clear to another machine.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = ("http" if tls is None else "https"), address
    if scheme not in ("http", "https"):
        raise ConfigurationError(f"address {address!r}: the scheme is {scheme!r}; use http or https")
    parts = urlsplit(f"//{rest}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"address {address!r}: {error}; use HOST:PORT") from None
    if not host or parts.path.rstrip("/") or parts.query or parts.fragment or parts.username is not None:
        raise ConfigurationError(f"address {address!r} is not of the form http://HOST:PORT or https://HOST:PORT")
    if port is None:
        port = 443 if scheme == "https" else 80
    if tls is not None and scheme == "http":
        raise ConfigurationError(f"address {address!r} is plaintext, but tls is given; use https")
    loopback = _is_loopback(host)
    if has_token and scheme == "http" and not loopback:
        raise ConfigurationError(
            f"address {address!r}: a token is not sent in clear to another machine; use https, or loopback"
        )
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    options: list[tuple[str, Union[int, str]]] = [
        ("grpc.primary_user_agent", f"siem-client-python/{VERSION}"),
        # One layer of retries, which is this package.
        ("grpc.enable_retries", 0),
        # A connection whose peer vanished ends after at most 40 s. Pings are sent only while a call is open.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
        # Pings that measure the bandwidth, of which the next keepalive ping would await the answer: 60 s by default.
        ("grpc.http2.ping_timeout_ms", 10_000),
        # The time to connect, and the waits after failures to connect.
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.max_receive_message_length", 16 << 20),
    ]
    if loopback:
        options.append(("grpc.enable_http_proxy", 0))
    if scheme == "http":
        return Endpoint(target, None, options)
    tls = tls or Tls()
    if (tls.certificate is None) != (tls.key is None):
        raise ConfigurationError("tls: certificate and key must be given together")
    if tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    credentials = grpc.ssl_channel_credentials(
        _read("ca", tls.ca), _read("key", tls.key), _read("certificate", tls.certificate)
    )
    return Endpoint(target, credentials, options)
