# SPDX-License-Identifier: Apache-2.0
"""How the programs of this folder are built: tables, for each architecture.

What is assembly of one architecture, or uses what only one has, says so (``machines``).
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEFAULT = "gcc-O2"
MACHINE = platform.machine()
BOTH = ("x86_64", "aarch64")
X86_64 = ("x86_64",)
AARCH64 = ("aarch64",)
COMMON = ("-Wall", "-Wextra", "-pthread")
XRAY = ("-fxray-instrument", "-fxray-instruction-threshold=1")
# Past the driver, which then does not link XRay's runtime.
XRAY_BARE = tuple(word for flag in XRAY for word in ("-Xclang", flag))
# For guarded pages every object of a program has to be made for them, and Debian's start
# files are not: the C library starts constructors without them. libgcc is not either; its
# functions are only called directly, which needs no pads, but for a constructor that comes
# with atomic instructions.
_PADS = ("-mbranch-protection=standard", "-mno-outline-atomics")
_GUARDED = ("-nostartfiles", str(HERE / "start_aarch64.S"), "-Wl,-z,force-bti")
EXPECTED_WARNING = "BTI turned on by -z force-bti"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to build a program.

    Attributes:
        cc: The C compiler (also for assembly).
        cxx: The C++ compiler, or None where C++ cannot be built.
        flags: Flags for compiling and linking.
        link: Flags for linking alone.
        strip: Whether symbols are removed afterwards.
        opt: The optimisation level that sources see as ``OPT_LEVEL``.
        machines: The architectures that have it.
    """

    cc: str = "gcc"
    cxx: str | None = "g++"
    flags: tuple[str, ...] = ("-O2",)
    link: tuple[str, ...] = ()
    strip: bool = False
    opt: int = 2
    machines: tuple[str, ...] = BOTH


def _gcc(
    *flags: str,
    link: tuple[str, ...] = (),
    strip: bool = False,
    opt: int = 2,
    machines: tuple[str, ...] = BOTH,
) -> Variant:
    return Variant("gcc", "g++", (f"-O{opt}", *flags), link, strip, opt, machines)


def _clang(
    *flags: str, link: tuple[str, ...] = (), opt: int = 2, machines: tuple[str, ...] = BOTH
) -> Variant:
    return Variant("clang", "clang++", (f"-O{opt}", *flags), link, False, opt, machines)


VARIANTS: dict[str, Variant] = {
    "gcc-O0": _gcc(opt=0),
    "gcc-O1": _gcc(opt=1),
    "gcc-O2": _gcc(),
    "gcc-O3": _gcc(opt=3),
    "clang-O0": _clang(opt=0),
    "clang-O2": _clang(),
    "cet": _gcc("-fcf-protection=full", machines=X86_64),
    # Landing pads and signed return addresses, as distributions build for arm64.
    "pads": _gcc("-mbranch-protection=standard", machines=AARCH64),
    "pac": _gcc("-mbranch-protection=pac-ret+leaf", machines=AARCH64),
    # The same in pages that the processor guards: jumps must land on pads.
    "bti": _gcc(*_PADS, link=_GUARDED, machines=AARCH64),
    "clang-bti": _clang(*_PADS, link=_GUARDED, machines=AARCH64),
    "bti-pfe2": _gcc(
        *("-fpatchable-function-entry=2", *_PADS),
        link=_GUARDED,
        machines=AARCH64,
    ),
    "nopie": _gcc("-fno-pie", link=("-no-pie",)),
    "static": _gcc("-fno-pie", link=("-static",)),
    "static-pie": _gcc("-fPIE", link=("-static-pie",)),
    "musl": Variant("musl-gcc", None, ("-O2", "-fno-pie"), ("-static", "-no-pie")),
    "stripped": _gcc(strip=True),
    # gcrt1.o (from -pg at link time) starts a SIGPROF timer, as in real -pg programs.
    "pg": _gcc("-pg", "-fno-omit-frame-pointer"),
    "fentry": _gcc("-pg", "-mfentry", machines=X86_64),
    "fentry-nop": _gcc(
        *("-pg", "-mfentry", "-mnop-mcount", "-mrecord-mcount", "-fno-pie"),
        link=("-no-pie",),
        machines=X86_64,
    ),
    "cyg": _gcc("-finstrument-functions", "-DNO_SIBLING_CALLS"),
    "cyg-O0": _gcc("-finstrument-functions", opt=0),
    "clang-cyg": _clang("-finstrument-functions", "-DNO_SIBLING_CALLS"),
    # Two instructions, as Linux builds itself for arm64.
    "pfe2": _gcc("-fpatchable-function-entry=2", machines=AARCH64),
    "clang-pfe2": _clang("-fpatchable-function-entry=2", machines=AARCH64),
    "pfe5": _gcc("-fpatchable-function-entry=5"),
    "clang-pfe5": _clang("-fpatchable-function-entry=5"),
    "pfe16-8": _gcc("-fpatchable-function-entry=16,8"),
    "clang-pfe16-8": _clang("-fpatchable-function-entry=16,8"),
    # With XRay's runtime, which does nothing unless XRAY_OPTIONS or the program ask.
    "xray": _clang(*XRAY),
    "xray-bare": _clang(*XRAY_BARE),
    "xray-nopie": _clang(*XRAY, "-fno-pie", link=("-no-pie",)),
    "xray-cet": _clang(*XRAY, "-fcf-protection=full", machines=X86_64),
    "fp": _gcc("-fno-omit-frame-pointer"),
    "nofp": _gcc("-fomit-frame-pointer"),
    "g": _gcc("-g"),
    "lto": _gcc("-flto=auto"),
    "pad": _gcc("-falign-functions=32"),
    "dense": _gcc("-Os", "-fno-align-functions"),
}
ALL = tuple(VARIANTS)
# What a program may need: glibc, no SIGPROF timer but its own, dlopen.
GLIBC = tuple(name for name in ALL if name != "musl")
NO_SIGPROF = tuple(name for name in ALL if name not in ("pg", "fentry", "fentry-nop"))
# What assembly has that was written without landing pads.
UNGUARDED = tuple(name for name in ALL if "-z,force-bti" not in "".join(VARIANTS[name].link))
RUST = ("rust-O0", "rust-O3")
GO = ("go",)
DYNAMIC = tuple(name for name in GLIBC if not name.startswith("static"))


