"""Where groups get hosts from: a real name server, real files, real commands."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from tests.support.dns_server import dns_server, no_dns_server
from tests.support.waiting import wait_until
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.errors import ConnectionFailedError, UftraceError, UsageError
from uftrace_remote.fleet.fan_out import fan_out
from uftrace_remote.fleet.hosts_file import read_hosts, read_list
from uftrace_remote.fleet.inventory_file import load_inventory
from uftrace_remote.fleet.resolution import FleetHost, FleetHosts, resolve_hosts, resolve_target

pytestmark = pytest.mark.usefixtures("no_leaks")

RECORDS = {
    "agents.test": {"A": ["127.0.0.10", "127.0.0.9"], "AAAA": ["::1"]},
    "six.test": {"AAAA": ["2001:db8::2", "2001:db8::1"]},
    "empty.test": {"TXT": ["nothing"]},
    "alias.test": {"A": []},
    "_uftrace._tcp.test": {
        "SRV": ["20 0 50051 web9.test.", "10 1 50060 web2.test.", "10 9 50061 web1.test."]
    },
    "web1.test": {"A": ["127.0.0.1"]},
    "web2.test": {"A": ["127.0.0.2"]},
    "web9.test": {"A": ["127.0.0.9"]},
    "_dangling._tcp.test": {"SRV": ["0 0 50051 nobody.test."]},
    "_none._tcp.test": {"SRV": ["0 0 0 ."]},
    "_odd._tcp.test": {"SRV": [r"0 0 1 a\032b.test."]},
    "agent.tracing.svc.cluster.local": {"A": ["10.1.0.2"]},
    "agent.tracing.svc.other.zone": {"A": ["10.2.0.2"]},
    "many.test": {"A": [f"10.0.{high}.{low}" for high in range(4) for low in range(1, 251)]},
}


async def hosts_of(tmp_path: Path, text: str, written: str = "@g") -> FleetHosts:
    path = tmp_path / "inventory.toml"
    path.write_text(text)
    return await resolve_hosts(written, load_inventory(path))


def names(found: FleetHosts) -> list[str]:
    return [str(each.endpoint) for each in found.hosts]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("dns = 'agents.test'", ["127.0.0.9:50051", "127.0.0.10:50051"]),
        ("dns = 'agents.test'\nport = 7", ["127.0.0.9:7", "127.0.0.10:7"]),
        ("dns = 'six.test'", ["[2001:db8::1]:50051", "[2001:db8::2]:50051"]),
        ("srv = '_uftrace._tcp.test'", ["web1.test:50061", "web2.test:50060", "web9.test:50051"]),
        ("kubernetes = 'agent.tracing'", ["10.1.0.2:50051"]),
        ("kubernetes = 'agent.tracing.svc'", ["10.1.0.2:50051"]),
        ("kubernetes = 'agent.tracing.svc.other.zone'", ["10.2.0.2:50051"]),
    ],
)
async def test_hosts_from_a_name_server(tmp_path, source, expected):
    with dns_server(RECORDS) as server:
        text = f"[dns]\nservers = ['{server.address}']\n[groups.g]\n{source}\n"
        assert names(await hosts_of(tmp_path, text)) == expected


async def test_names_of_srv_records_stay_and_are_found_at_the_same_servers(tmp_path):
    with dns_server(RECORDS) as server:
        text = f"[dns]\nservers = ['{server.address}']\n[groups.g]\nsrv = '_uftrace._tcp.test'\n"
        found = await hosts_of(tmp_path, text)
    assert found.hosts[0] == FleetHost(
        Endpoint("web1.test", 50061), ("@g (srv)",), None, Endpoint("127.0.0.1", 50061)
    )


async def test_answers_too_long_for_a_datagram_come_over_tcp(tmp_path):
    with dns_server(RECORDS) as server:
        text = f"[dns]\nservers = ['{server.address}']\n[groups.g]\ndns = 'many.test'\n"
        found = await hosts_of(tmp_path, text)
    assert len(found.hosts) == 1000
    assert ("tcp", "many.test", "A") in server.asked


async def test_a_dead_name_server_is_passed_over(tmp_path):
    with no_dns_server() as dead, dns_server(RECORDS) as server:
        text = (
            f"[dns]\nservers = ['{dead}', '{server.address}']\ntimeout = 2\n"
            "[groups.g]\ndns = 'agents.test'\n"
        )
        assert len((await hosts_of(tmp_path, text)).hosts) == 2


@pytest.mark.parametrize(
    ("source", "reason", "what"),
    [
        ("dns = 'nowhere.test'", "UNKNOWN_HOST", "'nowhere.test' does not exist"),
        ("dns = 'empty.test'", "UNKNOWN_HOST", "has no A or AAAA records"),
        ("srv = 'agents.test'", "UNKNOWN_HOST", "has no SRV records"),
        ("srv = '_none._tcp.test'", "UNKNOWN_HOST", "has no SRV records"),
        ("srv = '_dangling._tcp.test'", "UNKNOWN_HOST", "'nobody.test.' does not exist"),
        ("srv = '_odd._tcp.test'", "INVALID_ADDRESS", "is no host name"),
        ("dns = 'broken.test'", "DNS_FAILED", "answered with a failure"),
        ("dns = 'silent.test'", "DNS_FAILED", "no answer in 0.5 s"),
        ("dns = 'a..b'", "DNS_FAILED", "label"),
        ("kubernetes = 'agent'", "INVALID_INVENTORY", "'agent' is no service"),
    ],
)
async def test_names_that_resolve_nowhere(tmp_path, source, reason, what):
    with dns_server(RECORDS, silent=["silent.test"], broken=["broken.test"]) as server:
        text = f"[dns]\nservers = ['{server.address}']\ntimeout = 0.5\n[groups.g]\n{source}\n"
        with pytest.raises(UftraceError) as caught:
            await hosts_of(tmp_path, text)
    key = source.partition(" ")[0]
    assert caught.value.message.startswith(f"{tmp_path}/inventory.toml: groups.g.{key}: ")
    assert caught.value.reason == reason and caught.value.hint
    assert what in caught.value.message
    if reason.startswith(("DNS", "UNKNOWN")):
        assert isinstance(caught.value, ConnectionFailedError)
        assert server.address in caught.value.message


HOSTS = """
# all of them
web[01-03]        # the web servers
db1:50060

