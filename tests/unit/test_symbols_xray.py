"""Sleds of -fxray-instrument: what compilers made, what old ones made, and damage."""

from __future__ import annotations

import random
import re
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.targets.build import PROGRAMS, WITH_XRAY, XRAY_BARE, build
from tests.unit.symbols_support import TEXT_ADDRESS, ElfWriter, compile_program, run
from uftrace_agent.symbols import MalformedElfError, ModuleImage
from uftrace_agent.symbols.xray_sleds import Sled, SledKind, SledMap

pytestmark = pytest.mark.usefixtures("no_leaks")

ENTRY = struct.Struct("<QQBBB13x")
# A sled's first bytes on x86-64, by kind and the version of its entry.
JUMP_9, JUMP_15, JUMP_20, RET = b"\xeb\x09", b"\xeb\x0f", b"\xeb\x14", b"\xc3\x2e"
NOP_9 = bytes.fromhex("660f1f840000020000")
HEADS = {
    SledKind.ENTRY: JUMP_9 + NOP_9,
    SledKind.EXIT: RET + NOP_9,
    SledKind.TAIL: JUMP_9 + NOP_9,
    SledKind.ARGUMENTS: JUMP_9 + NOP_9,
    SledKind.TYPED_EVENT: JUMP_20,
}
# The words of `llvm-xray extract`.
KINDS = {
    "function-enter": SledKind.ENTRY,
    "function-exit": SledKind.EXIT,
    "tail-exit": SledKind.TAIL,
    "log-args-enter": SledKind.ARGUMENTS,
    "custom-event": SledKind.CUSTOM_EVENT,
}
EXTRACTED = re.compile(
    r"address: (\w+), function: (\w+), kind: ([\w-]+), always-instrument: (\w+),.* version: (\d)"
)

# llvm-xray 14 refuses files with typed events.
SOURCE = """
extern "C" void __xray_CustomEvent() {}
#define NOINLINE __attribute__((noinline, used))
#define KEEP() __asm__ volatile("" ::: "memory")
template <class T> NOINLINE T twice(T x) { KEEP(); return x * 2; }
inline NOINLINE long inlined(long x) { KEEP(); return x + 1; }
struct Base { virtual ~Base(); virtual long work(long x); };
Base::~Base() {}
long Base::work(long x) { return twice(x) + inlined(x); }
NOINLINE long exits(long x) {
  if (x == 1) { KEEP(); return 5; }
  if (x == 2) { twice(x); return 7; }
  return twice(x) + 1;
}
NOINLINE static long tail(long x) { KEEP(); return twice(x + 1); }
__attribute__((minsize)) NOINLINE long maybe(long x) { return x & 1 ? twice(x) : x; }
__attribute__((xray_always_instrument, xray_log_args(1))) NOINLINE long logged(long x) { return x; }
__attribute__((xray_never_instrument)) NOINLINE long never(long x) { KEEP(); return x; }
NOINLINE long event(char *p, unsigned long n) { __xray_customevent(p, n); KEEP(); return n; }
NOINLINE void stuck() { for (;;) KEEP(); }
int main(int c, char **v) {
  Base base;
  if (c > 9) stuck();
  return base.work(c) + exits(c) + tail(c) + maybe(c) + logged(c) + never(c) + event(*v, 2);
}
"""
LINKS = {
    "pie": ["-pie", "-fPIE"],
    "fixed": ["-no-pie", "-fno-pie"],
    "library": ["-shared", "-fPIC"],
    "static": ["-static"],
    "gold": ["-pie", "-fPIE", "-fuse-ld=gold", "-ffunction-sections"],
    "collected": ["-ffunction-sections", "-Wl,--gc-sections"],
    "endbr": ["-fcf-protection=full"],
    "dense": ["-Os", "-falign-functions=1"],
    "O0": ["-O0"],
    "index": ["-fno-xray-function-index"],  # clang 14 has it the wrong way round
    "entries": ["-Xclang", "-fxray-instrumentation-bundle=function-entry"],
}


def all_sleds(sleds: SledMap) -> list[tuple[int, Sled]]:
    """(function, sled) of every sled of a map."""
    found = [(f, sled) for f in sleds.functions.tolist() for sled in sleds.of_function(f)]
    assert len(found) == len(sleds)
    return found


def by_name(image: ModuleImage) -> dict[str, list[tuple[SledKind, bytes]]]:
    """(kind, first bytes) of the sleds of each function."""
    names = {symbol.address: symbol.name for symbol in image.functions}
    return {
        names[function]: [
            (sled.kind, image.text_bytes(sled.address, 11))
            for sled in image.sleds.of_function(function)
        ]
        for function in image.sleds.functions.tolist()
    }


