# SPDX-License-Identifier: Apache-2.0
"""What the demos share: programs that end with them, and the proof that nothing stays behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "scripts" / "demo_server.c"
# As distributions build; the server is no special program.
COMPILER_FLAGS = ("-O2", "-fcf-protection", "-pthread")
PATIENCE_SECONDS = 20.0

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_PTRACER = 0x59616D61
PR_SET_PTRACER_ANY = -1
CAP_SYS_PTRACE = 19

_MODULES = {"uftrace-agent": "uftrace_agent.cli", "uftrace-remote": "uftrace_remote.cli.main"}


class DemoError(Exception):
    """The demo cannot go on; the message is for people."""


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


def compile_server(folder: Path) -> Path:
    """Compiles the sample server, as anybody would."""
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


def start(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    cleanup: ExitStack,
    *,
    wrapper: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    """Starts a program that lives no longer than the demo; what it says on stderr goes to `log`."""
    # Both run apart from the terminal's Ctrl-C, since it is for the demo to end
    # them, and end with it even if it is killed.
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        # With Yama's ptrace_scope=1 only ancestors may trace, unless the
        # process itself says otherwise.
        libc.prctl(PR_SET_PTRACER, ctypes.c_ulong(PR_SET_PTRACER_ANY), 0, 0, 0)

    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*wrapper, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=prepare,
        )
    cleanup.callback(end, process)
    return process


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
