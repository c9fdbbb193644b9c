"""Tables that compilers and libraries leave for those who patch code."""

from __future__ import annotations

import pytest

from tests.unit.symbols_support import ElfWriter, compile_program, run
from uftrace_agent.symbols import ModuleImage

pytestmark = pytest.mark.usefixtures("no_leaks")

SOURCE = """
int one(int x) { return x + 1; }
int two(int x) { return one(x) * 2; }
int main(int c, char **v) { return two(c); }
"""


def addresses(image: ModuleImage, *names: str) -> set[int | None]:
    return {image.address_of(name) for name in names}


LINKS = {
    "pie": ["-pie", "-fPIE"],
    "fixed": ["-no-pie", "-fno-pie"],
    "relr": ["-pie", "-fPIE", "-Wl,-z,pack-relative-relocs"],
    "library": ["-shared", "-fPIC"],
    "gold": ["-pie", "-fPIE", "-fuse-ld=gold"],
}


@pytest.mark.parametrize("link", LINKS)
def test_patchable_function_entries(tmp_path, link):
    for compiler, sections in (("gcc", []), ("clang", ["-ffunction-sections"])):
        path = compile_program(
            tmp_path,
            SOURCE,
            "-fpatchable-function-entry=5",
            "-fcf-protection=none",
            *LINKS[link],
            *sections,
            compiler=compiler,
        )
        with ModuleImage.open(str(path)) as image:
            assert set(image.patchable_sites.tolist()) == addresses(image, "one", "two", "main")
            assert not len(image.mcount_loc)
            assert not image.has_xray


def test_patchable_entries_before_the_function(tmp_path):
    path = compile_program(
        tmp_path, SOURCE, "-fpatchable-function-entry=7,2", "-fcf-protection=none"
    )
    with ModuleImage.open(str(path)) as image:
        starts = {image.address_of(name) for name in ("one", "two", "main")}
        assert {site + 2 for site in image.patchable_sites.tolist()} == starts


@pytest.mark.parametrize(
    ("link", "extra"),
    # -mnop-mcount is for fixed addresses only.
    [("pie", []), ("fixed", []), ("relr", []), ("fixed", ["-mnop-mcount"])],
)
def test_mcount_locations(tmp_path, link, extra):
    options = ["-pg", "-mfentry", "-mrecord-mcount", "-fcf-protection=none", *extra, *LINKS[link]]
    path = compile_program(tmp_path, SOURCE, *options)
    with ModuleImage.open(str(path)) as image:
        assert addresses(image, "one", "two", "main") <= set(image.mcount_loc.tolist())


def test_the_got_slot_of_fentry_is_known(tmp_path):
    path = compile_program(
        tmp_path, SOURCE, "-pg", "-mfentry", "-pie", "-fPIE", "-fno-plt", "-fcf-protection=none"
    )
    with ModuleImage.open(str(path)) as image:
        start = image.address_of("one")
        assert start is not None
        code = image.text_bytes(start, 6)
        slots = {slot: name for slot, name in image.got_slots.items() if name == "__fentry__"}
        assert "__fentry__" in image.imports
        if code[:2] == b"\xff\x15":
            target = start + 6 + int.from_bytes(code[2:], "little", signed=True)
            assert image.got_slots[target] == "__fentry__"
        assert slots


def test_xray(tmp_path):
    path = compile_program(
        tmp_path, SOURCE, "-fxray-instrument", "-fxray-instruction-threshold=1", compiler="clang"
    )
    with ModuleImage.open(str(path)) as image:
        assert image.has_xray


def test_text_relocations(tmp_path):
    assembly = tmp_path / "text.s"
    assembly.write_text(
        ".text\n.globl f\n.type f,@function\nf: movabs $g, %rax\nret\n.size f,.-f\n"
        ".globl g\n.type g,@function\ng: ret\n.size g,.-g\n"
        '.section .note.GNU-stack,"",@progbits\n'
    )
    run("gcc", "-shared", "-nostdlib", "-Wl,-z,notext", "-o", tmp_path / "lib.so", assembly)
    with ModuleImage.open(str(tmp_path / "lib.so")) as image:
        start = image.address_of("f")
        assert start is not None
        assert image.relocated_ranges.tolist() == [[start + 2, 8]]


def test_h17_restartable_sequences(tmp_path):
    source = """
    __asm__(".pushsection __rseq_cs, \\"aw\\"\\n.balign 32\\n"
            ".long 0, 0\\n.quad begin, (commit - begin), abort_here\\n.popsection\\n");
    int work(int x) {
      __asm__ volatile("begin: nop\\nnop\\ncommit:\\njmp 2f\\nabort_here: nop\\n2:" ::: "memory");
      return x;
    }
    int main(int c, char **v) { return work(c); }
    """
    for link in ("pie", "fixed"):
        path = compile_program(tmp_path, source, "-O0", *LINKS[link])
        symbols = dict(
            reversed(line.split()[::2]) for line in run("nm", path).splitlines() if "begin" in line
        )
        with ModuleImage.open(str(path)) as image:
            assert image.restartable_sequences == ((int(symbols["begin"], 16), 2),)


def test_what_can_throw(tmp_path):
    throwing = compile_program(
        tmp_path, "int main(int c, char**) { if (c > 9) throw c; }", compiler="g++", name="a"
    )
    plain = compile_program(tmp_path, SOURCE, name="b")
    with ModuleImage.open(str(throwing)) as image:
        assert image.may_throw
        assert "__cxa_throw" in image.imports
    with ModuleImage.open(str(plain)) as image:
        assert not image.may_throw
        assert not image.is_go


@pytest.mark.parametrize("section", [".gopclntab", ".go.buildinfo", ".note.go.buildid"])
def test_h42_go_programs_are_known_by_their_sections(section):
    data = ElfWriter(sections={section: (1, 2, b"\0" * 16)}).build()
    assert ModuleImage.from_bytes(data).is_go


@pytest.mark.parametrize(
    "function", ["JNI_CreateJavaVM", "_ZN2v82V810GetVersionEv", "coreclr_initialize"]
)
def test_h42_runtimes_that_walk_stacks_are_known_by_their_interface(tmp_path, function):
    source = f"int {function}(void) {{ return 1; }}"
    path = compile_program(tmp_path, source, "-shared", "-fPIC", name="runtime.so")
    with ModuleImage.open(str(path)) as image:
        assert image.walks_stacks
    plain = compile_program(tmp_path, SOURCE, name="plain")
    with ModuleImage.open(str(plain)) as image:
        assert not image.walks_stacks


def test_h42_addons_of_such_runtimes_are_known_by_what_they_import(tmp_path):
    source = "void _ZN2v88internal5ThingEv(void); void addon(void) { _ZN2v88internal5ThingEv(); }"
    path = compile_program(tmp_path, source, "-shared", "-fPIC", name="addon.so")
    with ModuleImage.open(str(path)) as image:
        assert image.walks_stacks
