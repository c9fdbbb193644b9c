#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`make demo`: traces a server that runs, live, and proves that nothing stays behind.

Exits 0 only if the server's code is as before, nobody traces it any more, calls
were recorded and every record is accounted for.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

from demo_support import (
    PATIENCE_SECONDS,
    ROOT,
    DemoError,
    Text,
    advice,
    command_line,
    compile_server,
    explain_if_tracing_is_forbidden,
    lines_of,
    read_line,
    say,
    start,
    step,
    threads_traced_or_stopped,
)

FUNCTIONS = (
    *("*_request", "*_order", "*_response", "*_string", "*_json"),
    *("db_*", "cache_*", "disk_*", "authenticate", "hash_*"),
)
LIVE_SECONDS, RECORD_SECONDS = 4, 2
SHOWN_REQUESTS, SHOWN_LINES = 3, 60
# What is shorter is the rest of a request that was under way.
REQUEST_LINES = 8

_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
_TREE_LINE = re.compile(r".*\[ *(?P<tid>\d+)\] \| (?P<indent> *)(?P<call>\S.*)")


def main() -> int:
    """Runs the demo; the exit status."""
    parser = argparse.ArgumentParser(description="Trace a running server, live.")
    parser.add_argument("--output", type=Path, default=ROOT / "demo-out", metavar="DIR")
    output = parser.parse_args().output
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with ExitStack() as cleanup:
            return Demo(output, cleanup).run()
    except DemoError as error:
        say(f"\ndemo: {error}", error=True)
        return 1
    except KeyboardInterrupt:
        say("\ndemo: interrupted; everything was cleaned up", error=True)
        return 130


