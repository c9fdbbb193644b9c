"""Build steps: protobuf code, and the native runtimes for both architectures.

Everything that is generated lies beside its source and is ignored by git, so
that an editable install and a wheel see the same files:

    proto/uftrace/agent/v1/*_pb2*.py[i]       from the .proto files there
    server/uftrace_agent/runtime/_built/*     from runtime/host and runtime/target
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import find_namespace_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # the build backend does not put it there

from build_support.native import build_native  # noqa: E402
from build_support.protobuf import generate_protobuf  # noqa: E402

NOT_PACKAGES = ("*.target", "*.host", "*._built", "*.__pycache__")


class BuildWithGenerated(build_py):
    """`build_py`, after everything that is generated has been generated."""

    def run(self) -> None:
        generate_protobuf(ROOT / "proto")
        build_native(ROOT / "server" / "uftrace_agent" / "runtime" / "_built")
        super().run()


class BothArchitectures(bdist_wheel):
    """One wheel for both: the code is pure Python, the native files are data of either."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", "manylinux_2_28_x86_64.manylinux_2_28_aarch64"


setup(
    packages=[
        *find_namespace_packages("server", exclude=NOT_PACKAGES),
        *find_namespace_packages("client", exclude=NOT_PACKAGES),
        *find_namespace_packages("proto", include=["uftrace", "uftrace.*"]),
    ],
    package_dir={
        "uftrace_agent": "server/uftrace_agent",
        "uftrace_remote": "client/uftrace_remote",
        "uftrace": "proto/uftrace",
    },
    package_data={
        "uftrace_agent": [
            "py.typed",
            "runtime/_built/*.so",
            "runtime/_built/*.elf",
            "runtime/target/annex.h",
        ],
        "uftrace_remote": ["py.typed"],
        "uftrace.agent.v1": ["*.proto", "*.pyi"],
    },
    include_package_data=False,
    cmdclass={"build_py": BuildWithGenerated, "bdist_wheel": BothArchitectures},
)
