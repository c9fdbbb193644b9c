"""One agent here and one in the machine: a fleet of two architectures is one fleet."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.arm.checkout import FOLDER
from tests.arm.machine import Machine
from tests.arm.run import start
from tests.e2e.conftest import CommandResult, running_agent
from tests.support.target_process import TargetProcess
from tests.targets.build import build

pytestmark = [pytest.mark.arm, pytest.mark.timeout(1800)]

PORT = 50051
# No other test's process has this name.
NAME = "mixedbusy"
STATE = "/tmp/agent-state"


@dataclass
class MixedFleet:
    """A client that knows both agents as `@both`."""

    home: Path

    def remote(self, *arguments: str, stdin: str = "") -> CommandResult:
        """Run `uftrace-remote`."""
        with self.started(*arguments) as process:
            out, errors = process.communicate(stdin, timeout=600)
        return CommandResult(process.returncode, out, errors)

    def started(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `uftrace-remote`."""
        environment = {
            **os.environ,
            "NO_COLOR": "1",
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "UFTRACE_INVENTORY": str(self.home / "inventory.toml"),
        }
        environment.pop("UFTRACE_STATE_DIR", None)
        command = [
            sys.executable,
            "-c",
            "from uftrace_remote.cli.main import main; main()",
            *("--timeout", "120"),
            *arguments,
        ]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment
        )


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MixedFleet]:
    home = tmp_path_factory.mktemp("mixed")
    program = home / NAME
    with ExitStack() as stack:
        machine = stack.enter_context(Machine(forward=[PORT]))
        listen = ("--listen", f"0.0.0.0:{PORT}", "--state-dir", STATE, "--budget", "off")
        agent = stack.enter_context(start(machine, ["uftrace-agent", *listen]))
        agent.wait_for("listening on")
        put = {NAME: build("busy8", "gcc-O2", "aarch64")}
        # It ends with its input.
        busy = stack.enter_context(
            machine.start(["sh", "-c", f"tail -f /dev/null | nice ./{NAME}"], put=put)
        )
        busy.wait_for("ready")
        shutil.copy(build("busy8"), program)
        here = stack.enter_context(running_agent(home / "agent"))
        stack.enter_context(TargetProcess(program, niceness=10))
        there = f"127.0.0.1:{machine.port(PORT)}"
        (home / "inventory.toml").write_text(
            f"[groups.here]\nhosts = ['{here.address}']\nstate_dir = '{here.state_dir}'\n"
            f"[groups.there]\nhosts = ['{there}']\n"
            "[groups.both]\nchildren = ['here', 'there']\n"
        )
        mixed = MixedFleet(home)
        login(mixed, machine, there)
        yield mixed


def login(mixed: MixedFleet, machine: Machine, there: str) -> None:
    ask = ["uftrace-agent", "--state-dir", STATE, "credentials"]
    said = machine.run(ask, folder=FOLDER).output
    (line,) = [line for line in said.splitlines() if line.startswith("fingerprint")]
    token = machine.run([*ask, "--token", "trace"], folder=FOLDER).output.strip()
    fingerprint = line.rpartition(" ")[2]
    done = mixed.remote("login", there, "--fingerprint", fingerprint, stdin=token + "\n")
    assert done.code == 0, done


def test_each_agent_says_what_it_is(fleet: MixedFleet) -> None:
    done = fleet.remote("hosts", "@both", "--json")
    assert done.code == 0, done
    said = {str(row["agent"]["architecture"]).lower() for row in json.loads(done.out)}
    assert said == {"amd64", "arm64"}


def test_one_patch_comes_into_effect_on_both_or_on_none(fleet: MixedFleet) -> None:
    done = fleet.remote("patch", f"@both:{NAME}", "leaf", "chain_*", "--for", "10m")
    assert done.code == 0, done
    assert "patched 2 processes" in done.out, done.out
    done = fleet.remote("unpatch", f"@both:{NAME}")
    assert done.code == 0, done
    done = fleet.remote("detach", f"@both:{NAME}")
    assert done.code == 0, done


def test_both_are_one_trace(fleet: MixedFleet, tmp_path: Path) -> None:
    out = tmp_path / "trace"
    done = fleet.remote("record", f"@both:{NAME}", "chain_*", "-d", "1", "-o", str(out))
    assert done.code == 0, done
    recorded = json.loads((out / "fleet.json").read_text())
    assert len(recorded["members"]) == 2, recorded
    report = fleet.remote("report", str(out), "--by", "host")
    assert report.code == 0, report
    for name in ("chain_a", "chain_b", "chain_c"):
        rows = [line for line in report.out.splitlines() if name in line]
        assert rows, report.out
    # Both are in one order: hosts take turns in it.
    assert len(hosts_of_first_lines(fleet, out)) == 2


# Of so many lines as it takes to see both; there are millions.
def hosts_of_first_lines(fleet: MixedFleet, trace: Path) -> set[str]:
    hosts: set[str] = set()
    with fleet.started("replay", str(trace)) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "chain_a" in line:
                hosts.add(line.split()[0])
            if len(hosts) == 2:
                break
        process.kill()
    return hosts
