"""The checkout as it is now, packed for the guest: sources and what is generated of them."""

from __future__ import annotations

import compileall
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from build_support.native import RUNTIME, build_native
from build_support.protobuf import generate_protobuf
from tests.arm.packages import ROOT

FOLDER = "/checkout"
# Python looks for these beside the packages of `checkout.pth`.
PACKAGES = ("server", "client", "proto")
LEFT_OUT = {
    *(".git", ".venv", "build", "dist", "demo-out", ".mypy_cache", ".ruff_cache"),
    *(".pytest_cache", ".hypothesis", "tests/targets/_built", "bench/results"),
}


def packed_checkout() -> bytes:
    """Bring what is generated up to date and return all of it as a tar."""
    generate_protobuf(ROOT / "proto")
    build_native(RUNTIME / "_built")
    # What the guest need not compile: byte code is the same there if it is the same Python.
    for package in (*PACKAGES, "tests"):
        compileall.compile_dir(ROOT / package, quiet=2)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in _files(ROOT):
            tar.add(path, path.relative_to(ROOT), recursive=False)
    return packed.getvalue()


def _files(folder: Path) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        name = str(path.relative_to(ROOT))
        if name in LEFT_OUT or entry.name.startswith(".nfs"):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _files(path)
        else:
            yield path