def check_bytes(image: ModuleImage) -> None:
    """Whether there is a sled in the code wherever the map has one."""
    for _function, sled in all_sleds(image.sleds):
        head = HEADS.get(sled.kind, JUMP_15 if sled.version else JUMP_20)
        assert image.text_bytes(sled.address, len(head)) == head
        assert sled.address % 2 == 0


@pytest.mark.parametrize("link", LINKS)
def test_sleds_are_those_of_llvm_xray(tmp_path, link):
    options = [*XRAY_BARE, "-fno-exceptions", "-O2", *LINKS[link]]
    path = compile_program(tmp_path, SOURCE, *options, compiler="clang++")
    listed = EXTRACTED.findall(run("llvm-xray", "extract", path))
    with ModuleImage.open(str(path)) as image:
        assert [
            (s.address, function, s.kind, s.always, s.version)
            for function, s in all_sleds(image.sleds)
        ] == sorted(
            (
                (int(address, 16), int(function, 16), KINDS[kind], always == "true", int(version))
                for address, function, kind, always, version in listed
            ),
            key=lambda row: (row[1], row[0]),
        )
        assert len(image.sleds.functions) >= 9
        check_bytes(image)
        starts = {symbol.address for symbol in image.functions}
        assert starts >= set(image.sleds.functions.tolist())
        never = image.address_of("_Z5neverl")
        assert never is not None
        assert image.sleds.of_function(never) == ()


def test_a_stripped_file_has_its_sleds(tmp_path):
    path = compile_program(tmp_path, SOURCE, *XRAY_BARE, "-O2", compiler="clang++")
    with ModuleImage.open(str(path)) as image:
        expected = all_sleds(image.sleds)
    run("strip", path)
    with ModuleImage.open(str(path)) as image:
        assert image.has_xray
        assert all_sleds(image.sleds) == expected != []


def test_a_program_without_sleds(tmp_path):
    path = compile_program(tmp_path, SOURCE, "-O2", compiler="clang++")
    with ModuleImage.open(str(path)) as image:
        assert not image.has_xray
        assert len(image.sleds) == len(image.sleds.functions) == 0
        assert image.sleds.of_function(image.entry) == ()


@pytest.mark.parametrize("variant", WITH_XRAY)
def test_every_kind_of_sled(variant):
    with ModuleImage.open(str(build("xray_events", variant))) as image:
        check_bytes(image)
        kinds = {name: [kind for kind, _ in sleds] for name, sleds in by_name(image).items()}
        assert kinds["leaf"] == [SledKind.ENTRY, SledKind.EXIT]
        assert kinds["exits"] == [SledKind.ENTRY, *[SledKind.EXIT] * 4]
        assert kinds["logged"] == [SledKind.ARGUMENTS, SledKind.EXIT]
        assert kinds["tail_first"] == [SledKind.ENTRY, SledKind.TAIL]
        assert kinds["tail_pointer"] == [SledKind.ENTRY, SledKind.TAIL]
        assert kinds["tail_either"] == [SledKind.ENTRY, SledKind.EXIT, SledKind.TAIL]
        # One sled before the conditional jump, which may fall through to the exit.
        assert kinds["tail_maybe"] == [SledKind.ENTRY, SledKind.TAIL, SledKind.EXIT]
        assert kinds["event_custom"] == [SledKind.ENTRY, SledKind.CUSTOM_EVENT, SledKind.EXIT]
        assert kinds["event_typed"] == [SledKind.ENTRY, SledKind.TYPED_EVENT, SledKind.EXIT]
        assert set(kinds["event_both"]) == set(SledKind) - {SledKind.TAIL, SledKind.ARGUMENTS}
        always = image.address_of("always")
        assert always is not None
        assert [sled.always for sled in image.sleds.of_function(always)] == [True, True]
        skip = 4 if variant == "xray-cet" else 0  # endbr64
        assert image.sleds.of_function(always)[0].address == always + skip


@pytest.mark.parametrize("variant", WITH_XRAY)
def test_shared_objects_have_sleds_too(variant):
    with ModuleImage.open(str(build("dlopen", variant).parent / "plugin.so")) as image:
        check_bytes(image)
        assert set(by_name(image)) == {"plugin_leaf", "plugin_work"}


