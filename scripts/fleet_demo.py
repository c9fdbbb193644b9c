#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`make fleet-demo`: eight hosts in network namespaces, patched at one moment and recorded.

One agent is killed midway. Exits 0 only if it was named and held nobody up, every record of
the others is accounted for, and the code of all servers is as before in the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

from demo_support import (
    ROOT,
    DemoError,
    Text,
    command_line,
    compile_server,
    explain_if_tracing_is_forbidden,
    may_trace_everything,
    read_line,
    say,
    start,
    step,
    threads_traced_or_stopped,
)

sys.path.insert(0, str(ROOT))
from tests.support.namespaces import NamespacedHost, Network, inner_pid

HOSTS = 8
RECORD_SECONDS, KILL_AFTER_SECONDS = 5.0, 2.5
FUNCTIONS = ("*_request", "*_order", "db_*", "disk_*")
SHOWN_CALLS = 40
SOME_HOSTS_FAILED = 14
PATIENCE_SECONDS = 40.0


def main() -> int:
    """Runs the demo; the exit status."""
    parser = argparse.ArgumentParser(description="Trace eight hosts as one.")
    parser.add_argument("--output", type=Path, default=ROOT / "demo-out" / "fleet", metavar="DIR")
    output = parser.parse_args().output
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        explain_if_tracing_is_forbidden()
        if not may_trace_everything():
            raise DemoError("network namespaces need root: sudo make fleet-demo")
        with ExitStack() as cleanup:
            return FleetDemo(output.absolute(), cleanup).run()
    except DemoError as error:
        say(f"\nfleet-demo: {error}", error=True)
        return 1
    except KeyboardInterrupt:
        say("\nfleet-demo: interrupted; everything was cleaned up", error=True)
        return 130


# Ends the demo the way Ctrl-C does: through the cleanup.
def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@dataclass
class Machine:
    """A host, with what runs there."""

    name: str
    where: NamespacedHost
    server: int = 0
    agent: subprocess.Popen[bytes] | None = None
    before: Text = field(default_factory=lambda: Text({}))


