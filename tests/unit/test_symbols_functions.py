"""The function table: against nm and readelf, on system files and on what gcc makes here."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

import pytest

from tests.unit.symbols_support import (
    TEXT_ADDRESS,
    ElfWriter,
    compile_program,
    large_elf,
    names_of,
    run,
)
from uftrace_agent.symbols import FunctionKind, FunctionTable, ModuleImage

pytestmark = pytest.mark.usefixtures("no_leaks")

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
SYSTEM_FILES = [
    path
    for path in (
        LIBRARIES / "libc.so.6",
        LIBRARIES / "libcrypto.so.3",
        LIBRARIES / "libstdc++.so.6",
        LIBRARIES / "libm.so.6",
        LIBRARIES / "libpython3.11.so.1.0",
        Path("/lib64/ld-linux-x86-64.so.2"),
        Path(shutil.which("gdb") or "/usr/bin/gdb"),
        Path("/usr/sbin/nginx"),
    )
    if path.exists()
]
EXPORTED = re.compile(r"^([0-9a-f]{16}) ([0-9a-f]{16})? *([TtWwi]) (\S+)$", re.MULTILINE)


def functions_by_name(image: ModuleImage):
    """FunctionSymbol by every linkage name."""
    return {name: s for s in image.functions for name in (s.linkage_name, *s.aliases)}


def in_code(image: ModuleImage, address: int) -> bool:
    return any(low <= address < high for low, high in image.executable_ranges)


@pytest.mark.parametrize("path", SYSTEM_FILES, ids=lambda path: path.name)
def test_system_files_have_the_functions_of_nm_with_their_sizes(path):
    with ModuleImage.open(str(path)) as image:
        found = functions_by_name(image)
        for address, size, kind, versioned in EXPORTED.findall(run("nm", "-D", "-S", path)):
            name = versioned.partition("@")[0]
            if kind == "W" and not in_code(image, int(address, 16)):
                continue  # data without a type
            index = image.functions.index_of_address(int(address, 16))
            assert index is not None, name
            symbol = image.functions.by_index(index)
            assert name in (symbol.linkage_name, *symbol.aliases)
            assert (symbol.kind == FunctionKind.IFUNC_RESOLVER) == (kind == "i")
            if size:
                sizes = {int(size, 16), found[name].size, symbol.size}
                assert len(sizes) <= 2, name  # versions of one name may differ


@pytest.mark.parametrize("path", SYSTEM_FILES, ids=lambda path: path.name)
def test_unwind_data_covers_stripped_files_as_readelf_shows_it(path):
    with ModuleImage.open(str(path)) as image:
        listed = re.findall(
            r"FDE cie=\S+ pc=([0-9a-f]+)\.\.([0-9a-f]+)",
            # Its status is 1 for files with nothing wrong but a .relr.dyn.
            run("readelf", "--debug-dump=frames", path, check=False),
        )
        bounds = {int(start, 16): int(end, 16) - int(start, 16) for start, end in listed}
        frames = image.frames
        ours = dict(zip(frames.start.tolist(), frames.size.tolist(), strict=True))
        signal_trampolines = set(bounds) - set(ours)
        assert len(signal_trampolines) <= 2
        assert all(bounds[start] == size for start, size in ours.items())
        for symbol in image.functions:
            if symbol.is_synthetic:
                assert symbol.linkage_name == f"{image.name}+{symbol.address:#x}"
                assert bounds[symbol.address] == symbol.size


@pytest.mark.parametrize("path", SYSTEM_FILES, ids=lambda path: path.name)
def test_every_function_is_code_and_every_address_has_its_function(path):
    with ModuleImage.open(str(path)) as image:
        table = image.functions
        assert (table.address[1:] > table.address[:-1]).all()
        for symbol in table:
            assert in_code(image, symbol.address)
            assert symbol.size == 0 or in_code(image, symbol.address + symbol.size - 1)
            inner = table.at_address(symbol.address)
            assert inner is not None
            assert table.by_index(inner) == symbol
        assert table.at_address(0) is None
        assert table.at_address(1 << 63) is None


def test_the_walk_of_eh_frame_agrees_with_the_search_table(tmp_path):
    path = LIBRARIES / "libstdc++.so.6"
    copy = tmp_path / "copy.so"
    data = bytearray(path.read_bytes())
    with ModuleImage.open(str(path)) as image:
        expected = image.frames
    header = int(
        re.search(r"GNU_EH_FRAME +0x([0-9a-f]+)", run("readelf", "-lW", path)).group(1), 16
    )
    data[header] = 99  # an unknown version of the table
    copy.write_bytes(data)
    with ModuleImage.open(str(copy)) as image:
        assert (image.frames.start == expected.start).all()
        assert (image.frames.size == expected.size).all()
        assert (image.frames.is_entry == expected.is_entry).all()


def test_200000_symbols_are_indexed_in_under_a_second(tmp_path):
    path = tmp_path / "large.so"
    path.write_bytes(large_elf(200_000))
    timings = []
    for _ in range(3):
        with ModuleImage.open(str(path)) as image:
            start = time.thread_time()
            table = image.functions
            timings.append(time.thread_time() - start)
    assert len(table) == 200_000
    assert min(timings) < 1.0, timings
    index = table.at_address(TEXT_ADDRESS + 16 * 123_457 + 15)
    assert index == 123_457
    assert table.by_index(index).linkage_name == "function_123457"


def test_h9_names_of_one_address_are_folded_the_best_first():
    symbols = [
        ("local_name", 0x1000, 8, 2, 0),
        ("__write", 0x1000, 8, 2, 1),
        ("write", 0x1000, 8, 2, 2),
        ("write", 0x1000, 8, 2, 2),
        ("other", 0x1010, 0, 2, 1),
        ("_other", 0x1010, 4, 2, 1),
    ]
    table = ModuleImage.from_bytes(ElfWriter(symbols=symbols).build()).functions
    first, second = table
    assert (first.linkage_name, first.aliases) == ("write", ("__write", "local_name"))
    assert not first.is_local
    assert (second.linkage_name, second.size) == ("other", 4)
    assert table.address_of("local_name") == 0x1000
    assert table.address_of("_other") == 0x1010
    assert table.address_of("writ") is None
    assert table.address_of("") is None


def test_what_is_not_a_function_is_left_out():
    symbols = [
        ("undefined", 0, 0, 2, 1),
        ("data", 0x1000, 8, 1, 1),
        ("outside", 0x9000, 8, 2, 1),
        ("local_label", 0x1008, 0, 0, 0),
        ("global_label", 0x1010, 0, 0, 1),
        ("end_of_text", 0x1040, 0, 0, 1),
        ("$x", 0x1018, 0, 2, 0),
        ("versioned@@V_2", 0x1020, 8, 2, 1),
        ("too_long", 0x1030, 4096, 2, 1),
    ]
    table = ModuleImage.from_bytes(ElfWriter(symbols=symbols).build()).functions
    assert [(s.linkage_name, s.size) for s in table] == [
        ("global_label", 0),
        ("versioned", 8),
        ("too_long", 16),
    ]


def test_functions_inside_each_other_and_gaps():
    symbols = [("outer", 0x1000, 32, 2, 1), ("inner", 0x1008, 8, 2, 1), ("far", 0x1030, 8, 2, 1)]
    table = ModuleImage.from_bytes(ElfWriter(symbols=symbols).build()).functions
    names = {
        address: None if index is None else table.by_index(index).name
        for address in (0x1000, 0x1009, 0x1010, 0x1025, 0x1037, 0x1038)
        for index in [table.at_address(address)]
    }
    assert names == {
        0x1000: "outer",
        0x1009: "inner",
        0x1010: "outer",
        0x1025: None,
        0x1037: "far",
        0x1038: None,
    }


def test_an_empty_table():
    table = FunctionTable.empty()
    assert len(table) == 0
    assert list(table) == []
    assert table.at_address(5) is None
    assert table.address_of("x") is None
    with pytest.raises(IndexError):
        table.by_index(0)


SOURCE = """
#include <stdlib.h>
static int plain(int x) { return x + 1; }
static int (*choose(void))(int) { return plain; }
int chosen(int x) __attribute__((ifunc("choose")));
int original(int x) { return chosen(x) * 2; }
int other_name(int x) __attribute__((alias("original")));
int weak_name(int x) __attribute__((weak, alias("original")));
__asm__(".text\\n.globl asm_global\\nasm_global: mov %edi, %eax\\nret\\n"
        "asm_local: ret\\n.globl asm_sized\\n.type asm_sized, @function\\n"
        "asm_sized: .cfi_startproc\\nlea 1(%rdi), %eax\\nret\\n.cfi_endproc\\n");
