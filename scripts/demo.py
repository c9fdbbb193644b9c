#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`make demo`: traces a server that runs, live, and proves that nothing stays behind.

Exits 0 only if the server's code is as before, nobody traces it any more, calls
were recorded and every record is accounted for.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import re
import select
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

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "scripts" / "demo_server.c"
# As distributions build; the server is no special program.
COMPILER_FLAGS = ("-O2", "-fcf-protection", "-pthread")

FUNCTIONS = (
    *("*_request", "*_order", "*_response", "*_string", "*_json"),
    *("db_*", "cache_*", "disk_*", "authenticate", "hash_*"),
)
LIVE_SECONDS, RECORD_SECONDS = 4, 2
SHOWN_REQUESTS, SHOWN_LINES = 3, 60
# What is shorter is the rest of a request that was under way.
REQUEST_LINES = 8
PATIENCE_SECONDS = 20.0

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_PTRACER = 0x59616D61
PR_SET_PTRACER_ANY = -1
CAP_SYS_PTRACE = 19

_MODULES = {"uftrace-agent": "uftrace_agent.cli", "uftrace-remote": "uftrace_remote.cli.main"}
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
_TREE_LINE = re.compile(r".*\[ *(?P<tid>\d+)\] \| (?P<indent> *)(?P<call>\S.*)")


class DemoError(Exception):
    """The demo cannot go on; the message is for people."""


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


def say(text: str = "", *, error: bool = False) -> None:
    """Prints a line before whatever a child process prints next."""
    print(text, file=sys.stderr if error else sys.stdout, flush=True)


def step(text: str) -> None:
    """Announces what comes, in words."""
    bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
    say(f"\n{bold}{text}{plain}")