@dataclass(frozen=True, slots=True)
class Program:
    """One program of this folder.

    Attributes:
        sources: Files of this folder; a ``.py`` generates the C source of the same stem.
        variants: The variants that it supports.
        flags: Flags of its own.
        link: Libraries and flags for the link.
        shared: Extra shared objects beside the program: (file name, source).
        generated: Arguments of the generator.
        arguments: What the program is started with when it is checked.
        machines: The architectures that its sources are written for.
        packages: Debian packages with the libraries that it is linked to.
    """

    sources: tuple[str, ...]
    variants: tuple[str, ...] = ALL
    flags: tuple[str, ...] = ()
    link: tuple[str, ...] = ()
    shared: tuple[tuple[str, str], ...] = ()
    generated: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    machines: tuple[str, ...] = BOTH
    packages: tuple[str, ...] = ()


_TORTURE = ("torture.c", "torture_sites.S", "torture_drive.S")

_PROGRAMS: dict[str, Program] = {
    "busy8": Program(("busy8.c",)),
    "delayed": Program(("delayed.c",), (DEFAULT,)),
    "storm": Program(("storm.c",)),
    "shapes": Program(("shapes.c", "shapes_asm.S"), UNGUARDED),
    "exceptions": Program(("exceptions.cc",), GLIBC),
    "longjmp": Program(("longjmp.c",)),
    # Neither a signal frame nor lazy binding, which saves all vector registers,
    # fits into the slack of its stacks.
    "fibers": Program(
        ("fibers.c",),
        tuple(name for name in GLIBC if name in NO_SIGPROF),
        link=("-Wl,-z,now",),
    ),
    "signals": Program(("signals.c",), NO_SIGPROF),
    "blocked": Program(("blocked.c",), NO_SIGPROF),
    "pingpong": Program(("pingpong.c",), arguments=("listen", "pingpong.socket")),
    "forker": Program(("forker.c",)),
    "threads_churn": Program(("threads_churn.c",)),
    "return_reader": Program(("return_reader.c", "return_reader_asm.S"), (DEFAULT,)),
    "generations": Program(("generations.c",), ("gcc-O2",)),
    "dlopen": Program(
        ("dlopen.c",),
        tuple(name for name in DYNAMIC if name != "fentry-nop"),  # -mnop-mcount is not for PIC
        link=("-ldl",),
        shared=(("plugin.so", "plugin.c"),),
    ),
    "redzone": Program(("redzone.c", "redzone_asm.S"), machines=X86_64),
    "xray_events": Program(
        ("xray_events.c",), tuple(name for name in ALL if name.startswith("xray"))
    ),
    "xray_legacy": Program(
        ("xray_legacy.c", "xray_legacy.S"),
        ("gcc-O2", "clang-O2", "nopie", "static", "static-pie", "stripped"),
        machines=X86_64,
    ),
    "torture": Program(
        _TORTURE,
        ("gcc-O2", "clang-O2", "cet", "pg", "fentry", "clang-pfe5", "pfe5", "xray-bare"),
        # With functions for -pg to call that change nothing.
        link=("-L.", "-Wl,-rpath,$ORIGIN", "-l:torture_mcount.so"),
        shared=(("torture_mcount.so", "torture_mcount.S"),),
        arguments=("threads=8", "hz=10000", "churn=2", "trap=1"),
        machines=X86_64,
    ),
    # With those of the C library.
    "torture_gprof": Program(
        _TORTURE,
        ("pg", "fentry"),
        flags=("-DLIBC_MCOUNT",),
        arguments=("threads=8", "hz=10000", "churn=2", "trap=1"),
        machines=X86_64,
    ),
    # It could block SIGTRAP: the `trap` writer keeps off.
    "torture_masking": Program(
        _TORTURE,
        (DEFAULT,),
        flags=("-DIMPORTS_SIGPROCMASK",),
        link=("-L.", "-Wl,-rpath,$ORIGIN", "-l:torture_mcount.so"),
        shared=(("torture_mcount.so", "torture_mcount.S"),),
        arguments=("threads=2",),
        machines=X86_64,
    ),
    "kinds": Program(("kinds.c", "kinds_tree.c")),
    "kinds_so": Program(
        ("kinds.c",),
        ("gcc-O2", "xray-bare"),
        link=("-L.", "-Wl,-rpath,$ORIGIN", "-l:kinds_tree.so"),
        shared=(("kinds_tree.so", "kinds_tree.c"),),
    ),
    "steady": Program(("steady.c", "steady_asm.S"), (DEFAULT,), machines=X86_64),
    "straddle": Program(("straddle.c", "straddle_asm.S"), ("nopie",), machines=X86_64),
    "movable": Program(("movable.c", "movable_asm.S"), ("nopie",), machines=X86_64),
    "trapper": Program(
        ("trapper.c",), (DEFAULT, "clang-O2", "cet"), arguments=("own",), machines=X86_64
    ),
    "crash": Program(("crash.c",)),
    "exec": Program(("exec.c",)),
    "jailed": Program(("jailed.c",), (DEFAULT, "static")),
    "oddtext": Program(("oddtext.c",), (DEFAULT, "musl")),
    "hugetext": Program(
        ("oddtext.c", "hugetext.S"), (DEFAULT,), link=("-Wl,-z,max-page-size=0x200000",)
    ),
    "many": Program(("gen_many.py",), generated=("10000",)),
    "rusty": Program(("rusty.rs",), RUST),
    "pyhost": Program(
        ("pyhost.c",),
        (DEFAULT,),
        flags=("-isystem", "/usr/include/python3.11"),
        link=("-lpython3.11",),
        packages=("libpython3.11-dev", "libpython3.11", "libexpat1", "zlib1g"),
        arguments=("-I", str(HERE.parent / "support/programs/_loads/interpreter.py")),
    ),
    "gopher": Program(("gopher.go",), GO),
    "goroutines": Program(("goroutines.go",), GO),
}


def programs(machine: str) -> dict[str, Program]:
    """The programs with the variants that an architecture has; none, where it has no sources."""
    return {
        name: replace(
            program,
            sources=tuple(_source(source, machine) for source in program.sources),
            variants=_variants(program, machine),
        )
        for name, program in _PROGRAMS.items()
    }


def _source(name: str, machine: str) -> str:
    # Assembly may have a twin for another architecture: shapes_asm.S, shapes_asm_aarch64.S.
    path = HERE / name
    twin = path.with_stem(f"{path.stem}_{machine}")
    return twin.name if twin.exists() else name


def _variants(program: Program, machine: str) -> tuple[str, ...]:
    if machine not in program.machines:
        return ()
    return tuple(
        name
        for name in program.variants
        if name not in VARIANTS or machine in VARIANTS[name].machines
    )


PROGRAMS = programs(MACHINE)
WITH_XRAY = PROGRAMS["xray_events"].variants
