"""ELF structure: real files against readelf, and damaged files."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest

from tests.unit.symbols_support import ElfWriter, compile_program, run
from uftrace_agent.symbols import MalformedElfError, ModuleImage
from uftrace_agent.symbols.byte_source import FileSource, MemorySource
from uftrace_agent.symbols.elf import ElfFile

pytestmark = pytest.mark.usefixtures("no_leaks")

LIBC = "/usr/lib/x86_64-linux-gnu/libc.so.6"


def everything(image: ModuleImage) -> None:
    """Make an image parse all that it can parse."""
    for symbol in image.functions:
        assert image.functions.index_of_address(symbol.address) is not None
    _ = image.build_id, image.got_slots, image.imports, image.patchable_sites, image.mcount_loc
    _ = image.relocated_ranges, image.restartable_sequences, image.has_xray, image.is_go
    _ = image.may_throw, image.text_bytes(image.entry, 16)


def test_sections_and_segments_are_those_of_readelf():
    elf = ElfFile(FileSource.open(LIBC))
    listed = re.findall(
        r"^ +\[ *\d+\] (\S+) +\S+ +([0-9a-f]{16}) ([0-9a-f]+) ([0-9a-f]+)",
        run("readelf", "-SW", LIBC),
        re.MULTILINE,
    )
    assert listed == [
        (s.name, f"{s.address:016x}", f"{s.offset:06x}", f"{s.size:06x}")
        for s in elf.sections
        if s.name
    ]
    loads = re.findall(r"LOAD +0x([0-9a-f]+) 0x([0-9a-f]+)", run("readelf", "-lW", LIBC))
    assert [(int(offset, 16), int(vaddr, 16)) for offset, vaddr in loads] == [
        (segment.offset, segment.vaddr) for segment in elf.loads
    ]


def test_build_id_is_that_of_readelf():
    with ModuleImage.open(LIBC) as image:
        assert f"Build ID: {image.build_id}\n" in run("readelf", "-n", LIBC)


def test_addresses_map_to_file_bytes():
    with ModuleImage.open(LIBC) as image:
        address = image.address_of("malloc")
        assert address is not None
        offset = image.vaddr_to_offset(address)
        assert offset is not None
        with open(LIBC, "rb") as file:
            file.seek(offset)
            assert image.text_bytes(address, 32) == file.read(32)
        assert image.text_bytes(1 << 40, 16) == b""
        assert image.vaddr_to_offset(1 << 40) is None
        last = image.segments[-1]
        assert len(image.text_bytes(last.vaddr + last.filesz - 3, 16)) == 3


def test_a_closed_image_keeps_what_it_read():
    image = ModuleImage.open(LIBC)
    count = len(image.functions)
    image.close()
    image.close()
    assert len(image.functions) == count
    with pytest.raises(ValueError, match="closed"):
        image.text_bytes(image.segments[0].vaddr, 1)


def test_another_build_id_is_refused():
    with pytest.raises(Exception, match="not the file that is mapped") as caught:
        ModuleImage.open(LIBC, expected_build_id="00")
    assert getattr(caught.value, "reason", "") == "MODULE_REPLACED"


@pytest.mark.parametrize(
    "data",
    [b"", b"\x7fELF", b"#!/bin/sh\n" * 20, b"\x7fELF\x01\x01" + b"\0" * 100, b"\0" * 4096],
    ids=["empty", "short", "script", "32-bit", "zeros"],
)
def test_what_is_no_elf64_file_is_refused(data):
    with pytest.raises(MalformedElfError):
        ModuleImage.from_bytes(data)


def test_a_pipe_does_not_hang_and_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MalformedElfError):
        ModuleImage.open(str(tmp_path / "pipe"))


def test_a_file_truncated_while_it_is_open_is_an_error(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(ElfWriter(symbols=[("f", 0x1000, 8, 2, 1)]).build())
    with ModuleImage.open(str(path)) as image:
        os.truncate(path, 200)
        with pytest.raises(MalformedElfError, match="truncated"):
            _ = image.functions


def test_a_file_without_section_headers_has_functions_by_its_dynamic_segment(tmp_path):
    source = "int exported(int x) { return x + 1; }\nstatic int __attribute__((noinline)) inner("
    source += "int x) { return x * 3; }\nint second(int x) { return inner(x) + inner(x + 1); }\n"
    library = compile_program(tmp_path, source, "-shared", "-fPIC", "-O1", "-s", name="lib.so")
    data = bytearray(library.read_bytes())
    with ModuleImage.open(str(library)) as whole:
        expected = {
            (s.address, s.size) for s in whole.functions if s.name in ("exported", "second")
        }
    data[0x28:0x30] = bytes(8)  # e_shoff
    data[0x3C:0x40] = bytes(4)  # e_shnum, e_shstrndx
    image = ModuleImage.from_bytes(bytes(data), name="lib.so")
    named = {(s.address, s.size) for s in image.functions if s.name in ("exported", "second")}
    assert named == expected
    assert any(s.is_synthetic for s in image.functions)


@pytest.fixture(scope="module")
def small_files(tmp_path_factory) -> list[bytes]:
    """Small files that between them have every table that is parsed."""
    folder = tmp_path_factory.mktemp("fuzz")
    source = (
        "#include <stdio.h>\nstatic int one(void) { return 1; }\n"
        "static int (*pick(void))(void) { return one; }\n"
        'int chosen(void) __attribute__((ifunc("pick")));\n'
        "int main(int c, char **v) { printf(v[0]); return chosen(); }\n"
    )
    plain = compile_program(
        folder,
        source,
        "-O1",
        "-fpatchable-function-entry=5",
        "-Wl,-z,pack-relative-relocs",
        "-Wl,-z,separate-code",
    )
    stripped = folder / "stripped"
    run("strip", "-o", stripped, plain)
    packed = folder / "packed"
    run("xz", "-k", plain)
    run("objcopy", f"--add-section=.gnu_debugdata={plain}.xz", stripped, packed)
    return [Path(path).read_bytes() for path in (plain, stripped, packed)]


def test_damaged_files_raise_one_error_only(small_files):
    generator = random.Random(20240607)
    refused = 0
    for turn in range(3000):
        data = bytearray(generator.choice(small_files))
        if turn % 4 == 0:
            del data[generator.randrange(len(data)) :]
        else:
            # Most damage goes where the structure is: headers and section table.
            regions = [(0, 1024), (len(data) - 2500, len(data)), (0, len(data))]
            for _ in range(generator.choice([1, 1, 2, 8, 64])):
                low, high = generator.choice(regions)
                data[generator.randrange(low, high)] ^= 1 << generator.randrange(8)
        try:
            everything(ModuleImage.from_bytes(bytes(data), name="damaged"))
        except MalformedElfError:
            refused += 1
    assert 100 < refused < 2900


def test_names_that_overlap_beyond_reason_are_refused():
    # 4000 symbols that all point at one name of 60 kB: 240 MB out of a small file.
    symbols = [(f"{i:015x}", 0x1000 + i, 1, 2, 1) for i in range(4000)]
    data = bytearray(ElfWriter(text=b"\xc3" * 4096, symbols=symbols).build())
    elf = ElfFile(MemorySource(bytes(data)))
    table, strings = elf.section(".symtab"), elf.section(".strtab")
    assert table is not None
    assert strings is not None
    for offset in range(table.offset, table.offset + table.size, table.entry_size):
        data[offset : offset + 4] = (1).to_bytes(4, "little")
    data[strings.offset : strings.offset + strings.size] = b"\0".ljust(strings.size, b"x")
    with pytest.raises(MalformedElfError, match="overlap"):
        _ = ModuleImage.from_bytes(bytes(data)).functions
