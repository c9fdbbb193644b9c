"""The machine that the tests of this architecture run in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.arm.builds import build_service
from tests.arm.emulator import MachineError
from tests.arm.machine import Machine
from tests.support.waiting import wait_until
from tests.targets.build import build

# The first test may have to make the image.
pytestmark = pytest.mark.timeout(1800)

HWCAP_PACA, HWCAP2_BTI = 1 << 30, 1 << 17  # arch/arm64/include/uapi/asm/hwcap.h
AT_HWCAP, AT_HWCAP2 = 16, 26
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_GETREGSET, PTRACE_DETACH = 0x4206, 0x4207, 0x4204, 17
MEMBARRIER_REGISTER, MEMBARRIER_SYNC_CORE = 1 << 6, 1 << 5  # PRIVATE_EXPEDITED_SYNC_CORE
SYS_MEMBARRIER = 283


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine(forward=[8000]) as started:
        yield started


def test_it_is_aarch64_with_two_processors(machine: Machine) -> None:
    assert machine.run(["uname", "-m"]).output == "aarch64\n"
    assert machine.run(["nproc"]).output == "2\n"


def test_exit_statuses_signals_and_output_come_back(machine: Machine) -> None:
    ended = machine.run(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (ended.status, ended.output) == (7, "out\nerr\n")
    assert machine.run(["sh", "-c", "kill -SEGV $$"]).status == -signal.SIGSEGV
    assert machine.run(["no-such-program"]).status == 127
    assert (
        machine.run(
            ["-c.py", "3"], put={"-c.py": b"import sys; sys.exit(int(sys.argv[1]))"}, warm=True
        ).status
        == 3
    )


def test_files_go_in_and_come_back(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("content")
    put = {"here": tmp_path / "folder", "script": b"#!/bin/sh\ntr a-z A-Z <here/file >out\n"}
    with machine.start(["./script"], put=put, get=["out"]) as job:
        assert job.wait() == 0
    job.unpack(tmp_path)
    assert (tmp_path / "out").read_text() == "CONTENT"


def test_a_job_whose_reader_goes_away_ends(machine: Machine) -> None:
    with machine.start(["sh", "-c", "echo $$; sleep 1000"]) as job:
        job.wait_for("\n")
    pid = job.output.decode().strip()
    wait_until(lambda: machine.run(["test", "-d", f"/proc/{pid}"]).status == 1, timeout=60)


def test_an_overdue_job_fails_with_what_it_said(machine: Machine) -> None:
    with machine.start(["sh", "-c", "echo so far; sleep 1000"]) as job:
        job.wait_for("so far")
        with pytest.raises(MachineError, match=r"(?s)did not end in time.*so far.*console"):
            job.wait(timeout=0.1)


def test_ports_lead_into_the_machine(machine: Machine) -> None:
    server = ["-m", "http.server", "8000", "--bind", "0.0.0.0"]
    with machine.start(server, warm=True, put={"file": b"served"}) as job:
        job.wait_for("Serving HTTP")
        with urllib.request.urlopen(f"http://127.0.0.1:{machine.port(8000)}/file") as reply:
            assert reply.read() == b"served"


def test_machines_share_nothing(machine: Machine) -> None:
    with Machine() as other:
        assert other.pid != machine.pid
        assert other.run(["touch", "/tmp/mine"]).status == 0
        assert machine.run(["test", "-e", "/tmp/mine"]).status == 1
        draw = ["head", "-c", "16", "/dev/urandom"]
        assert other.run([*draw]).output != machine.run([*draw]).output


def test_a_machine_dies_with_its_owner() -> None:
    script = (
        "import time\n"
        "from tests.arm.machine import Machine\n"
        "with Machine() as machine:\n"
        "    print(machine.pid, flush=True)\n"
        "    time.sleep(1000)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        emulator = int(owner.stdout.readline())
        pidfd = os.pidfd_open(emulator)
        try:
            owner.kill()
            wait_until(lambda: _has_ended(pidfd), timeout=30)
        finally:
            os.close(pidfd)


def _has_ended(pidfd: int) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return True
    return False


def _python(machine: Machine, code: str) -> list[str]:
    done = machine.run(["script.py"], put={"script.py": code.encode()}, warm=True)
    assert done.status == 0, done.output
    return done.output.split()


def test_processors_sign_addresses_and_check_landing_pads(machine: Machine) -> None:
    code = (
        "import ctypes\n"
        "ask = ctypes.CDLL(None).getauxval\n"
        "ask.restype = ctypes.c_ulong\n"
        f"print(ask({AT_HWCAP}), ask({AT_HWCAP2}))\n"
    )
    first, second = map(int, _python(machine, code))
    assert first & HWCAP_PACA
    assert second & HWCAP2_BTI


def test_the_kernel_lets_registers_be_read_and_cores_be_synchronised(machine: Machine) -> None:
    code = f"""