# Ends the demo the way Ctrl-C does: through the cleanup.
def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@dataclass
class Demo:
    """One run: the programs that it starts, and what it found."""

    output: Path
    cleanup: ExitStack
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    target: str = ""
    failures: list[str] = field(default_factory=list)

    def run(self) -> int:
        """All steps; the exit status."""
        explain_if_tracing_is_forbidden()
        folder = Path(self.cleanup.enter_context(tempfile.TemporaryDirectory(prefix="demo-")))
        self._clear_output()

        step("An order server with four threads, compiled like any other program:")
        binary = compile_server(folder)
        step("An agent of our own, on a free port, with keys and token in a folder of its own:")
        agent, address = self._start_agent(folder)
        step("The server starts. Nobody traces it yet.")
        server = self._start_server(folder, binary)
        self.target = f"{address}:{server.pid}"
        before = Text.of(server.pid)
        say(f"its code: {before}")

        step("What there is to trace:")
        self._uftrace("functions", self.target, *FUNCTIONS)
        step("Patch these functions while it runs:")
        self._uftrace("patch", self.target, *FUNCTIONS)
        changed = before.differences(Text.of(server.pid))
        say(f"its code now: {changed} bytes differ from before")
        step(f"Watch it for {LIVE_SECONDS} seconds:")
        self._live()
        step(f"Record it for {RECORD_SECONDS} seconds:")
        trace = self.output / "trace"
        self._uftrace("record", self.target, *FUNCTIONS, "-d", str(RECORD_SECONDS), "-o", trace)
        step("Leave it as it was:")
        self._uftrace("unpatch", self.target)
        self._uftrace("detach", self.target)
        self._prove_untouched(server.pid, before, patched=changed > 0)
        self._stop(server, "the server")
        self._stop(agent, "the agent")

        step("Where did the time go?")
        self._uftrace("report", trace)
        self._check_counts(trace)
        step("The same trace for other tools:")
        self._export("uftrace", "uftrace")
        self._export("flamegraph", "flamegraph.svg")
        self._export("chrome", "chrome.json")
        return self._conclude()

    # -- programs ----------------------------------------------------------

    def _start_agent(self, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
        state = folder / "agent"
        self.environment["UFTRACE_STATE_DIR"] = str(state)
        arguments = ["--listen", "127.0.0.1:0", "--state-dir", str(state)]
        say(f"$ {shlex.join(['uftrace-agent', *arguments])} &")
        log = folder / "agent.log"
        agent = start(
            [*command_line("uftrace-agent"), *arguments], log, self.environment, self.cleanup
        )
        line = read_line(agent)
        address = line.partition("listening on ")[2]
        if not address:
            raise DemoError(f"the agent did not start\n{log.read_text(errors='replace')}")
        say(line)
        say(f"$ export UFTRACE_STATE_DIR={state}")
        return agent, address

    def _start_server(self, folder: Path, binary: Path) -> subprocess.Popen[bytes]:
        say(f"$ {shlex.quote(str(binary))} &")
        server = start([str(binary)], folder / "server.log", self.environment, self.cleanup)
        line = read_line(server)
        if "running" not in line:
            raise DemoError("the server did not start")
        say(line)
        return server

    def _stop(self, process: subprocess.Popen[bytes], name: str) -> None:
        process.send_signal(signal.SIGTERM)
        try:
            last, _ = process.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.failures.append(f"{name} did not end")
            return
        words = last.decode(errors="replace").strip()
        say(f"{name} ended with status {process.returncode}" + (f": {words}" if words else ""))
        if process.returncode:
            self.failures.append(f"{name} ended with status {process.returncode}")

    def _uftrace(self, *arguments: str | Path) -> None:
        command = self._announced(arguments)
        if subprocess.run(command, env=self.environment, stdin=subprocess.DEVNULL).returncode:
            raise DemoError(f"`uftrace-remote {arguments[0]}` failed{advice()}")

    def _announced(self, arguments: Sequence[str | Path]) -> list[str]:
        words = [self._shown(each) for each in arguments]
        say(f"$ {shlex.join(['uftrace-remote', *words])}")
        return [*command_line("uftrace-remote"), *map(str, arguments)]

    # Paths as one would type them in the project's folder.
    def _shown(self, argument: str | Path) -> str:
        if isinstance(argument, Path) and argument.is_relative_to(Path.cwd()):
            return str(argument.relative_to(Path.cwd()))
        return str(argument)

    # -- steps -------------------------------------------------------------

    # The server handles more than a thousand requests a second: a few of them,
    # evenly over the time, are what a person can read. Every other one that is
    # shown has to wait for the disk, which most do not.
    def _live(self) -> None:
        arguments = ("live", self.target, *FUNCTIONS, "-d", str(LIVE_SECONDS))
        command = self._announced(arguments)
        requests = Requests()
        shown = lines = 0
        started = time.monotonic()
        for line in self._output_of(command):
            request = requests.add(line)
            if line.startswith("#"):
                say(line)
            due = started + (shown + 0.5) * LIVE_SECONDS / SHOWN_REQUESTS
            if request is None or time.monotonic() < due or lines + len(request) > SHOWN_LINES:
                continue
            if any("disk_read" in each for each in request) != bool(shown % 2):
                continue
            say("\n".join(request))
            shown += 1
            lines += len(request)
        say(f"(shown here: {shown} of {requests.count:,} requests; `live` prints them all)")
        self.failures += [] if shown else ["no request was seen live"]

    # A terminal where we have one, so that the tree is in colour.
    def _output_of(self, command: Sequence[str]) -> Iterator[str]:
        reader, writer = os.openpty() if sys.stdout.isatty() else os.pipe()
        try:
            with subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=writer
            ) as process:
                os.close(writer)
                try:
                    yield from lines_of(reader)
                except BaseException:
                    process.send_signal(signal.SIGINT)
                    raise
        finally:
            os.close(reader)
        if process.returncode:
            raise DemoError(f"`uftrace-remote live` failed{advice()}")

    def _prove_untouched(self, pid: int, before: Text, *, patched: bool) -> None:
        after = Text.of(pid)
        left = before.differences(after)
        traced = threads_traced_or_stopped(pid)
        say(f"its code: {after}: {left} bytes differ from before; {len(traced)} threads traced")
        if not patched:
            self.failures.append("patching changed nothing")
        if left:
            self.failures.append(f"{left} bytes of the server's code are not as before")
        if traced:
            self.failures.append(f"threads are traced or stopped: {traced}")

    def _check_counts(self, trace: Path) -> None:
        counts = json.loads((trace / "trace.json").read_text())
        produced, delivered, lost = counts["produced"], counts["records"], counts["lost"]
        if not delivered:
            self.failures.append("nothing was recorded")
        if produced != delivered + lost or not counts["exact"]:
            self.failures.append(f"{produced} produced is not {delivered} delivered + {lost} lost")

    def _export(self, form: str, name: str) -> None:
        path = self.output / name
        self._uftrace("export", self.output / "trace", "--format", form, "-o", path)
        if not path.exists():
            self.failures.append(f"{path} was not written")

    def _conclude(self) -> int:
        where = self._shown(self.output)
        step("Look at it:")
        say(f"  {where}/flamegraph.svg   in a web browser")
        say(f"  {where}/chrome.json      at https://ui.perfetto.dev or chrome://tracing")
        say(f"  uftrace replay -d {where}/uftrace   (or report, graph, tui)")
        say(f"  uftrace-remote replay {where}/trace | less")
        if sys.prefix != sys.base_prefix:
            say(f"The commands are in {self._shown(Path(sys.executable).parent)}.")
        if not self.failures:
            say("\nAll checks passed: the server ran on, and its code is as it was.")
            return 0
        for failure in self.failures:
            say(f"FAILED: {failure}", error=True)
        return 1

    # Only what an earlier run of ours left.
    def _clear_output(self) -> None:
        try:
            self.output = self.output.absolute()
            self.output.mkdir(parents=True, exist_ok=True)
            for name in ("trace", "uftrace"):
                shutil.rmtree(self.output / name, ignore_errors=True)
            for name in ("flamegraph.svg", "chrome.json"):
                (self.output / name).unlink(missing_ok=True)
        except OSError as error:
            raise DemoError(f"cannot write there: {error}; use --output DIR") from error


class Requests:
    """Puts the lines of `live` together again: one outermost call, of one thread."""

    def __init__(self) -> None:
        self.count = 0
        self._open: dict[str, list[str]] = {}

    def add(self, line: str) -> list[str] | None:
        """Takes the next line; a whole request when it ends with that line."""
        match = _TREE_LINE.fullmatch(_ESCAPE.sub("", line))
        if match is None:
            return None
        tid, outermost = match["tid"], not match["indent"]
        if outermost and match["call"].endswith("{"):
            self._open[tid] = []
        self._open.setdefault(tid, []).append(line)
        if not outermost or not match["call"].startswith("}"):
            return None
        request = self._open.pop(tid)
        whole = len(request) >= REQUEST_LINES
        self.count += whole
        return request if whole else None


if __name__ == "__main__":
    sys.exit(main())
