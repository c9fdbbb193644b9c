"""What all benches need: a real agent, the traced program, figures and tables."""

from __future__ import annotations

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from uftrace_remote import SyncAgentClient
from uftrace_remote.credentials import CredentialOptions

HERE: Final = Path(__file__).resolve().parent
BUILT: Final = HERE / "results" / "built"
AGENT: Final = (sys.executable, "-c", "from uftrace_agent.cli import main; main()")
REMOTE: Final = (sys.executable, "-c", "from uftrace_remote.cli.main import main; main()")


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent that runs.

    Attributes:
        pid: Its process.
        address: `HOST:PORT`.
        state_directory: Where a client finds certificate and token.
    """

    pid: int
    address: str
    state_directory: Path

    def client(self, timeout: float = 60.0) -> SyncAgentClient:
        """A new connection; close it."""
        return SyncAgentClient.connect(
            self.address, CredentialOptions(state_directory=self.state_directory), timeout=timeout
        )


@contextmanager
def running_agent(budget: str = "off") -> Iterator[Agent]:
    """An agent of the bench's own, on a free port; what is measured mostly costs as much
    as it can.

    Raises:
        RuntimeError: It did not start, or did not end well.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        state = Path(name) / "state"
        with (Path(name) / "log").open("w+") as log:
            process = subprocess.Popen(
                [
                    *AGENT,
                    *("--listen", "127.0.0.1:0", "--state-dir", str(state), "--budget", budget),
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                if not line.startswith("listening on "):
                    raise RuntimeError(f"the agent did not start: {_all(log)}")
                yield Agent(process.pid, line.removeprefix("listening on ").strip(), state)
                process.send_signal(signal.SIGTERM)
                if process.wait(30) != 0:
                    raise RuntimeError(f"the agent ended with {process.returncode}: {_all(log)}")
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()


def _all(log: Any) -> str:
    log.seek(0)
    return str(log.read())


def build_workload() -> Path:
    """Compile workload.c with gcc, as its header says; returns the program."""
    BUILT.mkdir(parents=True, exist_ok=True)
    program = BUILT / "workload"
    source = HERE / "workload.c"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        flags = ("-O2", "-g", "-Wall", "-Wextra", "-Werror")
        subprocess.run(["gcc", *flags, "-o", str(program), str(source)], check=True)
    return program


def fields(reply: str) -> dict[str, float]:
    """The `key=value` words of a target's answer."""
    pairs = (word.partition("=") for word in reply.split())
    return {key: float(value) for key, mark, value in pairs if mark}


def cpu_seconds(pid: int) -> float:
    """User and system time that a process and its threads have used so far."""
    # The command name may contain spaces and parentheses; fields follow the last one.
    columns = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(columns[11]) + int(columns[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Figures:
    """One bench's outcome.

    Attributes:
        name: Of the bench.
        header: Column titles of the table.
        rows: Its cells, ready to print.
        values: The same and more as numbers, for the JSON file.
        goals: What was to be reached: text, and whether it was.
        notes: How it was measured.
    """

    name: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    goals: list[tuple[str, bool]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """The table, the goals and the notes."""
        lines = [f"## {self.name}", "", _row(self.header), _row(["---"] * len(self.header))]
        lines += [_row(row) for row in self.rows]
        lines += ["", *(f"- {'reached' if ok else 'MISSED'}: {text}" for text, ok in self.goals)]
        lines += [f"- {note}" for note in self.notes]
        return "\n".join(lines) + "\n"

    def json(self) -> dict[str, Any]:
        """Everything, for the results file."""
        return asdict(self)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def median(values: Sequence[float]) -> float:
    """The median; NaN of nothing."""
    return statistics.median(values) if values else float("nan")


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cpus": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "load": " ".join(f"{value:.1f}" for value in os.getloadavg()),
    }


def finish(figures: Figures, as_json: bool) -> None:
    """Print a bench's outcome when it is run by itself."""
    print(json.dumps(figures.json(), indent=2) if as_json else figures.markdown())
