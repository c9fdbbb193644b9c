"""Mapped modules of real processes: where they are, which file they are."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.symbols_support import compile_program
from uftrace_agent.symbols import ModuleImage, ProcessModules, list_modules
from uftrace_agent.symbols.process_modules import parse_maps

pytestmark = pytest.mark.usefixtures("no_leaks")

# Prints where a function is, and waits until its input closes.
SOURCE = """
#include <stdio.h>
#include <unistd.h>
int marker(int x) { return x + 42; }
int main(void) { char c; printf("%p\\n", (void *)marker); fflush(stdout);
  return (int)read(0, &c, 1); }
"""


class Running:
    """A program that waits, and what it has mapped."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.pid = process.pid
        self.proc = f"/proc/{process.pid}"
        self.printed = process.stdout.readline().split()
        self.marker = int(self.printed[0], 16)

    def read_memory(self, address: int, length: int) -> bytes:
        with open(f"{self.proc}/mem", "rb", buffering=0) as memory:
            return os.pread(memory.fileno(), length, address)

    def modules(self, proc: str = "") -> ProcessModules:
        maps = Path(f"{self.proc}/maps").read_text()
        return list_modules(maps, proc or self.proc, self.read_memory)


@contextmanager
def running(*command: str | Path) -> Iterator[Running]:
    with subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Running(process)


LINKS = {
    "pie": ("gcc", ["-pie", "-fPIE"]),
    "fixed": ("gcc", ["-no-pie", "-fno-pie"]),
    "static": ("gcc", ["-static"]),
    "static-pie": ("gcc", ["-static-pie", "-fPIE"]),
    "musl": ("musl-gcc", ["-static"]),
    "one segment": ("gcc", ["-pie", "-fPIE", "-Wl,-z,noseparate-code"]),
    "other base": ("gcc", ["-pie", "-fPIE", "-Wl,-Ttext-segment=0x7000000"]),
    "gold": ("gcc", ["-pie", "-fPIE", "-fuse-ld=gold"]),
    "big pages": ("gcc", ["-pie", "-fPIE", "-Wl,-z,max-page-size=0x200000"]),
}


@pytest.mark.parametrize("link", LINKS)
def test_the_load_bias_is_right(tmp_path, link):
    compiler, options = LINKS[link]
    program = compile_program(tmp_path, SOURCE, *options, compiler=compiler)
    with running(program) as target:
        modules = target.modules()
        main = modules.main
        assert main is not None
        assert main.path == str(program)
        assert not main.deleted
        assert not main.replaced
        with ModuleImage.open(main.open_path) as image:
            address = image.address_of("marker")
            assert address is not None
            assert address + main.load_bias == target.marker
            assert target.read_memory(target.marker, 16) == image.text_bytes(address, 16)
            assert image.build_id == main.build_id
            assert image.name == "program"
        assert modules.at_address(target.marker) is main
        assert main.start <= target.marker < main.end
        assert modules.vdso is not None
        assert modules.anonymous_code == ()


def test_every_library_of_a_process_is_read_right():
    with running("python3", "-c", "import ssl, ctypes; print('0'); input()") as target:
        modules = target.modules()
        names = {os.path.basename(module.path) for module in modules.modules}
        assert {"libc.so.6"} <= names
        assert len([module for module in modules.modules if module.is_main]) == 1
        for module in modules.modules:
            assert not module.replaced
            with ModuleImage.open(module.open_path, root=f"{target.proc}/root") as image:
                assert image.build_id == module.build_id
                for text in module.text_ranges:
                    vaddr = text.start - module.load_bias
                    assert image.vaddr_to_offset(vaddr) == text.file_offset
                    assert image.text_bytes(vaddr, 64) == target.read_memory(text.start, 64)
                    assert not text.shared


def test_a_deleted_program(tmp_path):
    program = compile_program(tmp_path, SOURCE)
    with running(program) as target:
        program.unlink()
        main = target.modules().main
        assert main is not None
        assert main.path == str(program)
        assert main.deleted
        assert not main.replaced
        with ModuleImage.open(main.open_path) as image:
            assert image.address_of("marker") == target.marker - main.load_bias
            assert image.name == "program"


LIBRARY = "int answer(void) { return %d; }"
USER = """
#include <stdio.h>
#include <unistd.h>
int answer(void);
int main(void) { char c; printf("%p\\n", (void *)answer); fflush(stdout);
  return (int)read(0, &c, 1); }
"""


@pytest.mark.parametrize("build_id", ["--build-id", "--build-id=none"])
def test_h24_a_library_replaced_while_it_is_in_use(tmp_path, build_id):
    options = ["-shared", "-fPIC", f"-Wl,{build_id}"]
    library = compile_program(tmp_path, LIBRARY % 1, *options, name="libanswer.so")
    program = compile_program(tmp_path, USER, f"-L{tmp_path}", "-lanswer", f"-Wl,-rpath,{tmp_path}")
    # What the agent sees where it may not use map_files: names only.
    shadow = tmp_path / "proc"
    shadow.mkdir()
    with running(program) as target:
        (shadow / "exe").symlink_to(program)
        (shadow / "root").symlink_to("/")
        [before] = [m for m in target.modules(str(shadow)).modules if m.path == str(library)]
        assert not before.replaced
        assert before.open_path == f"{shadow}/root{library}"

        library.unlink()
        compile_program(tmp_path, LIBRARY % 2 + " int more = 3;", *options, name="libanswer.so")
        [by_name] = [m for m in target.modules(str(shadow)).modules if m.path == str(library)]
        assert by_name.deleted
        assert by_name.replaced
        assert by_name.load_bias == before.load_bias
        [by_inode] = [m for m in target.modules().modules if m.path == str(library)]
        assert by_inode.deleted
        assert not by_inode.replaced
        assert "map_files" in by_inode.open_path


