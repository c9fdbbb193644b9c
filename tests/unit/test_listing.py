"""Processes as /proc tells them: real ones, of every kind the agent refuses."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from uftrace_agent.errors import InvalidRequestError, NoSuchProcessError
from uftrace_agent.process.identity import boot_id, resolve, start_time_ticks, stat_fields
from uftrace_agent.process.listing import attachability, describe, list_processes
from uftrace_agent.session.types import ProcessId

READY = "print('ready', flush=True); sys.stdin.read()"


@contextlib.contextmanager
def child(code: str = "", **options) -> Iterator[subprocess.Popen[str]]:
    """A Python child that has run `code` and waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys\n{code}\n{READY}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )
    with process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


# Identity ---------------------------------------------------------------------


def test_boot_id_is_a_uuid():
    assert [len(part) for part in boot_id().split("-")] == [8, 4, 4, 4, 12]


def test_a_pid_alone_is_resolved_to_the_full_name():
    full = resolve(ProcessId(os.getpid()))
    assert full == ProcessId(os.getpid(), start_time_ticks(os.getpid()), boot_id())
    assert resolve(full) == full


def test_a_name_with_parentheses_and_spaces_does_not_confuse():
    name = "a) R (b 1 2"
    code = f"import pathlib; pathlib.Path('/proc/self/comm').write_text({name!r})"
    with child(code) as process:
        assert stat_fields(process.pid)[0] == name
        assert resolve(ProcessId(process.pid)).start_time_ticks >= start_time_ticks(os.getpid())
        assert describe(process.pid).command_name == name


@pytest.mark.parametrize(
    "wrong",
    [
        ProcessId(os.getpid(), start_time_ticks=1),
        ProcessId(os.getpid(), boot_id="00000000-0000-0000-0000-000000000000"),
    ],
)
def test_another_process_with_the_same_pid_is_not_it(wrong):
    with pytest.raises(NoSuchProcessError) as caught:
        resolve(wrong)
    assert caught.value.reason == "PID_REUSED"
    assert caught.value.hint


def test_a_process_that_ended_is_gone():
    with child() as process:
        named = resolve(ProcessId(process.pid))
    with pytest.raises(NoSuchProcessError) as caught:
        resolve(named)
    assert caught.value.reason == "NO_SUCH_PROCESS"
    for question in (start_time_ticks, describe, attachability):
        with pytest.raises(NoSuchProcessError):
            question(named.pid)


def test_a_thread_is_not_a_process():
    code = "import threading; threading.Thread(target=sys.stdin.read, daemon=True).start()"
    with child(code) as process:
        (thread,) = {int(t) for t in os.listdir(f"/proc/{process.pid}/task")} - {process.pid}
        with pytest.raises(NoSuchProcessError, match=f"thread of process {process.pid}"):
            resolve(ProcessId(thread))


@pytest.mark.parametrize("pid", [0, -5])
def test_a_pid_is_positive(pid):
    with pytest.raises(InvalidRequestError):
        resolve(ProcessId(pid))


# Listing ----------------------------------------------------------------------


def test_a_process_is_described():
    code = "import threading; threading.Thread(target=sys.stdin.read, daemon=True).start()"
    with child(code) as process:
        described = describe(process.pid)
        assert described.process == resolve(ProcessId(process.pid))
        assert described.command_line[0] == sys.executable
        assert Path(described.executable).samefile(f"/proc/{process.pid}/exe")
        assert described.uid == os.geteuid()
        assert described.thread_count == 2
        assert described.resident_bytes > 1 << 20
        assert described.attachable and described.refusal_reason == ""


def test_a_program_that_was_replaced_on_disk_keeps_its_path(tmp_path):
    program = tmp_path / "sleeper"
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([str(program), "60"]) as process:
        wait_until(lambda: describe(process.pid).executable == str(program))
        program.unlink()
        assert describe(process.pid).executable == str(program)
        process.kill()


def test_names_that_are_no_text_are_shown_as_well_as_they_can_be():
    code = "import ctypes, sys; ctypes.CDLL(None).prctl(15, b'\\xff\\xfe', 0, 0, 0)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}\n{READY}", b"\xff"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        described = describe(process.pid)
        assert described.command_name == "\ufffd\ufffd"
        assert described.command_line[-1] == "\ufffd"
        process.kill()


def test_all_are_listed_by_rising_pid():
    listed = list_processes()
    pids = [description.process.pid for description in listed]
    assert pids == sorted(pids)
    assert os.getpid() in pids


