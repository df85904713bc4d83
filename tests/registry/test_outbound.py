"""No address that a user names leads into this network."""

import socket
from collections.abc import Callable
from typing import Any

import pytest

from registry.outbound import ForbiddenUrl, is_public, parse, resolve

REFUSED = [
    "http://example.com/",
    "ftp://example.com/",
    "https://",
    "https://user:pass@example.com/",
    "https://user@example.com/",
    "https://example.com:22/",
    "https://example.com:80/",
    "https://example.com:99999/",
    "https://example.com/#fragment",
    "https://localhost/",
    "https://localhost./",
    "https://postgres/",
    "https://[::1/",
]
PRIVATE = [
    "127.0.0.1",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1%eth0",
    "fc00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "2001:db8::1",
]
# What resolvers make of these is 127.0.0.1, so that they must fail when resolved.
DISGUISED = ["https://2130706433/", "https://0x7f.0.0.1/", "https://0177.0.0.1/", "https://127.1/"]


@pytest.mark.parametrize("url", REFUSED)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ForbiddenUrl):
        parse(url, ())


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:4700::1111", "64:ff9b::5db8:d822"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", [a for a in PRIVATE if "%" not in a])
def test_a_literal_private_address_is_refused(address: str) -> None:
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(ForbiddenUrl):
        resolve(parse(f"https://{host}/", ()))


@pytest.mark.parametrize("url", DISGUISED)
def test_a_disguised_address_is_refused(url: str) -> None:
    with pytest.raises(ForbiddenUrl):
        resolve(parse(url, ()))


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets every name have these addresses."""

    def answer(*addresses: str) -> None:
        entries: list[Any] = [(0, 0, 0, "", (address, 443)) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)

    return answer


def test_one_private_address_among_public_ones_is_enough(resolver: Callable[..., None]) -> None:
    resolver("93.184.216.34", "127.0.0.1")
    with pytest.raises(ForbiddenUrl):
        resolve(parse("https://example.com/", ()))


def test_a_public_name_leads_to_its_address(resolver: Callable[..., None]) -> None:
    resolver("93.184.216.34")
    assert resolve(parse("https://example.com/hook?a=1", ())) == "93.184.216.34"


def test_an_operator_may_allow_one_host_and_port() -> None:
    allowed = ("127.0.0.1:8123",)
    assert parse("http://127.0.0.1:8123/x", allowed).private
    for url in ("http://127.0.0.1:8124/", "http://127.0.0.2:8123/", "http://127.0.0.1/"):
        with pytest.raises(ForbiddenUrl):
            parse(url, allowed)
