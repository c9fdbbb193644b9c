"""`live` on several hosts, as a user runs it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fleet.isolated import IsolatedHost, isolated_hosts, write_inventory
from tests.support.stalls import within
from tests.support.waiting import wait_until
from uftrace_remote import SyncAgentClient
from uftrace_remote.credentials import CredentialOptions

# What may pass before somebody who is gone is told.
SHOWN_SECONDS = 3.0


class LiveCommand:
    """`uftrace-remote live` while it runs."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._out, self._err = folder / "out", folder / "err"
        environment = {**os.environ, "NO_COLOR": "1", "HOME": str(folder)}
        environment.pop("UFTRACE_STATE_DIR", None)
        with self._out.open("w") as out, self._err.open("w") as err:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-c"),
                    "from uftrace_remote.cli.main import main; main()",
                    *("--inventory", str(folder / "inventory.toml"), "live", *arguments),
                ],
                stdout=out,
                stderr=err,
                env=environment,
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait_for(self, text: str, timeout: float = 60.0) -> None:
        """Until it has said that on stderr."""
        wait_until(lambda: text in self.err, timeout=timeout, otherwise=lambda: self.err + self.out)

    def calls(self) -> Counter[str]:
        """Lines by host."""
        lines = [line for line in self.out.splitlines() if " leaf();" in line]
        return Counter(line.split()[0] for line in lines)

    def wait_calls(self, *expected: tuple[IsolatedHost, int]) -> None:
        wait_until(
            lambda: all(self.calls()[host.address] >= count for host, count in expected),
            timeout=60.0,
            otherwise=lambda: f"{self.calls()} {self.err}",
        )

    def end(self, number: int = signal.SIGINT) -> int:
        self._process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        return self._process.wait(60)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def live(folder: Path, *arguments: str) -> Iterator[LiveCommand]:
    command = LiveCommand(folder, *arguments)
    try:
        yield command
    finally:
        command.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def hosts(folder: Path) -> Iterator[list[IsolatedHost]]:
    with isolated_hosts(folder, 3) as started:
        yield started


def sessions(host: IsolatedHost) -> int:
    options = CredentialOptions(state_directory=host.state_dir)
    with SyncAgentClient.connect(host.address, options, timeout=30.0) as client:
        return len(client.sessions())


def test_the_calls_of_all_hosts_in_one_order(folder: Path, hosts: list[IsolatedHost]) -> None:
    with live(folder, "@all:blocked", "leaf") as command:
        command.wait_for("tracing 3 processes")
        for _ in range(3):
            for host in hosts:
                host.burst(20)
        command.wait_calls(*((host, 60) for host in hosts))
        assert command.end() == 0
        assert command.calls() == {host.address: 60 for host in hosts}
        assert command.out.splitlines()[0].split() == ["#", "HOST", "DURATION", "TID", "FUNCTION"]
        assert "180 calls shown" in command.err
        assert " 0 records lost; the order between hosts is known to" in command.err
    assert [sessions(host) for host in hosts] == [0, 0, 0]


def test_a_duration_and_filters(folder: Path, hosts: list[IsolatedHost]) -> None:
    with live(folder, "@h0,@h1:blocked", "leaf", "-d", "2s", "--min-duration", "10s") as command:
        command.wait_for("tracing 2 processes")
        hosts[0].burst(20)
        assert command.wait() == 0
        assert command.calls() == {}
        assert "0 calls shown" in command.err


def test_a_frozen_host_is_named_and_the_others_go_on(
    folder: Path, hosts: list[IsolatedHost]
) -> None:
    with live(folder, "@all:blocked", "leaf") as command:
        command.wait_for("tracing 3 processes")
        hosts[1].burst(5)
        command.wait_calls((hosts[1], 5))
        os.kill(hosts[1].pid, signal.SIGSTOP)
        try:
            with within(SHOWN_SECONDS):
                command.wait_for(f"# {hosts[1].address}: silent; going on without it")
            hosts[0].burst(5)
            hosts[1].burst(5)
            hosts[2].burst(5)
            command.wait_calls((hosts[0], 5), (hosts[2], 5))
            command.wait_for(f" except {hosts[1].address}\n")
            assert command.calls()[hosts[1].address] == 5
        finally:
            os.kill(hosts[1].pid, signal.SIGCONT)
        command.wait_for(f"# {hosts[1].address}: back\n")
        command.wait_calls((hosts[1], 10))
        wait_until(lambda: "except" not in command.err.rpartition("# complete")[2])
        assert command.end() == 0
        # On a busy machine some more may have.
        late = re.search(r", (\d+) events came late", command.err)
        assert late is not None and int(late[1]) >= 10, command.err
        assert " 0 records lost" in command.err


def test_a_host_that_is_not_there(folder: Path, hosts: list[IsolatedHost]) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{held.getsockname()[1]}"
        group = f"[groups.dead]\nhosts = ['{dead}']\nstate_dir = '{hosts[0].state_dir}'\n"
        write_inventory(folder, hosts, group)
        # Everywhere or nowhere, unless it is said otherwise.
        with live(folder, "@h0,@dead:blocked", "leaf") as command:
            assert command.wait() == 14
            assert f"{dead}: no agent listens there" in command.err
            assert "nothing is patched anywhere" in command.err
        assert sessions(hosts[0]) == 0
        with live(folder, "@h0,@dead:blocked", "leaf", "--best-effort") as command:
            command.wait_for("tracing 1 process on")
            hosts[0].burst(7)
            command.wait_calls((hosts[0], 7))
            assert command.end() == 14
            assert "1 of 2 processes failed" in command.err
    write_inventory(folder, hosts)
    assert sessions(hosts[0]) == 0


def test_a_host_that_dies(tmp_path: Path) -> None:
    with isolated_hosts(tmp_path, 2) as hosts, live(tmp_path, "@all:blocked", "leaf") as command:
        command.wait_for("tracing 2 processes")
        hosts[1].burst(5)
        command.wait_calls((hosts[1], 5))
        hosts[1].kill()
        with within(SHOWN_SECONDS):
            command.wait_for(f"# {hosts[1].address}: the connection broke; trying to get it back")
        hosts[0].burst(5)
        command.wait_calls((hosts[0], 5))
        assert command.end() == 14
        assert f"# {hosts[1].address}:" in command.err
        assert "1 of 2 processes failed" in command.err


def test_what_is_for_several_hosts_alone(folder: Path, hosts: list[IsolatedHost]) -> None:
    with live(folder, f"{hosts[0].address}:1", "leaf", "--best-effort") as command:
        assert command.wait() == 2
        assert "--best-effort is for several hosts" in command.err
    with live(folder, "@all:blocked", "leaf", "--pending") as command:
        assert command.wait() == 2
        assert "--pending is for one process" in command.err
