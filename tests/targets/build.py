# SPDX-License-Identifier: Apache-2.0
"""Builds the programs of this folder, on demand and for many compilers.

``build("busy8", "gcc-O2")`` returns the path of the finished program below
``_built/``. The folder's name holds a hash of the sources, the flags and the
compiler's version, so nothing stale is ever used; a finished folder appears by
one rename, so that parallel test runs do not disturb each other.

``python tests/targets/build.py --check`` builds everything and runs each
program by itself.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILT = HERE / "_built"
DEFAULT = "gcc-O2"
COMMON = ("-Wall", "-Wextra", "-pthread")
XRAY = ("-fxray-instrument", "-fxray-instruction-threshold=1")
# Past the driver, which then does not link XRay's runtime.
XRAY_BARE = tuple(word for flag in XRAY for word in ("-Xclang", flag))


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
    """

    cc: str = "gcc"
    cxx: str | None = "g++"
    flags: tuple[str, ...] = ("-O2",)
    link: tuple[str, ...] = ()
    strip: bool = False
    opt: int = 2


def _gcc(*flags: str, link: tuple[str, ...] = (), strip: bool = False, opt: int = 2) -> Variant:
    return Variant(flags=(f"-O{opt}", *flags), link=link, strip=strip, opt=opt)


def _clang(*flags: str, link: tuple[str, ...] = (), opt: int = 2) -> Variant:
    return Variant("clang", "clang++", (f"-O{opt}", *flags), link=link, opt=opt)


