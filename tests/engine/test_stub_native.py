"""A stub on the real processor, for what the emulator does not have: AVX."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from tests.engine.annex_model import (
    CODE,
    CONTROL,
    PROGRAM,
    RING_COUNT,
    RINGS,
    STUBS,
    THUNKS,
    AnnexModel,
)
from tests.engine.machine import PAGE
from uftrace_agent.engine.x86_64 import stub as stubs
from uftrace_agent.runtime.layout import (
    DIRECTORY_BYTES,
    KIND_ENTRY,
    SLOT_TABLE_BYTES,
    THUNK_SPAN,
    id_word,
)

RESUME = PROGRAM + 0x100
SOURCE = Path(__file__).with_name("native_stub.c")


def write_image(annex: AnnexModel, path: Path) -> None:
    regions = [
        (CODE, 0x10000),
        (THUNKS, THUNK_SPAN),
        (CONTROL, PAGE + DIRECTORY_BYTES + SLOT_TABLE_BYTES),
        (RINGS, PAGE + RING_COUNT * annex.ring_bytes),
        (PROGRAM, PAGE),
    ]
    with path.open("wb") as file:
        for start, size in regions:
            file.write(struct.pack("<QQQ", start, size, size) + annex.machine.read(start, size))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("native") / "native_stub"
    command = ["gcc", "-O1", "-mavx", "-Wall", "-Werror", "-no-pie", str(SOURCE), "-o", str(built)]
    subprocess.run(command, check=True)
    return built


@pytest.mark.parametrize("slots_full", [False, True])
@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("rings", ["own", "shared"])
def test_h29_h31_vector_registers_and_the_red_zone_survive(
    tmp_path: Path, program: Path, rings: str, enabled: bool, slots_full: bool
) -> None:
    # GIVEN the annex of a process, and a stub in it
    annex = AnnexModel(tid_offset=-1)
    annex.enable(enabled)
    if slots_full:
        annex.fill_slots()
    if rings == "shared":
        for ring in range(1, RING_COUNT):
            annex.write_ring_word(ring, "OWNER", 1 << 32 | 1)
    word = id_word(1, KIND_ENTRY)
    annex.machine.write(
        STUBS, stubs.entry_stub(STUBS, annex.symbol("uf_entry"), word, None, RESUME)
    )
    image = tmp_path / "image"
    write_image(annex, image)
    # WHEN a function with data in its red zone runs through it, until its ring is full
    command = [str(program), str(image), hex(STUBS), hex(RESUME), "2000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # THEN it finds everything as it was
    assert (done.stdout, done.returncode) == ("ok\n", 0), done.stderr
