"""`hosts` and `ps` on several real agents; some dead, frozen, or not to be trusted."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fleet.conftest import FleetOfAgents, MakeFleet
from tests.support.dns_server import DnsServer, dns_server
from tests.support.slow_link import slow_link
from uftrace_remote import AuthenticationError, ConnectionFailedError, CredentialOptions
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.fleet import (
    FleetHost,
    describe_hosts,
    failure_of,
    list_processes,
    load_inventory,
    resolve_hosts,
    same_agents,
)

COUNT = 4


@pytest.fixture(scope="module")
def fleet(make_fleet: MakeFleet) -> FleetOfAgents:
    started = make_fleet(COUNT)
    # One token and one CA for all of them is what a group of a source needs.
    started.write_inventory()
    return started


@contextmanager
def unused_port(host: str = "127.0.0.1") -> Iterator[str]:
    """An address at which nobody listens, and nobody will meanwhile."""
    with socket.socket() as held:
        held.bind((host, 0))
        yield f"{host}:{held.getsockname()[1]}"


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def wrong_token(fleet: FleetOfAgents, number: int) -> Path:
    """A directory with the right certificate and a wrong token of an agent."""
    directory = fleet.directory / "wrong"
    directory.mkdir(exist_ok=True)
    (directory / "ca.pem").write_bytes((fleet.agents[number].state_dir / "ca.pem").read_bytes())
    (directory / "token").write_text("0" * 64)
    return directory


def test_who_is_there(fleet: FleetOfAgents) -> None:
    fleet.write_inventory()
    done = fleet.remote("hosts")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split()[:4] == ["HOST", "NAME", "VERSION", "ARCH"]
    assert [line.split()[0] for line in lines[1:-1]] == [each.address for each in fleet.agents]
    assert all(line.endswith(" ok") for line in lines[1:-1])
    assert lines[-1] == f"{COUNT} hosts: {COUNT} answered, 0 failed"
    assert done.err == ""


def test_clocks_of_one_machine_are_the_same_within_the_bound(fleet: FleetOfAgents) -> None:
    fleet.write_inventory()
    found = json.loads(fleet.remote("hosts", "@agents", "--json").out)
    assert len(found) == COUNT
    for each in found:
        clock = each["clock"]
        assert abs(clock["offset_ns"]) <= clock["bound_ns"] < clock["round_trip_ns"]
        assert clock["sample_count"] == 5
        assert each["agent"]["architecture"] in ("amd64", "arm64")
        assert each["error"] is None


def test_one_table_for_all_that_may_be_wrong(fleet: FleetOfAgents) -> None:
    with unused_port() as dead, frozen(fleet.agents[3].pid):
        fleet.write_inventory(
            f"[groups.dead]\nhosts = ['{dead}', 'nowhere.invalid']\n"
            f"state_dir = '{fleet.agents[0].state_dir}'\n"
            f"[groups.wrong]\nhosts = ['{fleet.agents[1].address}']\n"
            f"state_dir = '{wrong_token(fleet, 1)}'\n"
            f"[groups.foreign]\nhosts = ['{fleet.agents[2].address}']\n"
            f"state_dir = '{fleet.agents[0].state_dir}'\n"
        )
        done = fleet.remote("--timeout", "8", "hosts", "@dead,@wrong,@foreign,@a1,@a4,web99")
    assert done.code == 14, done.err
    state = {line.split()[0]: line for line in done.out.splitlines()}
    assert state[dead].endswith("no agent listens there")
    assert state["nowhere.invalid"].endswith("unknown host")
    assert state[fleet.agents[1].address].endswith("is not the token of this agent")
    assert "CERTIFICATE_VERIFY_FAILED" in state[fleet.agents[2].address]
    assert state[fleet.agents[0].address].endswith(" ok")
    assert (
        state[fleet.agents[3].address]
        .rpartition("  ")[2]
        .startswith("the agent there did not answer in ")
    )
    assert "no certificate and token" in state["web99"]
    assert done.out.splitlines()[-1] == "7 hosts: 1 answered, 6 failed"
    assert "error: 6 of 7 hosts failed\n" in done.err
    assert "hint: start it there: uftrace-agent" in done.err


def test_a_frozen_agent_delays_nobody(fleet: FleetOfAgents) -> None:
    fleet.write_inventory()
    with frozen(fleet.agents[1].pid):
        done = fleet.remote("--timeout", "5", "hosts", "@agents", "--json")
    assert done.code == 14
    found = json.loads(done.out)
    assert [each["error"] is None for each in found] == [True, False, True, True]
    assert found[1]["error"]["reason"] == "DEADLINE_EXCEEDED"
    # It is there again as soon as it runs again.
    assert fleet.remote("hosts", "@a2").code == 0


def test_where_all_fail_the_code_is_that_of_the_failure(fleet: FleetOfAgents) -> None:
    with unused_port() as one, unused_port() as other:
        fleet.write_inventory(
            f"[groups.dead]\nhosts = ['{one}', '{other}']\n"
            f"state_dir = '{fleet.agents[0].state_dir}'\n"
            f"[groups.wrong]\nhosts = ['{fleet.agents[1].address}']\n"
            f"state_dir = '{wrong_token(fleet, 1)}'\n"
        )
        for command in ("hosts", "ps"):
            done = fleet.remote(command, "@dead")
            assert done.code == 3
            assert "error: all 2 hosts failed" in done.err
            assert fleet.remote(command, "@wrong").code == 4


def test_a_host_that_is_named_twice_is_there_once(fleet: FleetOfAgents) -> None:
    fleet.write_inventory()
    done = fleet.remote("hosts", "@a1", "@agents", "@a1")
    assert done.code == 0
    assert len(done.out.splitlines()) == COUNT + 2
    assert done.err == f"named more than once, counted once: {fleet.agents[0].address}\n"


def test_several_names_of_one_agent_are_told(fleet: FleetOfAgents) -> None:
    with dns_server({"one.test": {"A": ["127.0.0.11"]}, **srv(fleet)}) as server:
        fleet.write_inventory(srv_group(fleet, server))
        done = fleet.remote("hosts", "@srv,@a1")
    assert done.code == 0, done.err
    assert f"several names of one agent: one.test:{fleet.port}, 127.0.0.11:{fleet.port}" in done.err


def srv(fleet: FleetOfAgents) -> dict[str, dict[str, list[str]]]:
    return {"_uftrace._tcp.test": {"SRV": [f"0 0 {fleet.port} one.test."]}}


def srv_group(fleet: FleetOfAgents, server: DnsServer) -> str:
    return (
        f"[dns]\nservers = ['{server.address}']\n"
        f"[groups.srv]\nsrv = '_uftrace._tcp.test'\nstate_dir = '{fleet.agents[0].state_dir}'\n"
    )


def test_agents_behind_one_name_and_behind_a_command(fleet: FleetOfAgents) -> None:
    # Agents of one site's CA have one state directory here: the first one's.
    first = fleet.agents[0]
    with dns_server({"all.test": {"A": ["127.0.0.11"]}}) as server:
        fleet.write_inventory(
            f"[dns]\nservers = ['{server.address}']\n"
            f"[groups.named]\ndns = 'all.test'\nport = {fleet.port}\n"
            f"state_dir = '{first.state_dir}'\n"
            f"[groups.printed]\ncommand = ['echo', '{first.address}']\n"
            f"state_dir = '{first.state_dir}'\n"
        )
        for group in ("named", "printed"):
            done = fleet.remote("hosts", f"@{group}")
            assert done.code == 0, done.err
            assert done.out.splitlines()[1].startswith(f"{first.address} ")


def test_a_host_that_is_listed_is_found_without_its_group(fleet: FleetOfAgents) -> None:
    first = fleet.agents[0]
    named, state = f"one:{fleet.port}", f"state_dir = '{first.state_dir}'\n"
    hosts = fleet.directory / "lab.hosts"
    hosts.write_text(f"Host {named}\n    HostName 127.0.0.11\n")
    # GIVEN a hosts file that says where it is, THEN each command takes its name
    fleet.inventory.write_text(f"[groups.lab]\nhosts_file = 'lab.hosts'\n{state}")
    for arguments in (
        ("hosts", named),
        ("ps", named),
        ("-H", named, "ps"),
        ("status", named),
        ("functions", f"{named}:{os.getpid()}", "--limit", "1"),
    ):
        done = fleet.remote(*arguments)
        assert done.code == 0, (arguments, done)
    # Of a host that is not listed nothing is known.
    assert fleet.remote("ps", first.address).code == 4
    fleet.inventory.write_text(f"[groups.lab]\nhosts = ['{first.address}']\n{state}")
    assert fleet.remote("ps", first.address).code == 0
    # An inventory that cannot be read is no concern of a command that names no group.
    fleet.inventory.write_text("[groups")
    assert fleet.remote("--state-dir", str(first.state_dir), "ps", first.address).code == 0


def test_the_same_error_of_many_is_one_line_whatever_their_addresses(fleet: FleetOfAgents) -> None:
    first = fleet.agents[0]
    (fleet.directory / "lab.hosts").write_text(
        "Host lab1\n    HostName 127.0.0.71\nHost lab2\n    HostName 127.0.0.72\n"
    )
    with unused_port("127.0.0.71") as dead:
        port = dead.rpartition(":")[2]
        fleet.inventory.write_text(
            f"[groups.lab]\nhosts_file = 'lab.hosts'\nport = {port}\n"
            f"state_dir = '{first.state_dir}'\n"
        )
        done = fleet.remote("patch", "@lab:nginx", "ngx_*")
    assert done.code == 3, done
    rows = [line for line in done.out.splitlines() if "failed" in line]
    assert len(rows) == 1 and rows[0].endswith(f"lab[1-2]:{port}  failed: no agent listens there")


@pytest.mark.parametrize(
    ("arguments", "what", "code"),
    [
        (["hosts", "@wbe"], "there is no group 'wbe'", 2),
        (["ps", "@wbe"], "there is no group 'wbe'", 2),
        (["ps", "web[3-1]"], "runs backwards", 2),
        (["hosts", "@lost"], "groups.lost.dns: the name 'lost.test' does not exist", 3),
        (["--inventory", "/nonexistent", "hosts"], "cannot read the inventory /nonexistent", 2),
    ],
)
def test_what_cannot_be_resolved_asks_nobody(
    fleet: FleetOfAgents, arguments: list[str], what: str, code: int
) -> None:
    with dns_server({}) as server:
        fleet.write_inventory(
            f"[dns]\nservers = ['{server.address}']\n[groups.lost]\ndns = 'lost.test'\n"
        )
        done = fleet.remote(*arguments)
    assert done.code == code
    assert done.out == ""
    error, hint = done.err.splitlines()
    assert error.startswith("error: ") and what in error
    assert hint.startswith("hint: ")


def test_processes_of_many_hosts(fleet: FleetOfAgents) -> None:
    with unused_port() as dead:
        fleet.write_inventory(
            f"[groups.dead]\nhosts = ['{dead}']\nstate_dir = '{fleet.agents[0].state_dir}'\n"
        )
        done = fleet.remote("ps", "@agents,@dead", "--name", "uftrace_agent.cli")
        grouped = fleet.remote("ps", "@agents,@dead", "--programs")
        listed = fleet.remote("ps", "@a1,@dead", "--json")
    assert done.code == grouped.code == listed.code == 14
    lines = done.out.splitlines()
    assert lines[0].split() == ["HOST", "PID", "UID", "THREADS", "MEMORY", "STATE", "COMMAND"]
    # Each agent sees all agents of this machine, those of others too, and the command itself.
    ours = [line for line in lines[1:-1] if f" --state-dir {fleet.directory}/" in line]
    assert len(ours) == COUNT * COUNT
    assert lines[-1].endswith(f" processes on {COUNT} hosts, 1 host failed")
    assert f"{dead}: no agent listens there" in done.err
    python = [line for line in grouped.out.splitlines() if "/python" in line]
    assert python and all(line.split()[0] == str(COUNT) for line in python)
    assert python[0].endswith(f" 127.0.0.[11-{10 + COUNT}]:{fleet.port}")
    first, second = json.loads(listed.out)
    assert first["host"] == fleet.agents[0].address and first["error"] is None
    assert any(each["reference"]["pid"] for each in first["processes"])
    assert second["processes"] is None
    assert second["error"]["reason"] == "CONNECTION_REFUSED"


def test_one_host_is_listed_as_ever(fleet: FleetOfAgents) -> None:
    first = fleet.agents[0]
    done = fleet.remote("--state-dir", str(first.state_dir), "ps", first.address)
    assert done.code == 0, done.err
    assert done.out.split()[:3] == ["PID", "UID", "THREADS"]
    assert "processes on" not in done.out


async def test_the_same_from_python(fleet: FleetOfAgents) -> None:
    with unused_port() as dead:
        fleet.write_inventory(f"[groups.dead]\nhosts = ['{dead}']\nstate_dir = '/nonexistent'\n")
        found = await resolve_hosts("@agents,@dead", load_inventory(fleet.inventory))
        outcomes = await describe_hosts(found.hosts, timeout=20)
        processes = await list_processes(found.hosts[:2], f"{fleet.directory}/", timeout=20)
    assert [each.error is None for each in outcomes] == [True] * COUNT + [False]
    assert isinstance(outcomes[-1].error, AuthenticationError)
    failure = failure_of(outcomes)
    assert failure is not None and failure.exit_code == 14
    assert same_agents(outcomes) == ()
    assert [len(each.value or ()) for each in processes] == [COUNT, COUNT]


async def test_an_agent_far_away(fleet: FleetOfAgents) -> None:
    first = fleet.agents[0]
    options = CredentialOptions(state_directory=first.state_dir)
    # A quarter of a second to and fro, as from one continent to another: the
    # handshake alone takes three of these.
    async with slow_link(first.address, 0.125) as address:
        host = FleetHost(Endpoint.parse(address))
        (outcome,) = await describe_hosts([host], options, timeout=30)
    assert outcome.error is None and outcome.value is not None
    clock = outcome.value.clock
    assert clock is not None
    assert clock.round_trip_ns >= 250_000_000
    assert abs(clock.offset_ns) <= clock.bound_ns


async def test_a_frozen_agent_is_not_taken_for_one_of_another_ca(fleet: FleetOfAgents) -> None:
    options = CredentialOptions(state_directory=fleet.agents[0].state_dir)
    host = FleetHost(Endpoint.parse(fleet.agents[0].address))
    with frozen(fleet.agents[0].pid):
        (outcome,) = await describe_hosts([host], options, timeout=2)
    assert isinstance(outcome.error, ConnectionFailedError)
    assert outcome.error.reason == "DEADLINE_EXCEEDED"
