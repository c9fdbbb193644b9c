"""Inventories in real files: what they say, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from uftrace_remote.endpoint import Endpoint
from uftrace_remote.errors import UsageError
from uftrace_remote.fleet.address import Host
from uftrace_remote.fleet.inventory import CommandSource, DnsSource, FileSource, Inventory
from uftrace_remote.fleet.inventory_file import load_inventory

GOOD = """
[dns]
servers = ["127.0.0.1:5353", "[::1]"]
timeout = 2

[groups.web]
hosts = ["web[1-2]", "web9:7"]
port = 50060
state_dir = "certs/web"

[groups.pods]
kubernetes = "agent.tracing"

[groups.listed]
hosts_file = "hosts"

[groups.asked]
command = ["printf", "a"]
timeout = 3

[groups.prod]
children = ["web", "pods", "listed"]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "inventory.toml"
    path.write_text(text)
    return path


def test_an_inventory(tmp_path):
    found = load_inventory(write(tmp_path, GOOD))
    web = found.groups["web"]
    assert web.hosts == (
        Host(Endpoint("web1"), False),
        Host(Endpoint("web2"), False),
        Host(Endpoint("web9", 7)),
    )
    assert (web.port, web.state_directory) == (50060, tmp_path / "certs" / "web")
    assert found.groups["pods"].source == DnsSource("kubernetes", "agent.tracing")
    assert found.groups["listed"].source == FileSource(tmp_path / "hosts")
    assert found.groups["asked"].source == CommandSource(("printf", "a"), 3)
    assert found.dns.servers == (("127.0.0.1", 5353), ("::1", 53))
    assert [each.name for each in found.members("prod")] == ["prod", "web", "pods", "listed"]
    assert sorted(each.name for each in found.members("all")) == sorted(found.groups)


def test_where_it_lies(tmp_path):
    path = tmp_path / "uftrace-remote" / "inventory.toml"
    assert load_inventory(None, {"XDG_CONFIG_HOME": str(tmp_path)}) == Inventory()
    path.parent.mkdir()
    path.write_text("[groups.a]\n")
    assert load_inventory(None, {"XDG_CONFIG_HOME": str(tmp_path)}).path == path
    other = write(tmp_path, "[groups.b]\n")
    named = {"XDG_CONFIG_HOME": str(tmp_path), "UFTRACE_INVENTORY": str(other)}
    assert list(load_inventory(None, named).groups) == ["b"]
    with pytest.raises(UsageError, match="cannot read the inventory") as caught:
        load_inventory(None, {"UFTRACE_INVENTORY": str(tmp_path / "none")})
    assert caught.value.reason == "INVENTORY_UNREADABLE"


@pytest.mark.parametrize(
    ("text", "key", "what", "hint"),
    [
        ("groups = 1", "groups", "it is no table", "[groups]"),
        ("[group.a]", "group", "no such key", "did you mean groups"),
        ("[groups.a]\nhost = []", "groups.a.host", "no such key", "did you mean hosts"),
        ("[groups.a]\nhosts = 'x'", "groups.a.hosts", "no list of texts", "["),
        ("[groups.a]\nhosts = [1]", "groups.a.hosts", "no list of texts", "["),
        ("[groups.a]\nhosts = ['a[2-1]']", "groups.a.hosts", "runs backwards", "web[01-16]"),
        ("[groups.a]\nhosts = ['@b']", "groups.a.hosts", "is a group", 'children = ["b"]'),
        ("[groups.a]\nport = true", "groups.a.port", "it is no number", "quotes"),
        ("[groups.a]\nport = 0", "groups.a.port", "0 is no port", "65535"),
        ("[groups.a]\nport = nan", "groups.a.port", "nan is no port", "65535"),
        ("[groups.a]\nport = inf", "groups.a.port", "inf is no port", "65535"),
        ("[groups.a]\ncommand = ['a']\ntimeout = nan", "groups.a.timeout", "no time", "seconds"),
        ("[groups.a]\nstate_dir = '~nobody-here/x'", "groups.a.state_dir", "~nobody-here", "whole"),
        ("[groups.a]\nport = 1.5", "groups.a.port", "1.5 is no port", "65535"),
        ("[groups.a]\nstate_dir = 1", "groups.a.state_dir", "it is no text", '"'),
        ("[groups.a]\ndns = 'x'\nsrv = 'y'", "groups.a", "dns and srv at once", "group of each"),
        ("[groups.a]\ncommand = []", "groups.a.command", "it is empty", "PROGRAM"),
        ("[groups.a]\ntimeout = 3", "groups.a.timeout", "only a command", "take it out"),
        ("[groups.a]\ncommand = ['a']\ntimeout = 0", "groups.a.timeout", "no time", "seconds"),
        ("[groups.all]", "groups.all", "is every group anyway", "letters"),
        ("[groups.'a b']", "groups.a b", "is no name for a group", "letters"),
        ("[groups.web]\n[groups.b]\nchildren = ['wbe']", "groups.b.children", "'wbe'", "web"),
        (
            "[groups.a]\nchildren = ['b']\n[groups.b]\nchildren = ['a']",
            "groups.a.children",
            "a -> b -> a",
            "children",
        ),
        ("[dns]\nservers = ['ns1']", "dns.servers", "is no address", "10.0.0.2:53"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, key, what, hint):
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load_inventory(path)
    assert caught.value.message.startswith(f"{path}: {key}: ")
    assert what in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


def test_groups_may_be_nested_deeper_than_the_stack(tmp_path):
    chain = [f"[groups.g{number}]\nchildren = ['g{number + 1}']\n" for number in range(3000)]
    last = "[groups.g3000]\nhosts = ['a']\n"
    found = load_inventory(write(tmp_path, "".join([*chain, last])))
    assert [each.name for each in found.members("g0")][-1] == "g3000"
    circle = "[groups.g3000]\nchildren = ['g2998']\n"
    with pytest.raises(UsageError, match="g2998 -> g2999 -> g3000 -> g2998"):
        load_inventory(write(tmp_path, "".join([*chain, circle])))


def test_a_group_that_two_groups_share_is_no_circle(tmp_path):
    text = "[groups.a]\nchildren = ['b', 'c']\n[groups.b]\nchildren = ['c']\n[groups.c]\n"
    found = load_inventory(write(tmp_path, text))
    assert [each.name for each in found.members("a")] == ["a", "b", "c"]


@pytest.mark.parametrize("content", [b"[groups", b"\xff\xfe"])
def test_files_that_are_no_inventory(tmp_path, content):
    path = tmp_path / "inventory.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=str(path)):
        load_inventory(path)


def test_an_unknown_group(tmp_path):
    found = load_inventory(write(tmp_path, GOOD))
    with pytest.raises(UsageError, match="no group 'wbe'") as caught:
        list(found.members("wbe"))
    assert caught.value.hint == "did you mean @web?"
    with pytest.raises(UsageError, match="there is no inventory"):
        list(Inventory().members("web"))
