# SPDX-License-Identifier: Apache-2.0
"""Builds the programs of this folder, on demand and for many compilers.

``build("busy8", "gcc-O2")`` returns the path of the finished program below
``_built/``. The folder's name holds a hash of the sources, the flags and the
compiler's version, so nothing stale is ever used; a finished folder appears by
one rename, so that parallel test runs do not disturb each other.

``python -m tests.targets.build --check`` builds everything and runs each
program by itself.

A program for another architecture is made by cross-compilers; a machine without compilers
asks the one that runs it (``UFTRACE_TESTS_BUILDS``).
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.targets.cross import Toolchain, toolchain
from tests.targets.recipes import (
    ALL,
    COMMON,
    DEFAULT,
    EXPECTED_WARNING,
    GO,
    MACHINE,
    PROGRAMS,
    RUST,
    VARIANTS,
    WITH_XRAY,
    XRAY_BARE,
    Program,
    Variant,
    programs,
)

__all__ = ("BUILT", "DEFAULT", "PROGRAMS", "WITH_XRAY", "XRAY_BARE", "build", "combinations")

HERE = Path(__file__).resolve().parent
BUILT = HERE / "_built"
# Where there is no compiler: whoever builds for this machine (tests/arm/builds.py).
SERVICE = os.environ.get("UFTRACE_TESTS_BUILDS")


@functools.cache
def _version(*compiler: str) -> str:
    return subprocess.run(
        [*compiler, "version" if compiler[0] == "go" else "--version"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def _parts(name: str, machine: str) -> tuple[Program, str]:
    # "many@20000" is the program "many", generated with the argument 20000.
    stem, _, argument = name.partition("@")
    program = programs(machine)[stem]
    if argument:
        program = replace(program, generated=(argument,))
    return program, stem


def _key(program: Program, variant: str, tools: Toolchain) -> str:
    recipe = replace(program, arguments=(), variants=(), machines=())
    digest = hashlib.sha256(repr((recipe, VARIANTS.get(variant), COMMON)).encode())
    for name in (*program.sources, *(source for _, source in program.shared)):
        digest.update(name.encode())
        digest.update((HERE / name).read_bytes())
    for header in sorted(HERE.glob("*.h")):
        digest.update(header.read_bytes())
    digest.update(_version(*tools.command(_compiler(variant))).encode())
    return digest.hexdigest()[:12]


def _compiler(variant: str) -> str:
    if variant.startswith("rust"):
        return "rustc"
    return "go" if variant == "go" else VARIANTS[variant].cc


def _run(command: Sequence[str], cwd: Path, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    warned = [line for line in done.stderr.splitlines() if "warning:" in line]
    if done.returncode != 0 or any(EXPECTED_WARNING not in line for line in warned):
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def _build_native(
    program: Program, stem: str, variant: Variant, tools: Toolchain, out: Path
) -> None:
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
    name = variant.cxx if cplusplus else variant.cc
    if name is None:
        raise ValueError(f"{stem}: this variant has no C++ compiler")
    compiler = tools.command(name)
    flags = [*variant.flags, *COMMON, f"-DOPT_LEVEL={variant.opt}", f"-I{HERE}", *program.flags]
    flags += tools.flags(program.packages)
    for shared, source in program.shared:
        command = [*compiler, *flags, "-fPIC", "-shared", "-o", shared, str(HERE / source)]
        _run(command, out)
    _run([*compiler, *flags, "-o", stem, *sources, *variant.link, *program.link], out)
    if variant.strip:
        _run([*tools.command("strip"), stem, *(shared for shared, _ in program.shared)], out)


def _build_foreign(program: Program, stem: str, variant: str, tools: Toolchain, out: Path) -> None:
    source = str(HERE / program.sources[0])
    if variant == "go":
        env = {**os.environ, "GOFLAGS": "-mod=mod", "GO111MODULE": "off", "GOTOOLCHAIN": "local"}
        env["GOCACHE"] = str(BUILT / "go-cache")
        env["GOARCH"] = tools.go_architecture
        _run(["go", "build", "-o", stem, source], out, env)
        return
    level = variant.removeprefix("rust-O")
    compiler = [*tools.command("rustc"), "--edition=2021"]
    _run([*compiler, "-C", f"opt-level={level}", "-o", stem, source], out)


def build(name: str, variant: str = DEFAULT, machine: str = MACHINE) -> Path:
    """Builds a program unless it is there already.

    Args:
        name: A key of ``PROGRAMS``; ``many@N`` sets the generator's argument.
        variant: One of the program's variants.
        machine: The architecture that it is for.

    Returns:
        The path of the executable; shared objects of the program lie beside it.

    Raises:
        ValueError: The program does not support this variant, or has no sources for this
            architecture.
        RuntimeError: The compiler failed or warned.
    """
    program, stem = _parts(name, machine)
    if machine not in program.machines:
        raise ValueError(f"{name} is written for {' and '.join(program.machines)}, not {machine}")
    if variant not in program.variants:
        raise ValueError(f"{name} has no variant {variant}; it has {', '.join(program.variants)}")
    BUILT.mkdir(exist_ok=True)
    if SERVICE:
        return _fetched(name, variant) / stem
    tools = toolchain(machine)
    place = "" if machine == MACHINE else f"{machine}-"
    final = BUILT / f"{name}-{variant}-{place}{_key(program, variant, tools)}"
    if not (final / stem).exists():
        with _scratch() as scratch:
            if variant in VARIANTS:
                _build_native(program, stem, VARIANTS[variant], tools, scratch)
            else:
                _build_foreign(program, stem, variant, tools, scratch)
            _finish(scratch, final)
    return final / stem


@functools.cache
def _fetched(name: str, variant: str) -> Path:
    path = f"{SERVICE}/{urllib.parse.quote(name)}/{variant}"
    try:
        with urllib.request.urlopen(path) as reply:
            final, packed = BUILT / reply.headers["X-Folder"], reply.read()
    except urllib.error.HTTPError as error:
        raise RuntimeError(error.read().decode()) from None
    if not final.exists():
        with _scratch() as scratch:
            with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
                tar.extractall(scratch)
            _finish(scratch, final)
    return final


@contextmanager
def _scratch() -> Iterator[Path]:
    scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=BUILT))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _finish(scratch: Path, final: Path) -> None:
    scratch.chmod(0o755)  # programs may run as another user
    try:
        scratch.rename(final)
    except OSError:
        # Another process was faster; its result is the same.
        if not final.exists():
            raise


def combinations(
    names: Sequence[str] = (), variants: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """Yields every supported (program, variant), optionally narrowed."""
    for name in names or PROGRAMS:
        for variant in _parts(name, MACHINE)[0].variants:
            if not variants or variant in variants:
                yield name, variant


def _check(name: str, variant: str, seconds: float) -> str:
    # Runs a program untraced: it must say ready, live, and end well.
    binary = build(name, variant)
    with tempfile.TemporaryDirectory() as scratch:  # -pg programs write gmon.out
        process = subprocess.Popen(
            [binary, *_parts(name, MACHINE)[0].arguments],
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