def test_the_list_is_narrowed_by_name_path_or_argument():
    with child("'a-very-special-argument'") as process:
        found = list_processes("a-very-special-argument")
        assert process.pid in {description.process.pid for description in found}
        assert len(found) < len(list_processes())
    assert list_processes(f"no-process-is-called-this-{os.getpid()}") == []


def test_processes_that_vanish_meanwhile_are_no_error():
    for _ in range(20):
        with subprocess.Popen(["/bin/true"]):
            list_processes()


# Refusals ---------------------------------------------------------------------


def test_the_agent_itself():
    assert attachability(os.getpid()) == "AGENT_ITSELF"


def test_zombies_are_listed_only_on_demand():
    process = subprocess.Popen(["/bin/true"])
    wait_until(lambda: stat_fields(process.pid)[1][0] == "Z")
    try:
        assert attachability(process.pid) == "ZOMBIE"
        assert describe(process.pid).command_line == ()
        assert process.pid not in {d.process.pid for d in list_processes()}
        listed = {d.process.pid: d for d in list_processes(include_unattachable=True)}
        assert not listed[process.pid].attachable
    finally:
        process.wait()


def test_kernel_threads():
    if not os.path.exists("/proc/2") or stat_fields(2)[0] != "kthreadd":
        # In a pid namespace of its own a process sees none.
        assert all(
            d.refusal_reason != "KERNEL_THREAD" for d in list_processes(include_unattachable=True)
        )
        return
    assert attachability(2) == "KERNEL_THREAD"
    assert 2 not in {d.process.pid for d in list_processes()}


def test_h66_a_traced_process():
    code = "import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0)"  # PTRACE_TRACEME
    with child(code) as process:
        assert attachability(process.pid) == "TRACED_BY_ANOTHER"


def test_h60_strict_seccomp():
    # PR_SET_SECCOMP, SECCOMP_MODE_STRICT: after it only read and write are left.
    code = "import ctypes, os; c = ctypes.CDLL(None); c.prctl(22, 1, 0, 0, 0)"
    program = f"{code}; os.write(1, b'ready\\n'); os.read(0, 1)"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        assert attachability(process.pid) == "SECCOMP_STRICT"
        process.send_signal(signal.SIGKILL)


def test_h36_a_32_bit_program(tmp_path):
    program = tmp_path / "pause32"
    program.write_bytes(elf32_that_pauses())
    program.chmod(0o755)
    with subprocess.Popen([str(program)]) as process:
        wait_until(lambda: describe(process.pid).command_name == "pause32")
        assert attachability(process.pid) == "PROCESS_32BIT"
        process.kill()


def test_h78_somebody_elses_process():
    if os.geteuid() != 0:
        assert attachability(1) == "PERMISSION_DENIED"
        return
    with child() as process:
        assert as_nobody(lambda: attachability(process.pid)) == "PERMISSION_DENIED"


def as_nobody(question: Callable[[], str | None]) -> str:
    """Answer a question in a forked child without any privilege."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # The child calls nothing that another thread could hold a lock of.
        warnings.simplefilter("ignore", DeprecationWarning)
        nobody = os.fork()
    if nobody == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            os.write(writer, (question() or "").encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as answer:
        said = answer.read()
    os.waitpid(nobody, 0)
    return said


# By machine, that of its 32-bit programs, their e_flags, and a loop that calls pause():
# mov $29,%eax; int $0x80; jmp, and mov r7,#29; svc 0; b.
PAUSES = {
    "x86_64": (3, 0, "b81d000000 cd80 ebf7"),
    "aarch64": (40, 0x05000000, "1d70a0e3 000000ef fcffffea"),
}


def elf32_that_pauses() -> bytes:
    """Make a 32-bit program of one instruction sequence: pause() for ever."""
    machine, flags, instructions = PAUSES[platform.machine()]
    code = bytes.fromhex(instructions)
    base, headers = 0x08048000, 52 + 32
    size = headers + len(code)
    ident = b"\x7fELF\x01\x01\x01" + bytes(9)
    header = ctypes.c_uint16 * 2
    words = [1, base + headers, 52, 0, flags]
    elf = ident + bytes(header(2, machine)) + bytes((ctypes.c_uint32 * 5)(*words))
    elf += bytes((ctypes.c_uint16 * 6)(52, 32, 1, 0, 0, 0))
    program = (ctypes.c_uint32 * 8)(1, 0, base, base, size, size, 5, 0x1000)
    return elf + bytes(program) + code
