"""The unwind entry of the thunks, read by others than the one who wrote it."""

from __future__ import annotations

import io
import operator
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from elftools.dwarf.callframe import CIE, FDE, CallFrameInfo
from elftools.dwarf.dwarf_expr import DWARFExprParser
from elftools.dwarf.structs import DWARFStructs

from uftrace_agent.engine.x86_64.stub import unwind_entry
from uftrace_agent.runtime.layout import SLOT_BYTES, THUNK_BYTES, THUNK_COUNT, THUNK_SPAN

THUNKS = 0x7F12_3450_0000
SLOTS = 0x7E00_0001_0000
RSP, RIP = 7, 16
DW_CFA_def_cfa = 0x0C
DW_CFA_val_expression = 0x16


def parsed() -> tuple[CIE, FDE]:
    block, _ = unwind_entry(THUNKS, SLOTS)
    structs = DWARFStructs(little_endian=True, dwarf_format=32, address_size=8, dwarf_version=4)
    frames = CallFrameInfo(
        stream=io.BytesIO(block),
        size=len(block),
        address=0,
        base_structs=structs,
        for_eh_frame=True,
    )
    cie, fde, *_ = frames.get_entries()
    assert isinstance(cie, CIE) and isinstance(fde, FDE)
    return cie, fde


def test_the_frame_is_a_signal_frame_with_absolute_pointers() -> None:
    cie, _ = parsed()
    assert cie.header["augmentation"] == b"zRS"
    assert cie.augmentation_bytes == b"\0"
    assert cie.header["return_address_register"] == RIP
    assert cie.header["code_alignment_factor"] == 1


def test_the_range_begins_one_thunk_early() -> None:
    _, fde = parsed()
    assert fde.header["initial_location"] == THUNKS - THUNK_BYTES
    assert fde.header["address_range"] == THUNK_SPAN + THUNK_BYTES


def test_the_fde_is_where_it_is_said_to_be() -> None:
    block, offset = unwind_entry(THUNKS, SLOTS)
    _, fde = parsed()
    assert fde.offset == offset
    # A length of 0 ends the list (unwinders that walk it look for that).
    length = int.from_bytes(block[offset : offset + 4], "little")
    assert block[offset + 4 + length :] == bytes(4)
    assert offset % 8 == 0 and (length + 4) % 8 == 0


def test_the_caller_has_the_same_stack_pointer() -> None:
    cie, _ = parsed()
    rules = [(one.opcode, one.args[:2]) for one in cie.instructions if one.opcode != 0]
    assert rules[0] == (DW_CFA_def_cfa, [RSP, 0])
    assert [opcode for opcode, _ in rules] == [DW_CFA_def_cfa, DW_CFA_val_expression]


_BINARY = {
    "DW_OP_minus": operator.sub,
    "DW_OP_plus": operator.add,
    "DW_OP_shr": operator.rshift,
    "DW_OP_shl": operator.lshift,
}


# DWARF 5 section 2.5, as far as it is used.
def evaluate(expression: list[int], pc: int, memory: dict[int, int]) -> int:
    structs = DWARFStructs(little_endian=True, dwarf_format=32, address_size=8, dwarf_version=4)
    stack: list[int] = []
    for operation in DWARFExprParser(structs).parse_expr(expression):
        name, args = operation.op_name, operation.args
        if name == "DW_OP_breg16":
            stack.append(pc + args[0])
        elif name == "DW_OP_addr":
            stack.append(args[0])
        elif name.startswith("DW_OP_lit"):
            stack.append(int(name.removeprefix("DW_OP_lit")))
        elif name == "DW_OP_deref":
            stack.append(memory[stack.pop()])
        else:
            last, before = stack.pop(), stack.pop()
            stack.append(_BINARY[name](before, last))
    (result,) = stack
    return result


@pytest.mark.parametrize("index", [0, 1, 2, 255, 4711, THUNK_COUNT - 1])
@pytest.mark.parametrize("inside", [0, 1, 5, THUNK_BYTES - 1])
def test_h39_the_return_address_is_the_byte_before_the_real_one(index: int, inside: int) -> None:
    cie, _ = parsed()
    register, expression = next(
        one.args for one in cie.instructions if one.opcode == DW_CFA_val_expression
    )
    assert register == RIP
    real = 0x5555_0000_1234
    memory = {SLOTS + index * SLOT_BYTES: real}
    assert evaluate(expression, THUNKS + index * THUNK_BYTES + inside, memory) == real - 1


def test_binutils_reads_it(tmp_path: Path) -> None:
    # GIVEN a file with the block as its .eh_frame
    readelf, compiler = shutil.which("readelf"), shutil.which("gcc")
    assert readelf and compiler, "binutils and gcc are needed by the test targets as well"
    block, _ = unwind_entry(THUNKS, SLOTS)
    source = tmp_path / "block.s"
    source.write_text('.section .eh_frame,"a",@progbits\n.byte ' + ",".join(map(str, block)) + "\n")
    subprocess.run([compiler, "-c", source, "-o", tmp_path / "block.o"], check=True)
    # WHEN readelf takes it apart
    text = subprocess.run(
        [readelf, "--debug-dump=frames", tmp_path / "block.o"],
        check=True,
        capture_output=True,
        text=True,
    )
    # THEN it has no complaint, and says the same
    assert not text.stderr
    first, last = THUNKS - THUNK_BYTES, THUNKS + THUNK_SPAN
    assert f"pc={first:016x}..{last:016x}" in text.stdout
    assert 'Augmentation:          "zRS"' in text.stdout
    assert "DW_CFA_def_cfa: r7 (rsp) ofs 0" in text.stdout
    assert "DW_OP_breg16 (rip): 0; DW_OP_addr" in text.stdout
    assert text.stdout.count("DW_CFA_val_expression: r16 (rip)") == 1


def test_other_addresses_give_other_blocks_of_the_same_size() -> None:
    # The room that the runtime keeps for it is fixed.
    sizes = set()
    for thunks, slots in ((4096, 0), (1 << 46, 1 << 20), (THUNKS, SLOTS)):
        block, offset = unwind_entry(thunks, slots)
        sizes.add((len(block), offset))
        assert struct.pack("<Q", slots) in block
    ((size, _),) = sizes
    assert size <= 256
