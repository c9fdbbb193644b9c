# SPDX-License-Identifier: Apache-2.0
"""The compilers for an architecture: this machine's own, or those of this machine for another.

What Debian's cross-compilers lack comes from its arm64 packages: clang's runtime of XRay, the
libraries of Rust and of Python, and musl.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.arm.packages import CACHE, download, unpack
from tests.targets.recipes import MACHINE

GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Toolchain:
    """The compilers that make programs for one architecture."""

    machine: str

    @property
    def go_architecture(self) -> str:
        return GO_NAMES[self.machine]

    def command(self, tool: str) -> list[str]:
        """How the tool of that name is called."""
        if self.machine == MACHINE or tool == "go":
            return [tool]
        triple = f"{self.machine}-linux-gnu"
        if tool == "musl-gcc":
            return [f"{triple}-gcc", f"-specs={_musl_specs()}"]
        if tool in ("clang", "clang++"):
            return [tool, f"--target={triple}", f"-resource-dir={_clang_resources()}"]
        if tool == "rustc":
            target = ["--target", f"{self.machine}-unknown-linux-gnu"]
            # Debian's: the library is that of its version.
            return [
                "/usr/bin/rustc",
                *target,
                "--sysroot",
                str(_unpacked("libstd-rust-dev") / "usr"),
                "-C",
                f"linker={triple}-gcc",
            ]
        return [f"{triple}-{tool}"]

    def flags(self, packages: Sequence[str]) -> list[str]:
        """What the compiler has to be told of libraries that come from these packages."""
        if self.machine == MACHINE or not packages:
            return []
        usr = _unpacked(*packages) / "usr"
        libraries = usr / "lib" / f"{self.machine}-linux-gnu"
        return [f"-idirafter{usr}/include", f"-L{libraries}", f"-Wl,-rpath-link,{libraries}"]


def toolchain(machine: str) -> Toolchain:
    """The compilers for ``machine``."""
    if machine not in (MACHINE, "aarch64"):
        raise ValueError(f"no compilers for {machine} on {MACHINE}")
    return Toolchain(machine)


@functools.cache
def _clang_resources() -> Path:
    # The folder of clang's own headers and runtimes, with the runtimes of arm64.
    version = _first_line("clang", "-dumpversion").partition(".")[0]
    runtimes = next(_unpacked(f"libclang-rt-{version}-dev").glob("usr/lib/llvm-*/lib/clang/*"))
    if not (runtimes / "include/stddef.h").exists():
        own = Path(_first_line("clang", "-print-resource-dir"), "include")
        shutil.copytree(own, runtimes / "include", dirs_exist_ok=True)
    return runtimes


@functools.cache
def _musl_specs() -> Path:
    # They name the folders of an installed musl.
    usr = _unpacked("musl-dev", "musl-tools") / "usr"
    specs = usr / "musl-gcc.specs"
    if not specs.exists():
        installed = next(usr.glob("lib/*/musl-gcc.specs")).read_text()
        specs.write_text(re.sub(r"/usr/(?=lib/|include/)", f"{usr}/", installed))
    return specs


@functools.cache
def _unpacked(*packages: str) -> Path:
    folder = CACHE / f"unpacked-{packages[0]}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            unpack(download(packages), Path(scratch, "root"))
            with contextlib.suppress(OSError):  # another process was faster
                Path(scratch, "root").rename(folder)
    return folder


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]