@pytest.mark.parametrize("variant", PROGRAMS["xray_legacy"].variants)
def test_maps_of_older_versions(variant):
    """Absolute addresses; in position-independent files by relocations alone."""
    with ModuleImage.open(str(build("xray_legacy", variant))) as image:
        check_bytes(image)
        sleds = all_sleds(image.sleds)
        assert {sled.version for _, sled in sleds} == {0, 1}
        assert {sled.kind for _, sled in sleds} == set(SledKind)
        assert len(image.sleds.functions) == 12
        starts = {symbol.address for symbol in image.functions}
        assert variant == "stripped" or starts >= set(image.sleds.functions.tolist())
        if variant != "stripped":
            kinds = {name: [kind for kind, _ in sleds] for name, sleds in by_name(image).items()}
            assert kinds["legacy_exits"] == [SledKind.ENTRY, *[SledKind.EXIT] * 4]
            assert kinds["legacy_maybe"] == [SledKind.ENTRY, SledKind.TAIL, SledKind.EXIT]


def old_library(folder: Path, flags: str, *options: str) -> Path:
    """A library whose map names its function by symbol, and one that it has not."""
    assembly, library = folder / "old.s", folder / "old.so"
    assembly.write_text(
        ".text\n.globl f\n.type f,@function\n.p2align 4\nnop\n"
        "f: endbr64\n.Lin: .byte 0xeb,9\n.zero 9\n.Lout: ret\n.zero 10\n.size f,.-f\n"
        f'.section xray_instr_map,"{flags}",@progbits\n.p2align 3\n'
        ".quad .Lin, f\n.byte 0, 1, 0\n.zero 13\n"
        ".quad .Lout, f\n.byte 1, 1, 1\n.zero 13\n"
        ".quad .Lout, elsewhere\n.byte 1, 0, 0\n.zero 13\n"
        '.section .note.GNU-stack,"",@progbits\n'
    )
    run("gcc", "-shared", "-nostdlib", "-Wl,-z,notext", *options, "-o", library, assembly)
    return library


@pytest.mark.parametrize("options", [[], ["-Wl,-z,pack-relative-relocs"], ["-Wl,-Bsymbolic"]])
@pytest.mark.parametrize("flags", ["aw", "a"])  # "a" needs relocations of read-only data
def test_an_old_library_names_its_functions_by_symbol(tmp_path, options, flags):
    with ModuleImage.open(str(old_library(tmp_path, flags, *options))) as image:
        start = image.address_of("f")
        assert start is not None
        assert all_sleds(image.sleds) == [
            (start, Sled(start + 4, SledKind.ENTRY, True, 0)),
            (start, Sled(start + 15, SledKind.EXIT, True, 1)),
        ]


