"""Go's own table of functions, and the returns of what its compiler made."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.targets.build import build
from uftrace_agent.engine.site import FunctionCode
from uftrace_agent.engine.x86_64.go_functions import GoFunction, NoExitsError
from uftrace_agent.symbols.module_image import ModuleImage


@pytest.fixture(scope="module")
def image() -> Iterator[ModuleImage]:
    with ModuleImage.open(str(build("goroutines", "go"))) as opened:
        yield opened


def _go_function(image: ModuleImage, name: str) -> GoFunction | None:
    address = image.address_of(name)
    assert address is not None, name
    index = image.functions.index_of_address(address)
    assert index is not None
    body = image.text_bytes(address, int(image.functions.size[index]))
    return GoFunction.of(
        FunctionCode(
            address,
            len(body),
            body,
            body=lambda: body,
            behind=lambda: image.text_bytes(address + len(body), 8),
            is_go=True,
            is_go_compiled=address in set(image.go_compiled.tolist()),
        )
    )


def test_h42_assembly_and_compiled_code_are_told_apart(image: ModuleImage) -> None:
    compiled = set(image.go_compiled.tolist())
    for name in ("main.main", "main.grow", "runtime.mallocgc", "runtime.nanotime"):
        assert image.address_of(name) in compiled, name
    for name in ("runtime.memmove", "runtime.memequal", "runtime.asyncPreempt"):
        assert image.address_of(name) not in compiled, name


@pytest.mark.parametrize("name", ["round", "grow", "ways", "sleepy", "recovers", "inner"])
def test_h42_every_return_of_a_compiled_function_is_found(image: ModuleImage, name: str) -> None:
    """Against binutils' disassembly."""
    function = _go_function(image, f"main.{name}")
    assert function is not None
    listing = subprocess.run(
        ["objdump", "-d", f"--disassemble=main.{name}", str(build("goroutines", "go"))],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    returns = [line for line in listing.splitlines() if line.split("\t")[-1].strip() == "ret"]
    assert len(function.exits(function.entries()[0].site.address)) == len(returns) > 0


def test_what_only_panics_has_no_way_out(image: ModuleImage) -> None:
    function = _go_function(image, "main.throws")
    assert function is not None
    assert function.exits(function.entries()[0].site.address) == []


def test_most_compiled_functions_show_all_their_returns(image: ModuleImage) -> None:
    total = found = 0
    for address in image.go_compiled.tolist():
        index = image.functions.index_of_address(address)
        if index is None:
            continue
        function = _go_function(image, image.functions.by_index(index).name)
        total += 1
        if function is None:
            continue
        try:
            function.exits(function.code.address)
        except NoExitsError:
            continue
        found += 1
    assert total > 1000
    assert found / total > 0.9


def test_a_damaged_table_says_nothing(image: ModuleImage) -> None:
    data = bytearray(build("goroutines", "go").read_bytes())
    section = image._elf.section(".gopclntab")
    assert section is not None
    data[section.offset + 8 : section.offset + 16] = b"\xff" * 8
    assert not len(ModuleImage.from_bytes(bytes(data)).go_compiled)
    data[section.offset : section.offset + 4] = b"\xfb\xff\xff\xff"  # Go 1.2
    assert not len(ModuleImage.from_bytes(bytes(data)).go_compiled)