[::1]:7,db2:8
"""

SSH = """
Host *.example
    HostName %h.net
Host web1 web2 !web3 web?9
    Port 22
    HostName = "10.0.0.1"
host db[01-02] plain.example
  hostname %h.internal
Match host web5
    HostName 10.9.9.9
# Host commented
Host *
    User root
"""


def test_lists_of_hosts():
    found = [str(each.host.endpoint) for each in read_hosts(HOSTS)]
    assert found == [
        *(f"web0{number}:50051" for number in (1, 2, 3)),
        *("db1:50060", "[::1]:7", "db2:8"),
    ]


def test_hosts_of_an_ssh_configuration():
    found = {each.host.endpoint.host: each.address for each in read_hosts(SSH)}
    assert found == {
        "web1": "10.0.0.1",
        "web2": "10.0.0.1",
        "db01": "db01.internal",
        "db02": "db02.internal",
        # The first that fits counts.
        "plain.example": "plain.example.net",
    }


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("web1\n@web\n", "line 2: '@web' is a group"),
        ("web1\n\nweb2 ansible_host=x", "line 3: "),
        ("[web]\nweb1", "line 1: "),
        ("Host web[3-1]", "line 1: "),
        ("Host web1\nHostName a/b", "'a/b' is no host name"),
    ],
)
def test_lines_that_are_no_hosts(text, what):
    with pytest.raises(UsageError) as caught:
        read_hosts(text)
    assert what in caught.value.message and caught.value.hint
    with pytest.raises(UsageError):
        read_list(text)


async def test_hosts_of_a_file_lie_beside_the_inventory(tmp_path):
    (tmp_path / "hosts").write_text(HOSTS)
    found = await hosts_of(tmp_path, "[groups.g]\nhosts_file = 'hosts'\nport = 9\n")
    assert names(found)[:4] == ["web01:9", "web02:9", "web03:9", "db1:50060"]
    assert found.hosts[0].origins == ("@g (hosts_file)",)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "there is no such file"),
        ("dir", "it is no file"),
        (b"web1\n\xff", "no UTF-8"),
        (b"web[1-9\n", "hosts_file: line 1: "),
        (b"#" * (1 << 20) + b"\n\n", "longer than 1 MiB"),
    ],
)
async def test_files_that_are_no_list(tmp_path, content, what):
    if content == "dir":
        (tmp_path / "hosts").mkdir()
    elif content is not None:
        (tmp_path / "hosts").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        await hosts_of(tmp_path, "[groups.g]\nhosts_file = 'hosts'\n")
    assert caught.value.message.startswith(f"{tmp_path}/inventory.toml: groups.g.hosts_file: ")
    assert what in caught.value.message and caught.value.hint


async def test_hosts_that_a_command_prints(tmp_path):
    script = tmp_path / "list"
    script.write_text("#!/bin/sh\necho asking >&2\necho web[1-2]\necho 'db1:7 # old'\n")
    script.chmod(0o755)
    found = await hosts_of(tmp_path, "[groups.g]\ncommand = ['./list']\n")
    assert names(found) == ["web1:50051", "web2:50051", "db1:7"]


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("['no-such-program']", "cannot be run: No such file"),
        ("['sh', '-c', 'echo web1; echo broken >&2; exit 3']", "failed with status 3: broken"),
        ("['sh', '-c', 'kill -9 $$']", "failed with status -9"),
        ("['yes', 'web1']", "longer than 1 MiB"),
        ("['echo', 'a b']", "line 1: "),
        ("['a\\u0000b']", "null byte"),
    ],
)
async def test_commands_that_fail(tmp_path, command, what):
    with pytest.raises(UsageError) as caught:
        await hosts_of(tmp_path, f"[groups.g]\ncommand = {command.replace(chr(39), chr(34))}\n")
    assert caught.value.message.startswith(f"{tmp_path}/inventory.toml: groups.g.command: ")
    assert what in caught.value.message and caught.value.hint


async def test_a_command_that_does_not_end_ends_with_its_children(tmp_path):
    text = (
        """[groups.g]\ncommand = ["sh", "-c", "sleep 1000 & echo $! > pid; wait"]\ntimeout = 1\n"""
    )
    with pytest.raises(UsageError, match="was not done after 1 s"):
        await hosts_of(tmp_path, text)
    pid = int((tmp_path / "pid").read_text())

    def is_gone() -> bool:
        # It is ours to reap where we are the first process of a container.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    wait_until(is_gone)


async def test_a_command_ends_when_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "started")
    text = """[groups.g]\ncommand = ["sh", "-c", "echo > started; exec sleep 1000"]\n"""
    asking = asyncio.ensure_future(hosts_of(tmp_path, text))
    await asyncio.to_thread((tmp_path / "started").read_text)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_command_of_an_inventory_that_everybody_may_write_is_not_run(tmp_path):
    path = tmp_path / "inventory.toml"
    path.write_text("[groups.g]\ncommand = ['touch', 'ran']\n")
    path.chmod(0o666)
    with pytest.raises(UsageError, match="everybody may write") as caught:
        await resolve_hosts("@g", load_inventory(path))
    assert caught.value.reason == "INVENTORY_UNSAFE" and "chmod o-w" in caught.value.hint
    assert not (tmp_path / "ran").exists()


FLEET = """
[groups.web]
hosts = ["web[1-2]", "WEB1.", "db1:50051"]
state_dir = "certs"
[groups.db]
hosts = ["db1", "db2"]
port = 50060
[groups.both]
children = ["web", "db"]
[groups.none]
"""


async def test_hosts_are_there_once_in_order_with_their_origins(tmp_path):
    found = await hosts_of(tmp_path, FLEET, "db2:50060,@both,web9,[::1]:50051,[0::1]")
    assert [(str(each), each.origins) for each in found.hosts] == [
        ("db2:50060", ("db2:50060", "@db")),
        ("web1", ("@web",)),
        ("web2", ("@web",)),
        ("db1", ("@web",)),
        ("db1:50060", ("@db",)),
        ("web9", ("web9",)),
        ("[::1]", ("[::1]", "[0::1]")),
    ]
    assert [str(each) for each in found.repeated] == ["db2:50060", "web1", "[::1]"]
    assert found.hosts[1].state_directory == tmp_path / "certs"


async def test_ports_of_groups(tmp_path):
    assert names(await hosts_of(tmp_path, FLEET, "@db")) == ["db1:50060", "db2:50060"]
    assert names(await hosts_of(tmp_path, FLEET, "@db:7")) == ["db1:7", "db2:7"]
    assert len((await hosts_of(tmp_path, FLEET, "@all")).hosts) == 5


@pytest.mark.parametrize(
    ("written", "reason", "what"),
    [
        ("@wbe", "UNKNOWN_GROUP", "no group 'wbe'"),
        ("web1,@none", "", ""),
        ("@none", "NO_HOSTS", "@none means no host"),
        ("web[1-9000],app[1-1000],@web", "TOO_MANY_HOSTS", "10,001 hosts"),
    ],
)
async def test_fleets_that_make_no_sense(tmp_path, written, reason, what):
    if not reason:
        assert len((await hosts_of(tmp_path, FLEET, written)).hosts) == 1
        return
    with pytest.raises(UsageError) as caught:
        await hosts_of(tmp_path, FLEET, written)
    assert caught.value.reason == reason
    assert what in caught.value.message and caught.value.hint


async def test_targets(tmp_path):
    path = tmp_path / "inventory.toml"
    path.write_text(FLEET)
    inventory = load_inventory(path)
    for text, expected in {
        "web[1-2]:nginx": ["web1:50051", "web2:50051"],
        "@db:exe=/usr/sbin/nginx": ["db1:50060", "db2:50060"],
        "@web:build-id=0123abcd": ["web1:50051", "web2:50051", "db1:50051"],
        "nginx": ["localhost:50051"],
    }.items():
        assert names(await resolve_target(text, inventory)) == expected
    assert names(await resolve_target("1", inventory, Endpoint("far", 7))) == ["far:7"]


async def test_a_source_is_asked_once_however_often_it_is_named(tmp_path):
    text = """
[groups.g]
command = ["sh", "-c", "echo x >> asked; echo web1"]
[groups.h]
children = ["g"]
"""
    found = await hosts_of(tmp_path, text, "@g,@h,@all")
    assert (tmp_path / "asked").read_text() == "x\n"
    assert [str(each) for each in found.repeated] == ["web1"]


async def test_without_an_inventory(tmp_path):
    inventory = load_inventory(None, {"HOME": str(tmp_path)})
    assert names(await resolve_hosts("web[1-2]", inventory)) == ["web1:50051", "web2:50051"]
    for written in ("@all", []):
        with pytest.raises(UsageError, match="there is no inventory") as caught:
            await resolve_hosts(written, inventory)
        assert caught.value.reason == "NO_HOSTS"


async def test_a_fleet_host_as_an_outcome():
    async def ask(host: FleetHost) -> str:
        raise UsageError(f"{host}")

    (outcome,) = await fan_out([FleetHost(Endpoint("web1"))], ask, deadline=1)
    assert outcome.error is not None and outcome.error.message == "web1"
