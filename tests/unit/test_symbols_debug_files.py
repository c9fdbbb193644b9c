"""Symbols of stripped files, out of debug files and .gnu_debugdata."""

from __future__ import annotations

import lzma
import os
from pathlib import Path

import pytest

from tests.unit.symbols_support import compile_program, names_of, run
from uftrace_agent.symbols import ModuleImage

pytestmark = pytest.mark.usefixtures("no_leaks")

SOURCE = """
__attribute__((noinline)) static int hidden(int x) { return x * 7 + 1; }
int main(int c, char **v) { return hidden(c) + hidden(c + 1); }
"""


class Installation:
    """A root directory with a stripped program and, apart from it, its symbols."""

    def __init__(self, root: Path, *options: str) -> None:
        self.root = root
        self.folder = root / "opt" / "app"
        self.folder.mkdir(parents=True)
        self.unstripped = compile_program(root, SOURCE, "-O1", *options)
        self.program = self.folder / "program"
        self.debug = root / "program.debug"
        run("objcopy", "--only-keep-debug", self.unstripped, self.debug)
        run("strip", "-o", self.program, self.unstripped)

    def link(self) -> None:
        """Add .gnu_debuglink, with the checksum of the debug file as it is now."""
        run("objcopy", f"--add-gnu-debuglink={self.debug}", self.program)

    def put_debug_file(self, place: str) -> Path:
        path = self.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.debug.read_bytes())
        return path

    def names(self) -> set[str]:
        with ModuleImage.open(str(self.program), root=str(self.root)) as image:
            return names_of(image)


@pytest.fixture
def installation(tmp_path) -> Installation:
    return Installation(tmp_path, "-Wl,--build-id")


def test_without_symbols_functions_go_by_their_place(installation):
    with ModuleImage.open(str(installation.unstripped)) as image:
        address = image.address_of("hidden")
    assert f"program+{address:#x}" in installation.names()
    assert "hidden" not in installation.names()


@pytest.mark.parametrize(
    "place",
    [
        "opt/app/program.debug",
        "opt/app/.debug/program.debug",
        "usr/lib/debug/opt/app/program.debug",
    ],
)
@pytest.mark.parametrize("build_id", ["--build-id", "--build-id=none"])
def test_debug_link(tmp_path, place, build_id):
    installation = Installation(tmp_path, f"-Wl,{build_id}")
    installation.link()
    installation.put_debug_file(place)
    names = installation.names()
    assert "hidden" in names
    assert not any(name.startswith("program+") for name in names)


def test_a_debug_file_with_another_checksum_is_not_used(tmp_path):
    installation = Installation(tmp_path, "-Wl,--build-id=none")
    installation.link()
    path = installation.put_debug_file("opt/app/program.debug")
    with path.open("ab") as file:
        file.write(b"\0")
    assert "hidden" not in installation.names()


def test_build_id(installation):
    with ModuleImage.open(str(installation.program)) as image:
        build_id = image.build_id
    place = f"usr/lib/debug/.build-id/{build_id[:2]}/{build_id[2:]}.debug"
    installation.put_debug_file(place)
    assert "hidden" in installation.names()


def test_a_debug_file_with_another_build_id_is_not_used(installation, tmp_path):
    with ModuleImage.open(str(installation.program)) as image:
        build_id = image.build_id
    other = tmp_path / "other"
    other.mkdir()
    stranger = Installation(other, "-Wl,--build-id", "-DX=1", "-g")
    place = f"usr/lib/debug/.build-id/{build_id[:2]}/{build_id[2:]}.debug"
    installation.debug = stranger.debug
    installation.put_debug_file(place)
    assert "hidden" not in installation.names()


def test_a_broken_debug_file_is_not_used(installation):
    installation.link()
    path = installation.put_debug_file("opt/app/program.debug")
    path.write_bytes(path.read_bytes()[:300])
    assert "hidden" not in installation.names()


def test_links_out_of_the_root_are_not_followed(installation):
    installation.link()
    secret = installation.put_debug_file("elsewhere/program.debug")
    # Absolute: inside of the root there is no such path.
    (installation.folder / "program.debug").symlink_to(secret)
    assert "hidden" not in installation.names()
    (installation.folder / "program.debug").unlink()
    (installation.folder / "program.debug").symlink_to("/elsewhere/program.debug")
    assert "hidden" in installation.names()


def test_a_pipe_in_place_of_the_debug_file_does_not_hang(installation):
    installation.link()
    os.mkfifo(installation.folder / "program.debug")
    assert "hidden" not in installation.names()


def test_embedded_debug_data(installation, tmp_path):
    packed = tmp_path / "mini.xz"
    mini = tmp_path / "mini"
    run("objcopy", "-S", "--keep-symbol=hidden", "--keep-symbol=main", installation.debug, mini)
    packed.write_bytes(lzma.compress(mini.read_bytes()))
    run("objcopy", f"--add-section=.gnu_debugdata={packed}", installation.program)
    assert {"hidden", "main"} <= installation.names()


def test_broken_embedded_debug_data_is_not_used(installation, tmp_path):
    packed = tmp_path / "mini.xz"
    packed.write_bytes(lzma.compress(installation.debug.read_bytes())[:-50])
    run("objcopy", f"--add-section=.gnu_debugdata={packed}", installation.program)
    assert "hidden" not in installation.names()