VARIANTS: dict[str, Variant] = {
    "gcc-O0": _gcc(opt=0),
    "gcc-O1": _gcc(opt=1),
    "gcc-O2": _gcc(),
    "gcc-O3": _gcc(opt=3),
    "clang-O0": _clang(opt=0),
    "clang-O2": _clang(),
    "cet": _gcc("-fcf-protection=full"),
    "nopie": _gcc("-fno-pie", link=("-no-pie",)),
    "static": _gcc("-fno-pie", link=("-static",)),
    "static-pie": _gcc("-fPIE", link=("-static-pie",)),
    "musl": Variant("musl-gcc", None, ("-O2", "-fno-pie"), ("-static", "-no-pie")),
    "stripped": _gcc(strip=True),
    # gcrt1.o (from -pg at link time) starts a SIGPROF timer, as in real -pg programs.
    "pg": _gcc("-pg", "-fno-omit-frame-pointer"),
    "fentry": _gcc("-pg", "-mfentry"),
    "fentry-nop": _gcc(
        "-pg", "-mfentry", "-mnop-mcount", "-mrecord-mcount", "-fno-pie", link=("-no-pie",)
    ),
    "cyg": _gcc("-finstrument-functions", "-DNO_SIBLING_CALLS"),
    "cyg-O0": _gcc("-finstrument-functions", opt=0),
    "clang-cyg": _clang("-finstrument-functions", "-DNO_SIBLING_CALLS"),
    "pfe5": _gcc("-fpatchable-function-entry=5"),
    "clang-pfe5": _clang("-fpatchable-function-entry=5"),
    "pfe16-8": _gcc("-fpatchable-function-entry=16,8"),
    "clang-pfe16-8": _clang("-fpatchable-function-entry=16,8"),
    # With XRay's runtime, which does nothing unless XRAY_OPTIONS or the program ask.
    "xray": _clang(*XRAY),
    "xray-bare": _clang(*XRAY_BARE),
    "xray-nopie": _clang(*XRAY, "-fno-pie", link=("-no-pie",)),
    "xray-cet": _clang(*XRAY, "-fcf-protection=full"),
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
RUST = ("rust-O0", "rust-O3")
GO = ("go",)
DYNAMIC = tuple(name for name in GLIBC if not name.startswith("static"))
WITH_XRAY = tuple(name for name in ALL if name.startswith("xray"))


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
    """

    sources: tuple[str, ...]
    variants: tuple[str, ...] = ALL
    flags: tuple[str, ...] = ()
    link: tuple[str, ...] = ()
    shared: tuple[tuple[str, str], ...] = ()
    generated: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


_TORTURE = ("torture.c", "torture_sites.S", "torture_drive.S")

PROGRAMS: dict[str, Program] = {
    "busy8": Program(("busy8.c",)),
    "delayed": Program(("delayed.c",), (DEFAULT,)),
    "storm": Program(("storm.c",)),
    "shapes": Program(("shapes.c", "shapes_asm.S")),
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
    "redzone": Program(("redzone.c", "redzone_asm.S")),
    "xray_events": Program(("xray_events.c",), WITH_XRAY),
    "xray_legacy": Program(
        ("xray_legacy.c", "xray_legacy.S"),
        ("gcc-O2", "clang-O2", "nopie", "static", "static-pie", "stripped"),
    ),
    "torture": Program(
        _TORTURE,
        ("gcc-O2", "clang-O2", "cet", "pg", "fentry", "clang-pfe5", "pfe5", "xray-bare"),
        # With functions for -pg to call that change nothing.
        link=("-L.", "-Wl,-rpath,$ORIGIN", "-l:torture_mcount.so"),
        shared=(("torture_mcount.so", "torture_mcount.S"),),
        arguments=("threads=8", "hz=10000", "churn=2", "trap=1"),
    ),
    # With those of the C library.
    "torture_gprof": Program(
        _TORTURE,
        ("pg", "fentry"),
        flags=("-DLIBC_MCOUNT",),
        arguments=("threads=8", "hz=10000", "churn=2", "trap=1"),
    ),
    # It could block SIGTRAP: the `trap` writer keeps off.
    "torture_masking": Program(
        _TORTURE,
        (DEFAULT,),
        flags=("-DIMPORTS_SIGPROCMASK",),
        link=("-L.", "-Wl,-rpath,$ORIGIN", "-l:torture_mcount.so"),
        shared=(("torture_mcount.so", "torture_mcount.S"),),
        arguments=("threads=2",),
    ),
    "kinds": Program(("kinds.c", "kinds_tree.c")),
    "kinds_so": Program(
        ("kinds.c",),
        ("gcc-O2", "xray-bare"),
        link=("-L.", "-Wl,-rpath,$ORIGIN", "-l:kinds_tree.so"),
        shared=(("kinds_tree.so", "kinds_tree.c"),),
    ),
    "steady": Program(("steady.c", "steady_asm.S"), (DEFAULT,)),
    "straddle": Program(("straddle.c", "straddle_asm.S"), ("nopie",)),
    "movable": Program(("movable.c", "movable_asm.S"), ("nopie",)),
    "trapper": Program(("trapper.c",), (DEFAULT, "clang-O2", "cet"), arguments=("own",)),
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
        arguments=("-I", str(HERE.parent / "support/programs/_loads/interpreter.py")),
    ),
    "gopher": Program(("gopher.go",), GO),
    "goroutines": Program(("goroutines.go",), GO),
}


@functools.cache
def _version(compiler: str) -> str:
    return subprocess.run(
        [compiler, "version" if compiler == "go" else "--version"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def _parts(name: str) -> tuple[Program, str]:
    # "many@20000" is the program "many", generated with the argument 20000.
    stem, _, argument = name.partition("@")
    program = PROGRAMS[stem]
    if argument:
        program = replace(program, generated=(argument,))
    return program, stem


def _key(program: Program, variant: str) -> str:
    digest = hashlib.sha256(
        repr((replace(program, arguments=()), VARIANTS.get(variant), COMMON)).encode()
    )
    for name in (*program.sources, *(source for _, source in program.shared)):
        digest.update(name.encode())
        digest.update((HERE / name).read_bytes())
    for header in sorted(HERE.glob("*.h")):
        digest.update(header.read_bytes())
    for compiler in _compilers(variant):
        digest.update(_version(compiler).encode())
    return digest.hexdigest()[:12]


def _compilers(variant: str) -> tuple[str, ...]:
    if variant.startswith("rust"):
        return ("rustc",)
    if variant == "go":
        return ("go",)
    return (VARIANTS[variant].cc,)


def _run(command: Sequence[str], cwd: Path, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode != 0 or "warning:" in done.stderr:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def _build_native(program: Program, stem: str, variant: Variant, out: Path) -> None:
    sources: list[str] = []
    for source in program.sources:
        path = HERE / source
        if path.suffix == ".py":
            generated = out / f"{stem}.c"
            with generated.open("w") as stream:
                command = [sys.executable, str(path), *program.generated]
                subprocess.run(command, stdout=stream, check=True)
            path = generated
        sources.append(str(path))
    cplusplus = any(source.endswith(".cc") for source in program.sources)
    compiler = variant.cxx if cplusplus else variant.cc
    if compiler is None:
        raise ValueError(f"{stem}: this variant has no C++ compiler")
    flags = [*variant.flags, *COMMON, f"-DOPT_LEVEL={variant.opt}", f"-I{HERE}", *program.flags]
    for shared, source in program.shared:
        command = [compiler, *flags, "-fPIC", "-shared", "-o", shared, str(HERE / source)]
        _run(command, out)
    _run([compiler, *flags, "-o", stem, *sources, *variant.link, *program.link], out)
    if variant.strip:
        _run(["strip", stem, *(shared for shared, _ in program.shared)], out)


def _build_foreign(program: Program, stem: str, variant: str, out: Path) -> None:
    source = str(HERE / program.sources[0])
    if variant == "go":
        env = {**os.environ, "GOFLAGS": "-mod=mod", "GO111MODULE": "off", "GOTOOLCHAIN": "local"}
        env["GOCACHE"] = str(BUILT / "go-cache")
        _run(["go", "build", "-o", stem, source], out, env)
        return
    level = variant.removeprefix("rust-O")
    _run(["rustc", "--edition=2021", "-C", f"opt-level={level}", "-o", stem, source], out)


def build(name: str, variant: str = DEFAULT) -> Path:
    """Builds a program unless it is there already.

    Args:
        name: A key of ``PROGRAMS``; ``many@N`` sets the generator's argument.
        variant: One of the program's variants.

    Returns:
        The path of the executable; shared objects of the program lie beside it.

    Raises:
        ValueError: The program does not support this variant.
        RuntimeError: The compiler failed or warned.
    """
    program, stem = _parts(name)
    if variant not in program.variants:
        raise ValueError(f"{name} has no variant {variant}; it has {', '.join(program.variants)}")
    BUILT.mkdir(exist_ok=True)
    final = BUILT / f"{name}-{variant}-{_key(program, variant)}"
    if not (final / stem).exists():
        scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=BUILT))
        try:
            if variant in VARIANTS:
                _build_native(program, stem, VARIANTS[variant], scratch)
            else:
                _build_foreign(program, stem, variant, scratch)
            scratch.chmod(0o755)  # programs may run as another user
            try:
                scratch.rename(final)
            except OSError:
                # Another process was faster; its result is the same.
                if not (final / stem).exists():
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return final / stem


def combinations(
    names: Sequence[str] = (), variants: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """Yields every supported (program, variant), optionally narrowed."""
    for name in names or PROGRAMS:
        for variant in _parts(name)[0].variants:
            if not variants or variant in variants:
                yield name, variant


def _check(name: str, variant: str, seconds: float) -> str:
    # Runs a program untraced: it must say ready, live, and end well.
    binary = build(name, variant)
    with tempfile.TemporaryDirectory() as scratch:  # -pg programs write gmon.out
        process = subprocess.Popen(
            [binary, *_parts(name)[0].arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=scratch,
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            try:
                output, _ = process.communicate("calls\npause\ncalls\nresume\nquit\n", 30)
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
                return f"FAILED {name} {variant}: no answer to quit\n{output}"
        else:
            output = process.stdout.read() if process.stdout else ""
    lines = output.splitlines()
    good = process.returncode == 0 and lines[0].startswith("ready ") and lines[-1].startswith("ok ")
    if good and "BAD" not in output and lines[-1].split()[1] != "0":
        return ""
    return f"FAILED {name} {variant}: status {process.returncode}\n{output}"


def main() -> int:
    """The command line: builds, and with ``--check`` runs, what is named."""
    parser = argparse.ArgumentParser(description="Build the programs that the tests trace.")
    parser.add_argument("name", nargs="*", help="programs (default: all)")
    parser.add_argument("--variant", action="append", default=[], choices=[*ALL, *RUST, *GO])
    parser.add_argument("--check", action="store_true", help="run each program by itself")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each runs")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    chosen = list(combinations(arguments.name, arguments.variant))
    failures: list[str] = []

    def one(pair: tuple[str, str]) -> str:
        try:
            if arguments.check:
                return _check(*pair, arguments.seconds)
            build(*pair)
        except RuntimeError as error:
            return f"FAILED {pair[0]} {pair[1]}: {error}"
        return ""

    with ThreadPoolExecutor(arguments.jobs) as pool:
        for (name, variant), failure in zip(chosen, pool.map(one, chosen), strict=True):
            print(failure or f"ok {name} {variant}", flush=True)
            failures += [failure] if failure else []
    print(f"{len(chosen) - len(failures)} of {len(chosen)} good")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
