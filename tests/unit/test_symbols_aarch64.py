"""Files of AArch64, made by a compiler: what is a function, and what only looks like one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import ziglang

from tests.unit.symbols_support import run
from uftrace_agent.symbols import FunctionKind, ModuleImage

ZIG = os.path.join(os.path.dirname(ziglang.__file__), "zig")
LIBRARY = (ZIG, "cc", "-target", "aarch64-linux-gnu", "-shared", "-fPIC", "-O1", "-nostdlib")

SOURCE = """
int other(int);
static volatile int table[] = {3, 1, 2};
static __attribute__((noinline)) int twice(int x) { __asm__ volatile(""); return 2 * x; }
int exported(int x) { return twice(x) + other(x) + table[x & 1]; }
int weak_one(int x) { return other(x + 1) + 1; }
static int first(int x) { return x + 1; }
static int second(int x) { return x + 2; }
static int (*choose(void))(int) { return table[0] > 2 ? first : second; }
int chosen(int) __attribute__((ifunc("choose")));
int call_chosen(int x) { return chosen(x) + 1; }
__asm__(".text\\n.align 2\\nin_between: .word 0, 1, 2, 3\\n");
"""

Made = Callable[..., ModuleImage]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Compiles the source with further options."""
    source = tmp_path / "lib.c"
    source.write_text(SOURCE)

    def make(*options: str) -> ModuleImage:
        run(*LIBRARY, *options, "-Wl,-z,undefs", "-o", tmp_path / "lib.so", source)
        return ModuleImage.open(str(tmp_path / "lib.so"))

    return make


def by_name(image: ModuleImage) -> dict[str, tuple[int, int, FunctionKind]]:
    return {f.linkage_name: (f.address, f.size, f.kind) for f in image.functions}


def test_functions_and_stubs_but_no_marks(made: Made) -> None:
    """$x and $d tell code from data: they are no functions, nor is data in code."""
    with made() as image:
        assert image.machine == "aarch64"
        found = by_name(image)
        names = {"twice", "exported", "weak_one", "first", "second", "call_chosen"}
        assert names <= found.keys()
        assert not any("$" in name for name in found)
        assert "in_between" not in found
        for name in names:
            address, size, kind = found[name]
            assert kind is FunctionKind.FUNCTION
            assert address % 4 == 0 and size and size % 4 == 0
        assert found["chosen"][2] is FunctionKind.IFUNC_RESOLVER
        assert found["other@plt"][2] is FunctionKind.PLT_STUB
        assert image.imports == {"other"}


@pytest.mark.parametrize("protection", ["none", "standard", "pac-ret+b-key"])
def test_a_stripped_library_has_the_functions_of_its_unwind_table(
    made: Made, protection: str
) -> None:
    """Also where return addresses are signed: the augmentation has a letter for that."""
    hardened = f"-mbranch-protection={protection}"
    with made(hardened) as whole:
        expected = {
            (address, size)
            for address, size, kind in by_name(whole).values()
            if kind is FunctionKind.FUNCTION
        }
    with made(hardened, "-s", "-Wl,--eh-frame-hdr") as image:
        frames = zip(image.frames.start.tolist(), image.frames.size.tolist(), strict=True)
        assert set(frames) >= expected
        assert bool(image.frames.is_entry.all())
        found = {(f.address, f.size) for f in image.functions}
        assert expected <= found


def test_nops_that_the_compiler_left(made: Made) -> None:
    """-fpatchable-function-entry: behind `bti c`, if there is one."""
    for options, behind in ([], 0), (["-mbranch-protection=bti"], 4):
        with made("-fpatchable-function-entry=2", *options) as image:
            found = by_name(image)
            sites = set(image.patchable_sites.tolist())
            assert found["exported"][0] + behind in sites
            nop = bytes.fromhex("1f2003d5")
            assert all(image.text_bytes(site, 8) == nop * 2 for site in sites)