import ctypes, os, signal, struct, subprocess
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
child = subprocess.Popen(["sleep", "1000"])
assert libc.ptrace({PTRACE_SEIZE}, child.pid, None, None) == 0
assert libc.ptrace({PTRACE_INTERRUPT}, child.pid, None, None) == 0
os.waitpid(child.pid, 0)
registers = ctypes.create_string_buffer(34 * 8)
vector = (ctypes.c_void_p * 2)(ctypes.addressof(registers), len(registers))
assert libc.ptrace({PTRACE_GETREGSET}, child.pid, 1, ctypes.addressof(vector)) == 0
pc = struct.unpack("<34Q", registers)[32]
assert libc.ptrace({PTRACE_DETACH}, child.pid, None, None) == 0
ranges = [line.split("-")[:2] for line in open(f"/proc/{{child.pid}}/maps")]
child.kill()
child.wait()
print(any(int(low, 16) <= pc < int(high.split()[0], 16) for low, high in ranges))
print(*(libc.syscall({SYS_MEMBARRIER}, command, 0, 0)
        for command in ({MEMBARRIER_REGISTER}, {MEMBARRIER_SYNC_CORE})))
"""
    assert _python(machine, code) == ["True", "0", "0"]


@pytest.mark.parametrize("variant", ["gcc-O2", "bti", "clang-O2", "musl"])
def test_programs_are_built_here_and_run_there(machine: Machine, variant: str) -> None:
    program = build("busy8", variant, "aarch64")
    with machine.start(
        ["sh", "-c", "(sleep 3; echo quit) | ./busy8"], put={"busy8": program}
    ) as job:
        assert job.wait() == 0
    assert b"\nok " in job.output


def test_a_guest_asks_for_programs(machine: Machine) -> None:
    with build_service() as builds:
        code = (
            "import subprocess, urllib.request\n"
            f"with urllib.request.urlopen('{builds}/storm/gcc-O2') as reply:\n"
            "    open('storm.tar', 'wb').write(reply.read())\n"
            "subprocess.run(['tar', 'xf', 'storm.tar'], check=True)\n"
            "print(subprocess.run(['./storm'], input=b'quit', capture_output=True).stdout)\n"
        )
        assert "ok" in " ".join(_python(machine, code))


@pytest.mark.parametrize(("variant", "guarded"), [("bti", True), ("pads", False)])
def test_only_programs_made_for_it_have_guarded_pages(
    machine: Machine, variant: str, guarded: bool
) -> None:
    script = (
        "mkfifo in; ./busy8 <in >out & exec 3>in\n"
        "until grep -q ready out; do sleep 0.1; done\n"
        "grep -A 30 'r-xp.*busy8' /proc/$!/smaps | grep -m 1 VmFlags; kill $!\n"
    )
    done = machine.run(["sh", "-c", script], put={"busy8": build("busy8", variant, "aarch64")})
    assert ("bt" in done.output.split()) is guarded, done.output
