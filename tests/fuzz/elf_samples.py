"""Small sound ELF files that between them have every table that the agent reads."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from tests.unit.symbols_support import ElfWriter

_SOURCE: Final = r"""
#include <stdio.h>
static int one(void) { return 1; }
static int (*pick(void))(void) { return one; }
int chosen(void) __attribute__((ifunc("pick")));
__attribute__((noinline)) int add(int a, int b) { return a + b; }
__attribute__((noinline)) int loop(int n) { int s = 0; while (n--) s += add(n, s); return s; }
static int (*table[])(int, int) = { add, add };
__asm__(".pushsection __rseq_cs,\"aw\"\n.balign 32\n.long 0, 0\n.quad add, 8, loop\n.popsection");
int main(int c, char **v) { printf(v[0]); return chosen() + loop(c) + table[c & 1](c, 2); }
"""
_THROWING: Final = r"""
#include <stdexcept>
#include <vector>
namespace ns { template <class T> struct Box { T value; [[gnu::noinline]] T get() const {
  if (!value) throw std::runtime_error("none"); return value; } }; }
int main(int c, char **) {
  try { std::vector<int> v(c); return ns::Box<int>{c}.get() + int(v.size()); }
  catch (const std::exception &) { return 2; }
}
"""
# Name, compiler, options.
_BUILDS: Final = (
    ("plain", "gcc", "-O1 -Wl,-z,pack-relative-relocs -Wl,-z,separate-code"),
    ("patchable", "gcc", "-O1 -fpatchable-function-entry=5,2 -fcf-protection=full"),
    ("fentry", "gcc", "-O1 -pg -mfentry -mrecord-mcount -no-pie"),
    ("library", "gcc", "-O2 -shared -fPIC -Wl,--hash-style=both -g -gz=zlib"),
    ("lazy", "gcc", "-O2 -Wl,-z,lazy -no-pie -Wl,--hash-style=sysv -Wl,--no-eh-frame-hdr"),
    ("xray", "clang", "-O1 -fxray-instrument -fxray-instruction-threshold=1"),
    ("throwing", "g++", "-O1"),
)


def build(folder: Path) -> list[Path]:
    """Compile all of them."""
    source, throwing = folder / "sample.c", folder / "throwing.cc"
    source.write_text(_SOURCE)
    throwing.write_text(_THROWING)
    built = []
    for name, compiler, options in _BUILDS:
        path = folder / f"{name}.elf"
        _run(compiler, *options.split(), throwing if compiler == "g++" else source, "-o", path)
        built.append(path)
    return [*built, *_stripped(folder, built[0]), *_written(folder)]


def _stripped(folder: Path, plain: Path) -> list[Path]:
    stripped, packed, linked = (folder / f"{n}.elf" for n in ("stripped", "packed", "linked"))
    _run("strip", "-o", stripped, plain)
    _run("xz", "-kf", plain)
    _run("objcopy", f"--add-section=.gnu_debugdata={plain}.xz", stripped, packed)
    debug = folder / "linked.debug"
    _run("objcopy", "--only-keep-debug", plain, debug)
    _run("objcopy", "--remove-section=.note.gnu.build-id", stripped, linked)
    _run("objcopy", f"--add-gnu-debuglink={debug}", linked)
    bare = folder / "bare.elf"
    data = bytearray(stripped.read_bytes())
    data[0x28:0x30] = bytes(8)  # e_shoff
    data[0x3C:0x40] = bytes(4)  # e_shnum, e_shstrndx
    bare.write_bytes(data)
    return [stripped, packed, linked, bare]


def _written(folder: Path) -> list[Path]:
    symbols = [(f"_ZN2ns1f{index}Ei", 0x1000 + 4 * index, 4, 2, 1) for index in range(8)]
    symbols += [("_RNvCs1234_7mycrate3foo", 0x1030, 4, 2, 1)]
    files = {
        "machine.elf": ElfWriter(symbols=symbols, machine=183).build(),
        "written.elf": ElfWriter(text=b"\x90" * 64, symbols=symbols).build(),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


def _run(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