def test_damaged_relocations_and_symbols_raise_one_error_only(tmp_path):
    whole = old_library(tmp_path, "aw").read_bytes()
    generator = random.Random(20240611)
    read = refused = 0
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(generator.choice([1, 2, 8])):
            data[generator.randrange(64, len(data))] ^= 1 << generator.randrange(8)
        try:
            read += len(all_sleds(sleds_of(bytes(data)))) == 2
        except MalformedElfError:
            refused += 1
    assert read > 500
    assert refused > 10


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_newer_clang_and_the_other_architecture(tmp_path, machine):
    source, library = tmp_path / "plain.c", tmp_path / "plain.so"
    source.write_text(
        '__attribute__((noinline, visibility("hidden"))) long f(long x) { return x * 3; }\n'
        'long g(long x) { __asm__ volatile(""); return f(x + 1); }\n'
        "long h(char *p) { __xray_customevent(p, 2); __xray_typedevent(3, p, 4); return 1; }\n"
    )
    run(
        *(sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-gnu", "-O2"),
        *(*XRAY_BARE, "-shared", "-nostdlib", "-Wl,-z,undefs", "-o", library, source),
    )
    with ModuleImage.open(str(library)) as image:
        found = {name: [kind for kind, _ in sleds] for name, sleds in by_name(image).items()}
        events = [SledKind.CUSTOM_EVENT, SledKind.TYPED_EVENT]
        assert found == {
            "f": [SledKind.ENTRY, SledKind.EXIT],
            "g": [SledKind.ENTRY, SledKind.TAIL],
            "h": [SledKind.ENTRY, *events, SledKind.EXIT],
        }
        if machine == "x86_64":
            check_bytes(image)
        else:  # `b` over what is left of the sled, which lies in front of the return
            heads = {head[:4].hex() for sleds in by_name(image).values() for _, head in sleds}
            assert heads == {"08000014", "06000014", "09000014"}


# --- made by hand: sections that no compiler made ---

TEXT = b"\xc3" * 4096
TEXT_END = TEXT_ADDRESS + len(TEXT)
Row = tuple[int, int, int, int, int]  # as in the section


def file_with(section: bytes, kind: int = 1) -> bytes:
    """A file with that section (its fourth), which lies at address 0."""
    sections = {"xray_instr_map": (kind, 2, section)}
    return ElfWriter(text=TEXT, sections=sections).build()


def sleds_of(data: bytes) -> SledMap:
    return ModuleImage.from_bytes(data).sleds


def with_header(data: bytes, offset: int, *values: int) -> bytes:
    """The file with other values in the header of that section."""
    changed = bytearray(data)
    (table,) = struct.unpack_from("<Q", changed, 0x28)
    struct.pack_into(f"<{len(values)}Q", changed, table + 4 * 64 + offset, *values)
    return bytes(changed)


def expected_sleds(rows: list[Row]) -> list[tuple[int, Sled]]:
    """What a plain loop makes of the section."""
    found: dict[tuple[int, int], Sled] = {}
    for index, (address, function, kind, always, version) in enumerate(rows):
        if version >= 2:
            address = (address + 32 * index) % (1 << 64)
            function = (function + 32 * index + 8) % (1 << 64)
        if kind > 5 or not all(TEXT_ADDRESS <= x < TEXT_END for x in (address, function)):
            continue
        sled = Sled(address, SledKind(kind), bool(always), version)
        found.setdefault((function, address), sled)
    return [(function, sled) for (function, _), sled in sorted(found.items())]


def packed(rows: list[Row]) -> bytes:
    return b"".join(ENTRY.pack(*row) for row in rows)


ADDRESSES = st.one_of(
    st.integers(TEXT_ADDRESS - 300, TEXT_ADDRESS + 40),
    st.integers(TEXT_ADDRESS, TEXT_END + 8),
    st.sampled_from([0, 1, TEXT_END - 1, TEXT_END, 1 << 63, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
)
BYTES = st.integers(0, 255)
ROWS = st.tuples(ADDRESSES, ADDRESSES, st.integers(0, 6) | BYTES, BYTES, st.integers(0, 3) | BYTES)


@given(st.lists(ROWS, max_size=12), st.binary(max_size=31))
def test_any_section_reads_as_a_plain_loop_reads_it(rows, torn):
    sleds = sleds_of(file_with(packed(rows) + torn))
    assert all_sleds(sleds) == expected_sleds(rows)
    assert sleds.functions.tolist() == sorted({function for function, _ in all_sleds(sleds)})


WORDS = st.integers(0, (1 << 64) - 1)


@given(st.binary(max_size=400), WORDS | st.integers(0, 9999), WORDS | st.integers(0, 9999))
def test_any_bytes_at_any_place_are_read_without_an_error(section, address, offset):
    data = with_header(file_with(section), 16, address, offset)
    assert len(all_sleds(sleds_of(data))) <= len(section) // 32


def test_a_section_that_is_longer_than_the_file_is_read_up_to_its_end():
    rows = [(TEXT_ADDRESS, TEXT_ADDRESS, 0, 0, 0), (TEXT_ADDRESS + 9, TEXT_ADDRESS, 1, 0, 0)]
    data = with_header(file_with(packed(rows)), 32, 1 << 60)
    assert all_sleds(sleds_of(data))[:2] == expected_sleds(rows)


def test_the_map_of_a_debug_file_has_no_bytes():
    rows = packed([(TEXT_ADDRESS, TEXT_ADDRESS, 0, 0, 0)])
    assert len(sleds_of(file_with(rows, kind=8))) == 0


@pytest.mark.parametrize("address", [-1, 0, TEXT_ADDRESS - 1, TEXT_ADDRESS + 1, 1 << 64, 1 << 70])
def test_what_is_no_function_with_sleds_has_none(address):
    sleds = sleds_of(file_with(packed([(TEXT_ADDRESS, TEXT_ADDRESS, 0, 0, 0)])))
    assert len(sleds.of_function(TEXT_ADDRESS)) == 1
    assert sleds.of_function(address) == ()


def test_a_map_of_any_order_is_sorted():
    count = 20_000
    data = packed(
        [
            (TEXT_ADDRESS + 8 * (i ^ 1), TEXT_ADDRESS + 8 * (i & ~3), i & 1, 0, 1)
            for i in reversed(range(count))
        ]
    )
    sections = {"xray_instr_map": (1, 2, data)}
    sleds = sleds_of(ElfWriter(text=b"\xc3" * 8 * count, sections=sections).build())
    assert len(sleds) == count
    assert len(sleds.functions) == count // 4
    last = TEXT_ADDRESS + 8 * (count - 4)
    assert [sled.address - last for sled in sleds.of_function(last)] == [0, 8, 16, 24]