__attribute__((cold, noinline)) static void fail(const char *why) { if (why[0] == 'x') abort(); }
int checks(int x, char **v) { if (__builtin_expect(x == 77, 0)) { fail(v[0]); fail(v[1]); exit(3); }
  return x; }
int main(int c, char **v) { return original(c) + checks(c, v); }
"""


def test_a_small_program(tmp_path):
    path = compile_program(tmp_path, SOURCE, "-O2")
    with ModuleImage.open(str(path)) as image:
        found = functions_by_name(image)
        assert found["chosen"].kind == FunctionKind.IFUNC_RESOLVER
        assert found["chosen"] is found["choose"]
        assert found["original"].linkage_name == "original"
        assert set(found["original"].aliases) == {"other_name", "weak_name"}
        assert "asm_local" not in found
        assert found["asm_global"].size == 0
        assert found["asm_sized"].size == 4
        assert image.entry == found["_start"].address
        cold = [symbol for name, symbol in found.items() if name.endswith(".cold")]
        assert cold
        assert all(symbol.is_fragment for symbol in cold)
        assert not found["main"].is_fragment


def test_cold_parts_of_stripped_programs_are_no_functions(tmp_path):
    source = "#include <stdio.h>\n#include <stdlib.h>\n"
    source += "__attribute__((cold, noinline)) void fail(char *why) { fputs(why, stderr); }\n"
    source += "".join(
        f"""
        __attribute__((noinline)) int work{i}(int x, char **v) {{
            char text[64];
            int total = x;
            for (int i = 0; i < x; i++) total += sprintf(text, "%d%s", i, v[i]);
            if (__builtin_expect(total == {i} + 77777, 0)) {{
                fail(text); fail(v[0]); abort();
            }}
            return total;
        }}
        """
        for i in range(20)
    )
    source += "int main(int c, char **v) { return work1(c, v) + work2(c, v); }"
    path = compile_program(tmp_path, source, "-O2")
    with ModuleImage.open(str(path)) as image:
        cold = {s.address for s in image.functions if ".cold" in s.linkage_name}
        whole = {s.address for s in image.functions if s.linkage_name.startswith("work")} - cold
    assert len(cold) >= 20
    run("strip", path)
    with ModuleImage.open(str(path)) as image:
        synthetic = {s.address for s in image.functions if s.is_synthetic}
    assert not cold & synthetic
    assert whole <= synthetic


def test_a_static_program_has_named_ifunc_stubs(tmp_path):
    path = compile_program(tmp_path, SOURCE, "-O1", "-static")
    with ModuleImage.open(str(path)) as image:
        stubs = {s.name for s in image.functions if s.kind == FunctionKind.PLT_STUB}
        assert stubs & {"strlen@plt", "memcpy@plt", "memmove@plt"}
        assert image.elf_type == 2
        resolvers = {s.address for s in image.functions if s.kind == FunctionKind.IFUNC_RESOLVER}
        assert image.ifunc_slots
        assert set(image.ifunc_slots.values()) <= resolvers


@pytest.mark.parametrize("linker", ["bfd", "gold"])
@pytest.mark.parametrize("protection", ["none", "full"])
def test_h10_plt_stubs_are_those_of_objdump(tmp_path, linker, protection):
    source = """
    #include <stdio.h>
    #include <stdlib.h>
    int main(int c, char **v) { void *f = (void *)malloc; free(f == v ? 0 : malloc(c));
      return puts(v[0]) + atoi(getenv("X")); }
    """
    options = [f"-fuse-ld={linker}", f"-fcf-protection={protection}", "-O1"]
    for extra in (["-Wl,-z,lazy"], ["-Wl,-z,now"], ["-no-pie", "-Wl,-z,lazy"]):
        path = compile_program(tmp_path, source, *options, *extra)
        listing = run("objdump", "-d", path)
        expected = {
            (int(address, 16), name)
            for address, name in re.findall(r"^([0-9a-f]{16}) <(\w+@plt)>:", listing, re.MULTILINE)
        }
        with ModuleImage.open(str(path)) as image:
            stubs = {
                (s.address, s.linkage_name)
                for s in image.functions
                if s.kind == FunctionKind.PLT_STUB
            }
            assert expected
            assert expected <= stubs
            assert {name for _, name in stubs} >= {"puts@plt", "free@plt", "getenv@plt"}
            assert {"puts", "malloc", "getenv"} <= image.imports
            assert set(image.got_slots.values()) >= {"puts", "malloc", "getenv"}


def test_a_program_of_another_machine(tmp_path):
    symbols = [("f", 0x1000, 8, 2, 1), ("$x", 0x1000, 0, 0, 0)]
    arm = ModuleImage.from_bytes(ElfWriter(symbols=symbols, machine=183).build())
    assert arm.machine == "aarch64"
    assert names_of(arm) == {"f"}
    riscv = ModuleImage.from_bytes(ElfWriter(symbols=symbols, machine=243).build())
    assert riscv.machine == 243
    assert names_of(riscv) == {"f"}


@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
def test_libraries_linked_by_lld_have_plt_stubs(tmp_path, machine):
    ziglang = pytest.importorskip("ziglang")
    zig = os.path.join(os.path.dirname(ziglang.__file__), "zig")
    source = tmp_path / "lib.c"
    source.write_text(
        "int other(int); int more(int);\nint f(int x) { return other(x) + more(x); }\n"
    )
    hardened = "-mbranch-protection=standard" if machine == "aarch64" else "-fcf-protection=full"
    for options in ([], [hardened]):
        run(
            *(zig, "cc", "-target", f"{machine}-linux-gnu", "-shared", "-fPIC", "-O1", "-nostdlib"),
            *options,
            *("-o", tmp_path / "lib.so", source),
        )
        with ModuleImage.open(str(tmp_path / "lib.so")) as image:
            assert image.machine == machine
            found = functions_by_name(image)
            assert {"f", "other@plt", "more@plt"} <= set(found)
            stub = found["other@plt"]
            assert stub.kind == FunctionKind.PLT_STUB
            assert stub.size in (16, 24)
            assert stub.address % 4 == 0
            assert set(image.got_slots.values()) == {"other", "more"}


def test_musl_programs(tmp_path):
    path = compile_program(tmp_path, "int main(void) { return 0; }", "-static", compiler="musl-gcc")
    with ModuleImage.open(str(path)) as image:
        found = functions_by_name(image)
        assert {"main", "_start_c", "exit"} <= set(found)
        assert image.machine == "x86_64"
