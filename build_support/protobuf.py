"""Generates Python code from the .proto files, beside them.

Run `python -m build_support.protobuf` for the same by hand.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from build_support.freshness import is_fresh

SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")


def generate_protobuf(root: Path) -> list[Path]:
    """Generate messages, their type stubs and service stubs.

    protoc writes imports as `from uftrace.agent.v1 import ...`, which is where
    the files lie below `root`: nothing needs rewriting.

    Args:
        root: The folder that the .proto files' import paths begin at.

    Returns:
        The files, which are left alone when no .proto file is newer.

    Raises:
        subprocess.CalledProcessError: protoc found a mistake and has said so.
    """
    sources = sorted(root.rglob("*.proto"))
    outputs = [source.with_name(source.stem + suffix) for source in sources for suffix in SUFFIXES]
    if is_fresh(outputs, [*sources, Path(__file__)]):
        return outputs
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{root}",
            f"--python_out={root}",
            f"--pyi_out={root}",
            f"--grpc_python_out={root}",
            *map(str, sources),
        ],
        check=True,
    )
    return outputs


if __name__ == "__main__":
    generate_protobuf(Path(__file__).resolve().parent.parent / "proto")
