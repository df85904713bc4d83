"""Calling an address that a user named, without becoming their way into this network.

The name is resolved once, every address it has must be public, and the connection goes to one of
those; no redirect is followed, and little of the answer is read.
"""

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from registry.errors import RegistryError

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 10.0
_MAX_ANSWER_BYTES = 65_536
_PORTS = frozenset({443, 8443})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class ForbiddenUrl(RegistryError):
    """The address, written in the field `param`, may not be called."""

    code = "url_forbidden"

    def __init__(self, message: str, *, param: str = "url") -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class Place:
    """Where a URL leads; `private` when an operator has allowed that host and port."""

    parts: SplitResult
    host: str
    port: int
    private: bool

    @property
    def target(self) -> str:
        """What follows the method in the request."""
        return (self.parts.path or "/") + (f"?{self.parts.query}" if self.parts.query else "")


def parse(url: str, private_hosts: Collection[str], param: str = "url") -> Place:
    """Check what can be checked without asking anyone.

    `private_hosts` are `host:port` pairs that may be called though not public, by plain http too.

    Raises:
        ForbiddenUrl: not https, another port, a user in it, or an address that is not public.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ForbiddenUrl(f"{url!r} is not a URL", param=param) from error
    port = port or (443 if parts.scheme == "https" else 80)
    private = f"{host}:{port}" in private_hosts
    if parts.scheme != "https" and not (private and parts.scheme == "http"):
        raise ForbiddenUrl("only https:// addresses are called", param=param)
    if not host or parts.username is not None or parts.password is not None or parts.fragment:
        raise ForbiddenUrl("the address needs a host, and no user or fragment", param=param)
    if not private and port not in _PORTS:
        raise ForbiddenUrl(f"only the ports {sorted(_PORTS)} are called", param=param)
    if not private and "." not in host.rstrip(".") and ":" not in host:
        raise ForbiddenUrl(f"{host!r} is no public name", param=param)
    return Place(parts=parts, host=host, port=port, private=private)


def resolve(place: Place) -> str:
    """One address of the host, after a look at all of them.

    Raises:
        ForbiddenUrl: it has none, or one that is not public.
    """
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ForbiddenUrl(f"{place.host} cannot be resolved") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not place.private and not all(map(is_public, addresses)):
        raise ForbiddenUrl(f"{place.host} has an address that is not public")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address, also one wrapped into another, is reachable for everyone."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        wrapped = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if wrapped is None and ip in _NAT64:
            wrapped = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if wrapped is not None:
            return is_public(str(wrapped))
    return ip.is_global and not ip.is_multicast


def post(place: Place, body: bytes, headers: Mapping[str, str]) -> int:
    """The status of the answer.

    Raises:
        ForbiddenUrl: the host has an address that is not public.
        OSError, http.client.HTTPException: nobody answered in time, or not in HTTP.
    """
    address = resolve(place)
    connection = _connect(place, address)
    try:
        deadline = time.monotonic() + ANSWER_SECONDS
        connection.request("POST", place.target, body, dict(headers))
        response = connection.getresponse()
        left = _MAX_ANSWER_BYTES
        while left > 0 and time.monotonic() < deadline and (piece := response.read1(left)):
            left -= len(piece)
        return response.status
    finally:
        connection.close()


def _connect(place: Place, address: str) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(place.host, place.port, timeout=ANSWER_SECONDS)
    sock = socket.create_connection((address, place.port), CONNECT_SECONDS)
    sock.settimeout(ANSWER_SECONDS)
    if place.parts.scheme == "https":
        try:
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=place.host)
        except BaseException:
            sock.close()
            raise
    connection.sock = sock
    return connection
