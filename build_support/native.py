"""Builds the native runtimes with the `ziglang` package: no system compiler needed.

Two kinds of output, each for both architectures:

    target-ARCH.elf             runs inside the target. Freestanding, linked at
                                address 0 by runtime/target/blob.ld and
                                position-independent: the agent copies its
                                sections anywhere and finds entry points by symbol.
    libuftrace_host-ARCH.so     runs inside the agent, through ctypes.

Run `python -m build_support.native [OUTPUT...]` for the same by hand.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from build_support.freshness import is_fresh

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = ROOT / "server" / "uftrace_agent" / "runtime"
# Zig keeps compiled libc parts and objects here instead of in $HOME.
CACHE = Path(os.environ.get("ZIG_GLOBAL_CACHE_DIR", ROOT / "build" / "zig-cache"))

ARCHITECTURES = ("x86_64", "aarch64")

HOST_FLAGS = (
    "-D_GNU_SOURCE",
    "-fvisibility=hidden",
    "-pthread",
    "-O2",
    "-g0",
    "-std=c11",
    "-fPIC",
    "-Wall",
    "-Wextra",
    "-Werror",
)
HOST_LINK_FLAGS = ("-shared", "-Wl,--no-gc-sections")
# The oldest glibc that the agent runs on (Debian 10, RHEL 8).
HOST_GLIBC = "2.28"

TARGET_FLAGS = (
    "-O2",
    "-g0",
    "-std=c11",
    "-ffreestanding",
    # Everything is reached relative to the program counter: no relocations
    # are left, wherever the blob is mapped.
    "-fpie",
    "-fvisibility=hidden",
    # There is no TLS, so no canary; no vector registers, so the program's
    # floating point state needs no saving.
    "-fno-stack-protector",
    "-mgeneral-regs-only",
    "-fomit-frame-pointer",
    "-fno-asynchronous-unwind-tables",
    "-fno-unwind-tables",
    # The compiler may not turn our loops into calls of a libc that is not there.
    "-fno-builtin",
    # Zig adds the undefined behaviour sanitizer unless told otherwise.
    "-fno-sanitize=all",
    "-Wall",
    "-Wextra",
    "-Werror",
)
TARGET_FLAGS_BY_ARCHITECTURE = {
    "x86_64": ("-fcf-protection=none",),
    "aarch64": ("-mbranch-protection=none", "-mno-outline-atomics", "-ffixed-x18"),
}
TARGET_LINK_FLAGS = (
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none",
    # Entry points are called by the agent alone: nothing refers to them.
    "-Wl,--no-gc-sections",
    "-Wl,-e,0",
)


@dataclass(frozen=True, slots=True)
class Output:
    """One native file.

    Attributes:
        name: File name in the output folder.
        triple: Zig's name of the platform.
        sources: C and assembly files.
        depends_on: Headers and linker scripts beside them.
        compile_flags: For each source.
        link_flags: For the whole.
    """

    name: str
    triple: str
    sources: Sequence[Path]
    depends_on: Sequence[Path]
    compile_flags: Sequence[str]
    link_flags: Sequence[str]


def outputs() -> list[Output]:
    """The table of outputs whose sources exist."""
    return [
        *(_host_library(arch) for arch in ARCHITECTURES if any(RUNTIME.glob("host/*.c"))),
        *(_target_blob(arch) for arch in ARCHITECTURES if (RUNTIME / f"target/{arch}.S").exists()),
    ]


def build_native(out_dir: Path, only: Collection[str] | None = None) -> list[Path]:
    """Build what is older than its sources.

    Args:
        out_dir: Where the files go; made where it is missing.
        only: Names of outputs; all where it is None.

    Returns:
        The files, whether they had to be built or not.

    Raises:
        subprocess.CalledProcessError: The compiler or linker failed and has
            said why.
        ValueError: `only` names something that is not built here.
    """
    table = {output.name: output for output in outputs()}
    if unknown := set(only or ()) - set(table):
        raise ValueError(f"no such native output: {', '.join(sorted(unknown))}")
    out_dir.mkdir(parents=True, exist_ok=True)
    return [_build(table[name], out_dir) for name in (only if only is not None else table)]


def _host_library(arch: str) -> Output:
    return Output(
        name=f"libuftrace_host-{arch}.so",
        triple=f"{arch}-linux-gnu.{HOST_GLIBC}",
        sources=sorted(RUNTIME.glob("host/*.c")),
        depends_on=sorted(RUNTIME.glob("*/*.h")),
        compile_flags=HOST_FLAGS,
        link_flags=HOST_LINK_FLAGS,
    )


def _target_blob(arch: str) -> Output:
    script = RUNTIME / "target" / "blob.ld"
    return Output(
        name=f"target-{arch}.elf",
        triple=f"{arch}-linux-none",
        sources=[*sorted(RUNTIME.glob("target/*.c")), RUNTIME / "target" / f"{arch}.S"],
        depends_on=[*sorted(RUNTIME.glob("*/*.h")), script],
        compile_flags=(*TARGET_FLAGS, *TARGET_FLAGS_BY_ARCHITECTURE[arch]),
        link_flags=(*TARGET_LINK_FLAGS, f"-Wl,-T,{script}"),
    )


def _build(output: Output, out_dir: Path) -> Path:
    path = out_dir / output.name
    if is_fresh([path], [*output.sources, *output.depends_on, Path(__file__)]):
        return path
    objects_dir = ROOT / "build" / "native" / output.name
    objects_dir.mkdir(parents=True, exist_ok=True)
    # Objects first, then the link: given both at once, zig makes a
    # position-independent *executable* of -fpie, with a dynamic section.
    objects = [objects_dir / (source.name + ".o") for source in output.sources]
    for source, compiled in zip(output.sources, objects, strict=True):
        _zig_cc(output, *output.compile_flags, "-c", str(source), "-o", str(compiled))
    # A concurrent reader sees the old file or the new one, never half of one.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    _zig_cc(output, *output.link_flags, *map(str, objects), "-o", str(unfinished))
    unfinished.rename(path)
    return path


def _zig_cc(output: Output, *arguments: str) -> None:
    environment = {
        **os.environ,
        "ZIG_LOCAL_CACHE_DIR": str(CACHE),
        "ZIG_GLOBAL_CACHE_DIR": str(CACHE),
    }
    subprocess.run(
        [sys.executable, "-m", "ziglang", "cc", "-target", output.triple, *arguments],
        check=True,
        env=environment,
    )


if __name__ == "__main__":
    for built in build_native(RUNTIME / "_built", sys.argv[1:] or None):
        print(built)