def command_line(name: str) -> list[str]:
    """The console script beside this interpreter, or what it would run."""
    script = Path(sys.executable).parent / name
    if script.is_file():
        return [str(script)]
    return [sys.executable, "-c", f"from {_MODULES[name]} import main; main()"]


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
        binary = self._compile(folder)
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

    def _compile(self, folder: Path) -> Path:
        binary = folder / "order-server"
        compiler = ["cc"] if shutil.which("cc") else [sys.executable, "-m", "ziglang", "cc"]
        # Without it zig would leave a cache in the home directory.
        cache = {"ZIG_GLOBAL_CACHE_DIR": str(folder), "ZIG_LOCAL_CACHE_DIR": str(folder)}
        flags = [*COMPILER_FLAGS, "-o", str(binary), str(SOURCE)]
        typed = ["python", *compiler[1:]] if "ziglang" in compiler else compiler
        say(f"$ {shlex.join([*typed, *flags[:-1], str(SOURCE.relative_to(ROOT))])}")
        done = subprocess.run([*compiler, *flags], env={**os.environ, **cache})
        if done.returncode:
            raise DemoError("the compiler failed; `make setup` as root installs gcc")
        return binary

    def _start_agent(self, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
        state = folder / "agent"
        self.environment["UFTRACE_STATE_DIR"] = str(state)
        arguments = ["--listen", "127.0.0.1:0", "--state-dir", str(state)]
        say(f"$ {shlex.join(['uftrace-agent', *arguments])} &")
        log = folder / "agent.log"
        agent = self._start([*command_line("uftrace-agent"), *arguments], log)
        line = read_line(agent)
        address = line.partition("listening on ")[2]
        if not address:
            raise DemoError(f"the agent did not start\n{log.read_text(errors='replace')}")
        say(line)
        say(f"$ export UFTRACE_STATE_DIR={state}")
        return agent, address

    def _start_server(self, folder: Path, binary: Path) -> subprocess.Popen[bytes]:
        say(f"$ {shlex.quote(str(binary))} &")
        server = self._start([str(binary)], folder / "server.log")
        line = read_line(server)
        if "running" not in line:
            raise DemoError("the server did not start")
        say(line)
        return server

    # Both run apart from the terminal's Ctrl-C, since it is for the demo to end
    # them, and end with it even if it is killed.
    def _start(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        libc = ctypes.CDLL(None)

        def prepare() -> None:
            libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
            # With Yama's ptrace_scope=1 only ancestors may trace, unless the
            # process itself says otherwise.
            libc.prctl(PR_SET_PTRACER, ctypes.c_ulong(PR_SET_PTRACER_ANY), 0, 0, 0)

        with log.open("wb") as errors:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self.environment,
                start_new_session=True,
                preexec_fn=prepare,
            )
        self.cleanup.callback(end, process)
        return process

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


@dataclass(frozen=True)
class Text:
    """All code of a process that comes from files, byte for byte: start address to bytes."""

    mappings: dict[int, bytes]

    @classmethod
    def of(cls, pid: int) -> Text:
        """Reads it through /proc/PID/mem."""
        found = {}
        try:
            with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                    bounds, flags, _, _, inode = line.split()[:5]
                    start, end = (int(bound, 16) for bound in bounds.split("-"))
                    if "x" in flags and inode != "0":
                        found[start] = os.pread(memory.fileno(), end - start, start)
        except PermissionError as error:
            raise DemoError(f"the server's memory cannot be read{advice()}") from error
        return cls(found)

    def differences(self, other: Text) -> int:
        """How many bytes differ; what is mapped in one only counts in full."""
        count = 0
        for start in self.mappings.keys() | other.mappings.keys():
            ours, theirs = self.mappings.get(start, b""), other.mappings.get(start, b"")
            if ours != theirs:
                count += abs(len(ours) - len(theirs))
                count += sum(a != b for a, b in zip(ours, theirs, strict=False))
        return count

    def __str__(self) -> str:
        return (
            f"{sum(map(len, self.mappings.values())):,} bytes in {len(self.mappings)} mapped files"
        )


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


def lines_of(reader: int) -> Iterator[str]:
    """The lines that come out of a pipe or terminal until its other end closes."""
    pending = b""
    while True:
        try:
            chunk = os.read(reader, 65536)
        except OSError:  # a terminal that nobody writes to any more
            chunk = b""
        if not chunk:
            return
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r").decode(errors="replace")


def read_line(process: subprocess.Popen[bytes]) -> str:
    """The first line that a program prints; empty if it ends or says nothing."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], PATIENCE_SECONDS)[0]:
        return ""
    return process.stdout.readline().decode(errors="replace").strip()


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a program that may have ended already, kindly first."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def threads_traced_or_stopped(pid: int) -> list[int]:
    """The threads that a tracer still has or that do not run."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if status_of(task, "TracerPid") != "0" or status_of(task, "State")[0] in "tT":
                found.append(int(task.name))
    return found


def status_of(process: Path, name: str) -> str:
    """A line of a process's status file."""
    for line in (process / "status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return ""


def ptrace_scope() -> int:
    """What Yama allows: 0 all of one's own, 1 descendants, 2 with CAP_SYS_PTRACE, 3 nothing."""
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except (FileNotFoundError, PermissionError):
        return 0


def may_trace_everything() -> bool:
    """Whether we have CAP_SYS_PTRACE."""
    return bool(int(status_of(Path("/proc/self"), "CapEff"), 16) >> CAP_SYS_PTRACE & 1)


def explain_if_tracing_is_forbidden() -> None:
    """Ends the demo before it begins where the kernel would refuse it."""
    scope = ptrace_scope()
    if scope >= 3:
        raise DemoError("this kernel lets nobody trace until it boots anew (Yama's ptrace_scope=3)")
    if scope == 2 and not may_trace_everything():
        raise DemoError(f"only root may trace here (Yama's ptrace_scope=2){advice()}")


def advice() -> str:
    """What may stand against tracing here, to be put behind an error."""
    found = []
    if not may_trace_everything():
        found.append("run the demo as root (sudo make demo)")
        if ptrace_scope():
            found.append("allow tracing: sudo sysctl kernel.yama.ptrace_scope=0")
    if status_of(Path("/proc/self"), "Seccomp") == "2":
        found.append(
            "in a container, start it with --security-opt seccomp=unconfined --cap-add SYS_PTRACE"
        )
    return "; try this:\n  " + "\n  ".join(found) if found else ""


if __name__ == "__main__":
    sys.exit(main())
