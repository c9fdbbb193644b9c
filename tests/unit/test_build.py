"""What the build makes: generated code, native files for both architectures, one wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from build_support import native
from build_support.freshness import is_fresh
from build_support.protobuf import generate_protobuf

ROOT = Path(__file__).resolve().parents[2]
MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}


@pytest.fixture(scope="module")
def built() -> dict[str, Path]:
    """The native files beside the sources, brought up to date."""
    return {path.name: path for path in native.build_native(native.RUNTIME / "_built")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of the tree that holds sources alone."""
    tree = tmp_path_factory.mktemp("clone") / "tree"
    ignored = shutil.ignore_patterns(
        ".*", "build", "dist", "_built", "__pycache__", "*_pb2*", "*.egg-info", "tests", "demo-out"
    )
    shutil.copytree(ROOT, tree, ignore=ignored)
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--wheel-dir", str(out), str(tree)),
        ],
        check=True,
        # What has been compiled once need not be compiled again for the copy.
        env={**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(native.CACHE)},
    )
    (path,) = out.iterdir()
    return path


def test_an_output_is_stale_when_it_is_missing_or_older(tmp_path):
    source, output = tmp_path / "source", tmp_path / "output"
    source.touch()
    assert not is_fresh([output], [source])
    output.touch()
    os.utime(source, (100, 100))
    os.utime(output, (101, 101))
    assert is_fresh([output], [source])
    os.utime(source, (102, 102))
    assert not is_fresh([output], [source])


def test_generated_code_is_left_alone_when_nothing_changed():
    paths = generate_protobuf(ROOT / "proto")
    before = [path.stat().st_mtime_ns for path in paths]
    assert [p.stat().st_mtime_ns for p in generate_protobuf(ROOT / "proto")] == before


def test_host_library_is_built_for_both_architectures(built):
    assert {"libuftrace_host-x86_64.so", "libuftrace_host-aarch64.so"} <= set(built)


def test_each_file_is_of_its_architecture(built):
    for name, path in built.items():
        arch = re.search(r"-(\w+)\.", name)[1]
        with path.open("rb") as file:
            assert ELFFile(file)["e_machine"] == MACHINES[arch], name


def test_nothing_is_built_twice(built):
    before = {name: path.stat().st_mtime_ns for name, path in built.items()}
    native.build_native(native.RUNTIME / "_built")
    assert {name: path.stat().st_mtime_ns for name, path in built.items()} == before


def test_one_output_can_be_built_alone(tmp_path):
    (path,) = native.build_native(tmp_path, ["target-x86_64.elf"])
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_an_unknown_output_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no-such"):
        native.build_native(tmp_path, ["no-such.elf"])


def test_h57_target_blob_stands_on_its_own(built):
    """It is copied to any address of any process: nothing may be left to a loader."""
    for name, path in built.items():
        if not name.startswith("target-"):
            continue
        with path.open("rb") as file:
            elf = ELFFile(file)
            assert elf["e_type"] == "ET_EXEC"
            kinds = {segment["p_type"] for segment in elf.iter_segments()}
            assert not kinds & {"PT_DYNAMIC", "PT_INTERP", "PT_TLS"}
            for section in elf.iter_sections():
                assert not isinstance(section, RelocationSection), section.name
                if isinstance(section, SymbolTableSection):
                    undefined = {
                        symbol.name
                        for symbol in section.iter_symbols()
                        if symbol["st_shndx"] == "SHN_UNDEF"
                    }
                    assert undefined == {""}


def test_host_library_runs_on_old_distributions(built):
    for name, path in built.items():
        if name.startswith("libuftrace_host"):
            wanted = re.findall(rb"GLIBC_(\d+)\.(\d+)", path.read_bytes())
            assert max((int(a), int(b)) for a, b in wanted) <= (2, 28)


def test_the_wheel_serves_both_architectures(wheel):
    assert wheel.name.endswith("-py3-none-manylinux_2_28_x86_64.manylinux_2_28_aarch64.whl")


def test_the_wheel_holds_everything(wheel, built):
    names = set(zipfile.ZipFile(wheel).namelist())
    api = {path.stem for path in (ROOT / "proto/uftrace/agent/v1").glob("*.proto")}
    expected = {
        *(f"uftrace_agent/runtime/_built/{name}" for name in built),
        *(f"uftrace/agent/v1/{stem}_pb2{end}" for stem in api for end in (".py", ".pyi")),
        *(f"uftrace/agent/v1/{stem}_pb2_grpc.py" for stem in api),
        *(f"uftrace_{side}/py.typed" for side in ("agent", "remote")),
        *(
            str(path.relative_to(ROOT / side))
            for side in ("server", "client")
            for path in (ROOT / side).rglob("*.py")
        ),
    }
    assert expected - names == set()


def test_the_wheel_holds_nothing_else(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"uftrace", "uftrace_agent", "uftrace_remote", "uftrace_remote-0.1.0.dist-info"}
    sources = [n for n in zipfile.ZipFile(wheel).namelist() if n.endswith((".c", ".S", ".h"))]
    # The agent reads its numbers from there.
    assert sources == ["uftrace_agent/runtime/target/annex.h"]


def test_the_wheel_works_without_the_tree(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import uftrace_agent, uftrace.agent.v1.agent_pb2_grpc as api, uftrace_agent.rpc.server\n"
        "import uftrace_agent.session.manager\n"
        "print(uftrace_agent.__file__, api.__file__)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert all(Path(name).is_relative_to(tmp_path) for name in said.split())
