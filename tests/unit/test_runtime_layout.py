"""Numbers that C, assembly and Python share: a C compiler says whether they agree."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from uftrace_agent.engine.journal_entry import _ENTRY, _ENTRY_CRC
from uftrace_agent.engine.manifest import _HEADER, _HEADER_CRC
from uftrace_agent.engine.x86_64.stub import unwind_entry
from uftrace_agent.runtime import host_library, layout
from uftrace_agent.runtime.blob import load_blob
from uftrace_agent.runtime.layout import define

RUNTIME = Path(layout.__file__).parent
# (struct of runtime.c, prefix of its #defines, {field: end of the name})
RUNTIME_STRUCTS: tuple[tuple[str, str, tuple[str, ...], dict[str, str]], ...] = (
    (
        "uf_thread",
        "THREAD",
        ("key", "tid", "head", "limit", "mask", "base", "size"),
        {"ring": "HEADER"},
    ),
    ("uf_ring", "RING", ("owner", "lost", "shared_head", "thread", "tail"), {}),
    (
        "uf_params",
        "PARAM",
        ("control", "directory", "slots", "thunks", "tid_offset", "ring_data", "ring_bytes"),
        {"rings": "RING_HEADERS", "ring_count": "RING_COUNT"},
    ),
)
SIZES = {
    "struct uf_thread": "THREAD_BYTES",
    "struct uf_ring": "RING_HEADER_BYTES",
    "struct uf_slot": "SLOT_BYTES",
}
HOST_STRUCTS = {
    "uh_range": ("host.h", host_library.CRange),
    "uh_pause": ("host.h", host_library.CPause),
    "uh_stop": ("host.h", host_library.CStop),
    "uh_call": ("host.h", host_library.CCall),
    "uh_remote": ("host.h", host_library.CRemote),
    "thread_look": ("remote.c", host_library.CLook),
    "uh_run": ("drain.c", host_library.CRun),
    "uh_drain": ("drain.c", host_library.CDrain),
    "uh_anchor": ("drain.c", host_library.CAnchor),
}


def compile_asserts(folder: Path, header: Path, lines: Iterator[str]) -> None:
    """Fail with the compiler's words where one of the facts is none."""
    source = folder / "asserts.c"
    facts = "\n".join(f'_Static_assert({line}, "{line}");' for line in lines)
    source.write_text(f'#include <stddef.h>\n#include "{header}"\n{facts}\n')
    done = subprocess.run(
        ["gcc", "-std=gnu11", "-mgeneral-regs-only", "-fsyntax-only", source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr


def test_the_runtimes_structs_are_where_the_assembler_looks(tmp_path: Path) -> None:
    def facts() -> Iterator[str]:
        for struct, prefix, fields, renamed in RUNTIME_STRUCTS:
            names = {field: field.upper() for field in fields} | renamed
            for field, name in names.items():
                yield f"offsetof(struct {struct}, {field}) == {define(f'{prefix}_{name}')}"
        for c_type, name in SIZES.items():
            yield f"sizeof({c_type}) == {define(name)}"

    compile_asserts(tmp_path, RUNTIME / "target" / "runtime.c", facts())


def test_what_the_agent_reads_is_what_the_compiler_sees(tmp_path: Path) -> None:
    # Every #define of annex.h, through the preprocessor.
    compile_asserts(
        tmp_path,
        RUNTIME / "target" / "annex.h",
        (f"UF_{name} == {value}" for name, value in layout._DEFINES.items()),
    )


def test_no_define_is_overlooked() -> None:
    text = (RUNTIME / "target" / "annex.h").read_text()
    lines = [line for line in text.splitlines() if line.startswith("#define UF_")]
    assert len(lines) == len(layout._DEFINES) + 1  # the include guard


@pytest.mark.parametrize("name", list(HOST_STRUCTS))
def test_structs_that_are_passed_to_the_host_library(tmp_path: Path, name: str) -> None:
    header, mirror = HOST_STRUCTS[name]

    def facts() -> Iterator[str]:
        yield f"sizeof(struct {name}) == {ctypes.sizeof(mirror)}"
        for field in mirror._fields_:
            descriptor = getattr(mirror, field[0])
            member = f"((struct {name} *)0)->{field[0]}"
            yield f"offsetof(struct {name}, {field[0]}) == {descriptor.offset}"
            yield f"sizeof({member}) == {descriptor.size}"

    compile_asserts(tmp_path, RUNTIME / "host" / header, facts())


def test_rows_of_sites_are_structs(tmp_path: Path) -> None:
    rows = host_library.SITE_DTYPE

    def facts() -> Iterator[str]:
        yield f"sizeof(struct uh_site) == {rows.itemsize}"
        assert rows.fields is not None
        for field, (kind, offset, *_) in rows.fields.items():
            yield f"offsetof(struct uh_site, {field}) == {offset}"
            yield f"sizeof(((struct uh_site *)0)->{field}) == {kind.itemsize}"

    compile_asserts(tmp_path, RUNTIME / "host" / "host.h", facts())


def test_states_of_sites_have_the_numbers_of_the_host_library(tmp_path: Path) -> None:
    compile_asserts(
        tmp_path,
        RUNTIME / "host" / "host.h",
        (f"UH_SITE_{status.name} == {status.value}" for status in host_library.SiteStatus),
    )


def test_the_journal_fits_its_places() -> None:
    assert _ENTRY.size + _ENTRY_CRC.size <= define("SITE_BYTES")
    assert _HEADER.size + _HEADER_CRC.size <= define("MANIFEST_HEADER_BYTES")


def test_the_parameters_fit_their_block() -> None:
    offsets = [value for name, value in layout._DEFINES.items() if name.startswith("PARAM_")]
    offsets.remove(define("PARAM_BYTES"))
    assert max(offsets) + 8 <= define("PARAM_BYTES")
    assert len(set(offsets)) == len(offsets)


def test_the_blob_begins_with_parameters_and_unwind_block() -> None:
    blob = load_blob("x86_64")
    start = blob.symbols["uf_unwind_fde"]
    assert blob.symbols["uf_params"] == 0
    assert start >= define("PARAM_BYTES")
    block, _ = unwind_entry(4096, 0)
    assert blob.code[: start + len(block)] == bytes(start + len(block))
    entries = {name for name in blob.symbols if name.startswith("uf_entry")}
    assert len(entries) == 7
    assert all(blob.symbols[name] >= start + 256 for name in entries)


@pytest.mark.parametrize("kind", range(8))
@pytest.mark.parametrize("function_id", [1, 4711, define("ID_MAX")])
def test_an_id_word_leaves_room_for_phase_and_key(kind: int, function_id: int) -> None:
    word = layout.id_word(function_id, kind)
    assert word & 1 == 0
    assert word >> define("KIND_SHIFT") & 7 == kind
    assert word >> define("ID_SHIFT") == function_id
    assert word < 1 << define("KEY_SHIFT")