def test_a_library_that_is_loaded_twice(tmp_path):
    source = """
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <stdio.h>
    #include <unistd.h>
    int main(int c, char **v) { char b;
      void *one = dlmopen(LM_ID_NEWLM, v[1], RTLD_NOW), *two = dlmopen(LM_ID_NEWLM, v[1], RTLD_NOW);
      printf("%p %p\\n", dlsym(one, "answer"), dlsym(two, "answer")); fflush(stdout);
      return (int)read(0, &b, 1); }
    """
    library = compile_program(tmp_path, LIBRARY % 1, "-shared", "-fPIC", name="libanswer.so")
    program = compile_program(tmp_path, source)
    with running(program, library) as target:
        copies = [m for m in target.modules().modules if m.path == str(library)]
        with ModuleImage.open(copies[0].open_path) as image:
            address = image.address_of("answer")
        assert [f"{address + m.load_bias:#x}" for m in copies] == sorted(target.printed)


def test_h23_code_without_a_file_is_told_apart(tmp_path):
    source = """
    #include <fcntl.h>
    #include <stdio.h>
    #include <sys/mman.h>
    #include <unistd.h>
    int main(int c, char **v) { char b;
      void *jit = mmap(0, 8192, 7, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      void *data = mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, open(v[1], 0), 0);
      void *self = mmap(0, 4096, PROT_READ, MAP_PRIVATE, open(v[0], 0), 0);
      mprotect((void *)((long)main & -4096), 4096, PROT_READ | PROT_EXEC);
      printf("%p %p %p\\n", jit, data, self); fflush(stdout);
      return (int)read(0, &b, 1); }
    """
    data = tmp_path / "data"
    data.write_bytes(b"\xc3" * 4096)
    program = compile_program(tmp_path, source)
    with running(program, data) as target:
        modules = target.modules()
        jit, shared, _self = (int(word, 16) for word in target.printed)
        assert sorted(modules.anonymous_code) == sorted(
            [(jit, jit + 8192), (shared, shared + 4096)]
        )
        assert modules.main is not None
        assert len(modules.main.text_ranges) == 1
        assert str(data) not in [module.path for module in modules.modules]


def test_text_that_is_split_by_mprotect(tmp_path):
    filler = "".join(f"int f{i}(int x) {{ return x * {i} + {i * 7}; }}\n" for i in range(800))
    source = SOURCE.replace(
        "int main(void) {",
        "#include <sys/mman.h>\nint main(void) {"
        " mprotect((void *)((long)f400 & -4096), 4096, PROT_READ | PROT_WRITE | PROT_EXEC);",
    )
    program = compile_program(tmp_path, filler + source)
    with running(program) as target:
        main = target.modules().main
        assert main is not None
        assert len(main.text_ranges) == 3
        with ModuleImage.open(main.open_path) as image:
            assert image.address_of("marker") == target.marker - main.load_bias


def test_memory_that_cannot_be_read_leaves_the_file():
    def refuse(address: int, length: int) -> bytes:
        raise OSError("no")

    modules = list_modules(Path("/proc/self/maps").read_text(), "/proc/self", refuse)
    [libc] = [m for m in modules.modules if m.path.endswith("/libc.so.6")]
    # Asked of the library itself: a program that is not position-independent has
    # a `malloc` of its own in its PLT.
    address = ctypes.cast(ctypes.CDLL("libc.so.6").malloc, ctypes.c_void_p).value
    with ModuleImage.open(libc.open_path) as image:
        assert image.address_of("malloc") == address - libc.load_bias


def test_h26_shared_text_is_marked():
    maps = Path("/proc/self/maps").read_text().replace(" r-xp ", " r-xs ")
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        modules = list_modules(
            maps, "/proc/self", lambda address, size: os.pread(memory.fileno(), size, address)
        )
    assert all(text.shared for module in modules.modules for text in module.text_ranges)


def test_a_process_without_files_is_read_from_memory():
    with running("python3", "-c", "print('0'); input()") as target:
        everything = target.modules()
        blind = target.modules("/nonexistent")
        assert [m.load_bias for m in blind.modules] == [m.load_bias for m in everything.modules]
        assert [m.build_id for m in blind.modules] == [m.build_id for m in everything.modules]
        assert blind.main is None


def test_lines_of_maps():
    text = (
        "55d0c0a00000-55d0c0a01000 r-xp 00001000 fe:00 123   /opt/a b/c\\012d (deleted)\n"
        "7f0000000000-7f0000001000 rw-s 00000000 00:05 9 /dev/zero\n"
        "7ffd1000-7ffd2000 rw-p 00000000 00:00 0 \n"
        "garbage\n"
    )
    first, second, third = parse_maps(text)
    assert (first.start, first.end, first.offset) == (0x55D0C0A00000, 0x55D0C0A01000, 0x1000)
    assert first.executable
    assert first.device == os.makedev(0xFE, 0)
    assert first.path == "/opt/a b/c\nd (deleted)"
    assert second.permissions == "rw-s"
    assert third.path == ""
    assert third.end - third.start == mmap.PAGESIZE


def test_h82_a_process_with_another_root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(compile_program(tmp_path, SOURCE, "-static"), root / "program")
    with running("chroot", root, "/program") as target:
        main = target.modules().main
        assert main is not None
        with ModuleImage.open(main.open_path, root=f"{target.proc}/root") as image:
            assert image.address_of("marker") == target.marker
            assert image.name == "program"
