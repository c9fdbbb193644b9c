"""Listen addresses, as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from uftrace_agent.config import ListenAddress, parse_listen_address


@pytest.mark.parametrize(
    ("text", "address", "target"),
    [
        (":50051", ListenAddress("", 50051), "[::]:50051"),
        ("127.0.0.1:0", ListenAddress("127.0.0.1", 0), "127.0.0.1:0"),
        ("web1", ListenAddress("web1", 50051), "web1:50051"),
        ("web1:99", ListenAddress("web1", 99), "web1:99"),
        ("[::1]:7", ListenAddress("::1", 7), "[::1]:7"),
        ("[::1]", ListenAddress("::1", 50051), "[::1]:50051"),
        ("unix:/run/a.sock", ListenAddress(path=Path("/run/a.sock")), "unix:/run/a.sock"),
    ],
)
def test_addresses(text, address, target):
    assert parse_listen_address(text) == address
    assert address.grpc_target == target


def test_a_relative_socket_path_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_listen_address("unix:a.sock").path == tmp_path / "a.sock"


@pytest.mark.parametrize(
    "text",
    ["", ":", "unix:", "::1", "::1:80", "[::1", "[::1]80", "[web]:80", "web:", "web:x", ":70000"],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parse_listen_address(text)


def test_the_bound_port_takes_the_place_of_zero():
    assert str(ListenAddress("127.0.0.1", 0).with_port(9)) == "127.0.0.1:9"
    unix = ListenAddress(path=Path("/a"))
    assert unix.with_port(9) == unix
