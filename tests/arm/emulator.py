"""The emulator: its command line, its control channel, and a machine that sleeps in a file.

A boot takes half a minute, so it happens once: the memory of the booted guest is a file,
and the state of its devices another. Every machine starts from there, with a private view of the
memory: any number can run at once, and nothing that they do comes back.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.arm.image import Image, image

QEMU = "qemu-system-aarch64"
# QARMA, the architecture's own algorithm for pointer authentication, costs the emulator
# four times as much as all the rest of a boot. Any algorithm is allowed: the processor's own.
PROCESSOR = "max,pauth-impdef=on"
PROCESSORS = 2
MEMORY = "2G"
KERNEL_ARGUMENTS = "console=ttyAMA0 quiet panic=-1 mitigations=off nokaslr"
JOB_PORT = 7000
LISTENS = "the job server listens"
BOOT_SECONDS = 600
RESTORE_SECONDS = 120


class MachineError(RuntimeError):
    """A machine did not do what it must; the message ends with its console's last lines."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A booted machine that sleeps.

    Attributes:
        image: What it booted.
        memory: Its memory; sparse.
        state: Its devices.
    """

    image: Image
    memory: Path
    state: Path


class Emulator:
    """A qemu process. It dies with the thread that started it, however that ends."""

    def __init__(self, booted: Image, memory: Path, *, private: bool, ports: Sequence[int]) -> None:
        self._console = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # Machines must not outlive a test run that was killed.
                [
                    *("setpriv", "--pdeathsig", "KILL", QEMU),
                    *_devices(booted, memory, private, ports),
                    *("-chardev", f"socket,id=control,fd={theirs.fileno()}"),
                    *("-mon", "chardev=control,mode=control"),
                    *(("-incoming", "defer") if private else ()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._console,
                stderr=self._console,
                pass_fds=[theirs.fileno()],
            )
        self._control = control
        self._replies = control.makefile("r")
        try:
            self._reply()  # the greeting
            self.ask("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def console(self) -> str:
        """What the guest's console and qemu itself said so far."""
        size = os.fstat(self._console.fileno()).st_size
        return os.pread(self._console.fileno(), size, 0).decode(errors="replace")

    def error(self, what: str) -> MachineError:
        """An error that says how the console ended."""
        tail = self.console().splitlines()[-20:]
        return MachineError("\n  ".join([f"{what}; the console's last lines:", *tail]))

    def ask(self, command: str, **arguments: object) -> Any:
        """Send a command of the QEMU Machine Protocol and return the answer."""
        message = json.dumps({"execute": command, "arguments": arguments})
        try:
            self._control.sendall(f"{message}\n".encode())
        except OSError as error:
            raise self.error(f"qemu ended before {command}") from error
        while "return" not in (reply := self._reply()):
            if "error" in reply:
                raise self.error(f"{command}: {reply['error']['desc']}")
        return reply["return"]

    def _reply(self) -> dict[str, Any]:
        if not (line := self._replies.readline()):
            self._process.wait()
            raise self.error(f"qemu ended with status {self._process.returncode}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def migrate(self, command: str, uri: str, seconds: float) -> None:
        """Send or receive the state of the devices; memory stays where it is."""
        ignore = {"capability": "x-ignore-shared", "state": True}
        self.ask("migrate-set-capabilities", capabilities=[ignore])
        self.ask(command, uri=uri)
        deadline = time.monotonic() + seconds
        while (status := self.ask("query-migrate").get("status")) != "completed":
            if status == "failed" or time.monotonic() > deadline:
                raise self.error(f"{command}: {status}")
            time.sleep(0.01)

    def forwarded(self) -> dict[int, int]:
        """Ports of this host that lead to ports of the guest, by the latter."""
        listing = self.ask("human-monitor-command", **{"command-line": "info usernet"})
        lines = [line.split() for line in listing.splitlines() if "HOST_FORWARD" in line]
        return {int(line[5]): int(line[3]) for line in lines}

    def close(self) -> None:
        """End it at once: there is nothing in it that must be saved."""
        self._process.kill()
        self._process.wait()
        self._replies.close()
        self._control.close()
        self._console.close()


def snapshot() -> Snapshot:
    """Return the sleeping machine; boots it where there is none of this image yet."""
    booted = image()
    digest = hashlib.sha256(repr((_version(), PROCESSORS, MEMORY, KERNEL_ARGUMENTS)).encode())
    name = f"snapshot-{digest.hexdigest()[:12]}"
    memory, state = booted.folder / f"{name}.memory", booted.folder / f"{name}.state"
    with (booted.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not state.exists():
            print("arm: booting the guest (once; half a minute)", file=sys.stderr)
            memory.unlink(missing_ok=True)
            _boot(booted, memory, state)
    return Snapshot(booted, memory, state)


def restored(asleep: Snapshot, ports: Sequence[int]) -> Emulator:
    """Wake a copy of it, with ports of its own."""
    emulator = Emulator(asleep.image, asleep.memory, private=True, ports=ports)
    try:
        emulator.migrate(
            "migrate-incoming", f"exec:cat {shlex.quote(str(asleep.state))}", RESTORE_SECONDS
        )
        emulator.ask("cont")
    except BaseException:
        emulator.close()
        raise
    return emulator


def _boot(booted: Image, memory: Path, state: Path) -> None:
    emulator = Emulator(booted, memory, private=False, ports=[JOB_PORT])
    try:
        deadline = time.monotonic() + BOOT_SECONDS
        while LISTENS not in emulator.console():
            if not emulator.is_running:
                raise emulator.error("the guest ended while it booted")
            if time.monotonic() > deadline:
                raise emulator.error("the guest did not boot in time")
            time.sleep(0.1)
        emulator.ask("stop")
        unfinished = state.with_suffix(".unfinished")
        emulator.migrate("migrate", f"exec:cat >{shlex.quote(str(unfinished))}", BOOT_SECONDS)
        # Ends it in good order: what it has in memory is then in the file.
        emulator.ask("quit")
    finally:
        emulator.close()
    unfinished.rename(state)


def _devices(booted: Image, memory: Path, private: bool, ports: Sequence[int]) -> list[str]:
    share = "off" if private else "on"
    # Port 0: the kernel chooses one that is free.
    forwards = "".join(f",hostfwd=tcp:127.0.0.1:0-:{port}" for port in ports)
    return [
        *("-machine", "virt,memory-backend=memory", "-cpu", PROCESSOR),
        *("-accel", "tcg,thread=multi,tb-size=256", "-smp", str(PROCESSORS), "-m", MEMORY),
        *(
            "-object",
            f"memory-backend-file,id=memory,size={MEMORY},mem-path={memory},share={share}",
        ),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-kernel", str(booted.kernel), "-initrd", str(booted.initramfs)),
        *("-append", KERNEL_ARGUMENTS),
        *("-drive", f"file={booted.root},format=raw,if=none,id=root,readonly=on"),
        *("-device", "virtio-blk-device,drive=root"),
        *("-netdev", f"user,id=network{forwards}", "-device", "virtio-net-device,netdev=network"),
    ]


def _version() -> str:
    try:
        done = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise MachineError(f"no {QEMU} here; scripts/apt-packages.txt has its package") from None
    return done.stdout.splitlines()[0]