@dataclass
class FleetDemo:
    """One run: the hosts, and what was found."""

    output: Path
    cleanup: ExitStack
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    folder: Path = Path()
    machines: list[Machine] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def run(self) -> int:
        """All steps; the exit status."""
        self.folder = Path(self.cleanup.enter_context(tempfile.TemporaryDirectory(prefix="fleet-")))
        shutil.rmtree(self.output, ignore_errors=True)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        # The client's own configuration is left alone.
        self.environment |= {"HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)}

        step(f"{HOSTS} hosts in network namespaces, each with an order server:")
        network = self.cleanup.enter_context(Network(HOSTS))
        self.machines = [Machine(f"web{n}", host) for n, host in enumerate(network.hosts, 1)]
        self._start_servers()
        step("A certificate authority for the fleet, and agents with certificates of it:")
        self._issue()
        self._start_agents(self.machines)
        self._write_inventory()

        step("Who is there, and what runs there?")
        self._uftrace("hosts", "@web")
        self._uftrace("ps", "@web", "--programs", "--name", "order-server")
        step("What would be patched?")
        self._uftrace("patch", "@web:order-server", *FUNCTIONS, "--dry-run")
        step("Patch it on all hosts at one moment, for a minute at most; then take it back:")
        self._uftrace("patch", "@web:order-server", *FUNCTIONS, "--for", "1m")
        self._uftrace("unpatch", "@web:order-server")
        self._uftrace("detach", "@web:order-server")
        victim = self.machines[4]
        step(f"Record {RECORD_SECONDS:g} seconds; the agent of {victim.name} is killed midway:")
        self._record(victim)
        step("All calls of all hosts, in one order:")
        self._replay()
        step("Where did the time go?")
        self._uftrace("report", self.output, "--limit", "12")
        step(f"A new agent on {victim.name} sets back what the dead one had left:")
        self._start_agents([victim])
        self._prove_untouched()
        return self._conclude()

    # -- programs ----------------------------------------------------------

    def _start_servers(self) -> None:
        binary = compile_server(self.folder)
        for machine in self.machines:
            log = self.folder / f"{machine.name}.server.log"
            wrapper = machine.where.inside
            server = start([str(binary)], log, self.environment, self.cleanup, wrapper=wrapper)
            if "running" not in read_line(server):
                raise DemoError("a server did not start")
            machine.server = inner_pid(server)
            machine.before = Text.of(machine.server)

    def _issue(self) -> None:
        self._uftrace("pki", "init")
        for machine in self.machines:
            arguments = ("agent", machine.name, "--host", machine.where.address)
            self._uftrace("pki", "issue", *arguments, quiet=machine is not self.machines[0])
        say(f"(and so on, for {HOSTS} hosts)")
        self._uftrace("pki", "issue", "client", "demo", "--role", "trace")
        pki = self.folder / "uftrace-remote" / "pki"
        shutil.copytree(pki / "clients/demo", self.folder / "uftrace-remote" / "tls")

    def _start_agents(self, machines: Sequence[Machine]) -> None:
        pki = self.folder / "uftrace-remote" / "pki" / "agents"
        started = []
        for machine in machines:
            command = [
                *command_line("uftrace-agent"),
                *("--listen", f"{machine.where.address}:50051"),
                *("--state-dir", str(self.folder / machine.name)),
                *("--tls-dir", str(pki / machine.name)),
                # Eight servers on one machine, all of whose calls are wanted.
                *("--budget", "off"),
            ]
            log = self.folder / f"{machine.name}.agent.log"
            wrapper = machine.where.inside
            machine.agent = start(command, log, self.environment, self.cleanup, wrapper=wrapper)
            started.append((machine, log))
        for machine, log in started:
            assert machine.agent is not None
            line = read_line(machine.agent)
            if "listening on" not in line:
                raise DemoError(f"an agent did not start\n{log.read_text(errors='replace')}")
            say(f"{machine.name}: {line}")

    def _write_inventory(self) -> None:
        hosts = self.folder / "web.hosts"
        lines = [f"Host {m.name}\n    HostName {m.where.address}\n" for m in self.machines]
        hosts.write_text("".join(lines))
        inventory = self.folder / "uftrace-remote" / "inventory.toml"
        inventory.write_text('[groups.web]\nhosts_file = "../web.hosts"\n')

    def _announced(self, arguments: Sequence[str | Path], quiet: bool = False) -> list[str]:
        words = [
            str(each.relative_to(Path.cwd()))
            if isinstance(each, Path) and each.is_relative_to(Path.cwd())
            else str(each)
            for each in arguments
        ]
        if not quiet:
            say(f"$ {shlex.join(['uftrace-remote', *words])}")
        return [*command_line("uftrace-remote"), *map(str, arguments)]

    def _uftrace(self, *arguments: str | Path, quiet: bool = False) -> None:
        command = self._announced(arguments, quiet)
        output = subprocess.DEVNULL if quiet else None
        if subprocess.run(command, env=self.environment, stdout=output).returncode:
            raise DemoError(f"`uftrace-remote {arguments[0]}` failed")

    # -- steps -------------------------------------------------------------

    def _record(self, victim: Machine) -> None:
        duration = f"{RECORD_SECONDS:g}s"
        arguments = ("record", "@web:order-server", *FUNCTIONS, "-d", duration, "-o", self.output)
        recording = subprocess.Popen(self._announced(arguments), env=self.environment)
        self.cleanup.callback(recording.kill)
        self._wait_for_events(recording)
        time.sleep(KILL_AFTER_SECONDS)
        assert victim.agent is not None
        os.kill(inner_pid(victim.agent), signal.SIGKILL)
        say(f"*** the agent of {victim.name} is dead ***")
        status = recording.wait(PATIENCE_SECONDS + RECORD_SECONDS)
        say(f"(exit code {status}: some hosts failed)")
        if status != SOME_HOSTS_FAILED:
            self.failures.append(f"the recording ended with {status} in place of 14")
        self._check_counts(victim)

    # Until every member's trace has grown: all are patched.
    def _wait_for_events(self, recording: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline and recording.poll() is None:
            sizes = [path.stat().st_size for path in self.output.glob("*/events.bin")]
            if len(sizes) == HOSTS and min(sizes) > 10_000:
                return
            time.sleep(0.05)
        raise DemoError("the recording did not begin")

    def _check_counts(self, victim: Machine) -> None:
        for machine in self.machines:
            (folder,) = self.output.glob(f"{machine.name}-*")
            counts = json.loads((folder / "trace.json").read_text())
            if not counts["records"]:
                self.failures.append(f"nothing was recorded on {machine.name}")
            elif machine is not victim and not counts["exact"]:
                self.failures.append(f"{machine.name}: produced is not delivered + lost")

    def _replay(self) -> None:
        command = self._announced(("replay", self.output))
        with subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE) as replay:
            assert replay.stdout is not None
            names = set()
            for number, line in enumerate(replay.stdout):
                text = line.decode(errors="replace").rstrip()
                if number < SHOWN_CALLS:
                    say(text)
                names |= {machine.name for machine in self.machines if machine.name in text}
        say(f"(and so on; of {len(names)} hosts)")
        if replay.returncode or len(names) != HOSTS:
            self.failures.append(f"the merged tree has {len(names)} hosts")

    def _prove_untouched(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        left: dict[str, int] = {}
        while time.monotonic() < deadline:
            left = {
                machine.name: differences
                for machine in self.machines
                if (differences := machine.before.differences(Text.of(machine.server)))
                or threads_traced_or_stopped(machine.server)
            }
            if not left:
                break
            time.sleep(0.1)
        size = sum(map(len, self.machines[0].before.mappings.values()))
        say(f"the code of {HOSTS} servers, {size:,} bytes each: {sum(left.values())} bytes differ")
        if left:
            self.failures.append(f"not as before: {left}")

    def _conclude(self) -> int:
        if not self.failures:
            say("\nAll checks passed: the servers ran on, and their code is as it was.")
            return 0
        for failure in self.failures:
            say(f"FAILED: {failure}", error=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
