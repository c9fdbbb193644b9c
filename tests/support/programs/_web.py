# SPDX-License-Identifier: Apache-2.0
"""Web servers on the runtimes of languages: python3, node, Go, Java."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.targets.build import BUILT

from ._base import Load, Program, as_user, private_folder, python_load, running, wait_for

SERVERS = Path(__file__).resolve().parent / "_servers"


@contextlib.contextmanager
def python3() -> Iterator[Program]:
    """Runs a web server on Debian's python3, whose functions are in the executable."""
    command = ["/usr/bin/python3", "-I", str(SERVERS / "web.py")]
    with _serving("python3", command, "python3") as program:
        yield program


@contextlib.contextmanager
def node() -> Iterator[Program]:
    """Runs a web server on node: its functions are in the executable, or in libnode."""
    with _serving("node", ["node", str(SERVERS / "web.js")], "libnode", "node") as program:
        yield program


@contextlib.contextmanager
def golang() -> Iterator[Program]:
    """Runs a web server on Go's net/http."""
    binary = _built("web.go", "go", "version") / "web"
    with _serving("golang", [str(binary)], "web") as program:
        yield program


@contextlib.contextmanager
def java() -> Iterator[Program]:
    """Runs a web server on the JVM: its functions are those of libjvm."""
    classes = _built("Web.java", "javac", "-version")
    options = ["-Xmx96m", "-Dsun.net.httpserver.nodelay=true", "-XX:-OmitStackTraceInFastThrow"]
    command = ["java", *options, "-cp", str(classes), "Web"]
    with _serving("java", command, "libjvm") as program:
        yield program


@contextlib.contextmanager
def _serving(name: str, command: Sequence[str], *modules: str) -> Iterator[Program]:
    # The kernel chooses the port, and the server's first line says it.
    with private_folder(name) as folder:
        with running([*as_user("root"), *command], folder) as process:
            output = folder / "output"
            wait_for(name, lambda: "\n" in output.read_text(), process, folder)
            port = re.match(r"port (\d+)\n", output.read_text())
            assert port is not None, output.read_text()
            load = python_load("runtimes", port[1])
            binary = Path(os.readlink(f"/proc/{process.pid}/exe"))
            module = _module(process.pid, modules)
            yield Program(name, process.pid, binary, lambda program: Load(program, load), module)


# The first of the files whose name begins so that the process has mapped.
def _module(pid: int, names: Sequence[str]) -> Path:
    mapped = Path(f"/proc/{pid}/maps").read_text().split()
    paths = [Path(word) for word in mapped if word.startswith("/")]
    return next(path for name in names for path in paths if path.name.startswith(name))


@functools.cache
def _version(*command: str) -> bytes:
    done = subprocess.run(command, capture_output=True, check=True)
    return done.stdout + done.stderr


# The folder with what a compiler made of a server, once for each version of both.
def _built(source: str, *version: str) -> Path:
    path = SERVERS / source
    digest = hashlib.sha256(path.read_bytes() + _version(*version)).hexdigest()[:12]
    final = BUILT / f"server-{path.stem}-{digest}"
    if final.exists():
        return final
    BUILT.mkdir(exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=BUILT))
    try:
        _COMPILERS[path.suffix](path, scratch)
        scratch.chmod(0o755)
        # Another process may have been faster: its result is the same.
        with contextlib.suppress(OSError):
            scratch.rename(final)
        assert final.exists(), f"{source} was not built"
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return final


def _go(source: Path, out: Path) -> None:
    environment = {**os.environ, "GO111MODULE": "off", "GOTOOLCHAIN": "local"}
    environment["GOCACHE"] = str(BUILT / "go-cache")
    command = ["go", "build", "-o", str(out / "web"), str(source)]
    subprocess.run(command, env=environment, check=True)


def _javac(source: Path, out: Path) -> None:
    subprocess.run(["javac", "-d", str(out), str(source)], check=True)


_COMPILERS: dict[str, Callable[[Path, Path], None]] = {".go": _go, ".java": _javac}
