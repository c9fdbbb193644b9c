"""C++ and Rust names, against c++filt and what the compilers document."""

from __future__ import annotations

import random
import re

import pytest

from tests.unit.symbols_support import run
from uftrace_agent.symbols.demangle import demangle, source_names
from uftrace_agent.symbols.rust_v0 import UnknownRustNameError, V0Printer

LIBSTDCXX = "/usr/lib/x86_64-linux-gnu/libstdc++.so.6"


def test_cxx_names_are_those_of_cxxfilt():
    names = [line.split()[-1].partition("@")[0] for line in run("nm", "-D", LIBSTDCXX).splitlines()]
    names = [name for name in names if name.startswith("_Z")]
    assert len(names) > 3000
    expected = run("c++filt", "--no-verbose", stdin="\n".join(names) + "\n").splitlines()
    assert [demangle(name) for name in names] == expected


@pytest.mark.parametrize(
    ("linkage_name", "expected"),
    [
        ("main", "main"),
        ("_Zfoo", "_Zfoo"),
        ("_Z", "_Z"),
        ("_R", "_R"),
        ("", ""),
        ("_Z" + "N1a" * 20000, "_Z" + "N1a" * 20000),
        ("_Z4workv.cold", "work() [clone .cold]"),
        ("_Z4workv.constprop.0", "work() [clone .constprop.0]"),
        # Rust, legacy: the tests of rustc-demangle.
        ("_ZN4testE", "test"),
        ("_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE", "core::fmt::Write::write_fmt"),
        (
            "_ZN71_$LT$Test$u20$$u2b$$u20$$u27$static$u20$as$u20$foo..Bar$LT$Test$GT$$GT$3bar"
            "17h930b740aa94f1d3aE",
            "<Test + 'static as foo::Bar<Test>>::bar",
        ),
        ("_ZN3foo17h05af221e174051e9E.llvm.9D1C9369", "foo"),
        ("_ZN3foo3bar17h05af221e174051e9E.cold", "foo::bar.cold"),
        # Rust, v0: the tests of rustc-demangle.
        ("_RNvC6_123foo3bar", "123foo::bar"),
        (
            "_RNqCs4fqI2P2rA04_11utf8_identsu30____7hkackfecea1cbdathfdh9hlq6y",
            "utf8_idents::საჭმელად_გემრიელი_სადილი",
        ),
        (
            "_RNCNCNgCs6DXkGYLi8lr_2cc5spawn00B5_",
            "cc::spawn::{closure#0}::{closure#0}",
        ),
        (
            "_RNCINkXs25_NgCsbmNqQUJIY6D_4core5sliceINyB9_4IterhENuNgNoBb_4iter8iterator8Iterator"
            "9rpositionNCNgNpB9_6memchr7memrchrs_0E0Bb_",
            "<core::slice::Iter<u8> as core::iter::iterator::Iterator>::rposition::"
            "<core::slice::memchr::memrchr::{closure#1}>::{closure#0}",
        ),
        (
            "_RINbNbCskIICzLVDPPb_5alloc5alloc8box_freeDINbNiB4_5boxed5FnBoxuEp6OutputuEL_ECs1iopQbuBiw2_3std",
            "alloc::alloc::box_free::<dyn alloc::boxed::FnBox<(), Output = ()>>",
        ),
        ("_RMC0INtC8arrayvec8ArrayVechKj7b_E", "<arrayvec::ArrayVec<u8, 123>>"),
        ("_RMCs4fqI2P2rA04_13const_genericINtB0_8UnsignedKhb_E", "<const_generic::Unsigned<11>>"),
        ("_RMCs4fqI2P2rA04_13const_genericINtB0_6SignedKs98_E", "<const_generic::Signed<152>>"),
        ("_RMCs4fqI2P2rA04_13const_genericINtB0_6SignedKanb_E", "<const_generic::Signed<-11>>"),
        ("_RMCs4fqI2P2rA04_13const_genericINtB0_4BoolKb0_E", "<const_generic::Bool<false>>"),
        ("_RMCs4fqI2P2rA04_13const_genericINtB0_4CharKc76_E", "<const_generic::Char<'v'>>"),
        ("_RMCs4fqI2P2rA04_13const_genericINtB0_4CharKca_E", "<const_generic::Char<'\\n'>>"),
        ("_RMCs4fqI2P2rA04_13const_genericINtB0_4CharKc2202_E", "<const_generic::Char<'∂'>>"),
        (
            "_RNvNvMCs4fqI2P2rA04_13const_genericINtB4_3FooKpE3foo3FOO",
            "<const_generic::Foo<_>>::foo::FOO",
        ),
        ("_RC3foo.llvm.9D1C9369", "foo"),
        ("_RNvC9backtrace3foo.llvm.A5310EB9", "backtrace::foo"),
        ("_RNvNCNKNvC1a3VAL0023___RUST_STD", "_RNvNCNKNvC1a3VAL0023___RUST_STD"),
        ("_RMC0FG_RL0_hEu", "<for<'a> fn(&'a u8)>"),
        ("_RMC0DNtC1a1TL_", "_RMC0DNtC1a1TL_"),
        ("_RMC0FUKCPhOhTEThEAtj3_EtE", "_RMC0FUKCPhOhTEThEAtj3_EtE"),
        (
            "_RMC0FUKCPhOhTEThEAtj3_Et",
            '<unsafe extern "C" fn(*const u8, *mut u8, (), (u8,), [u16; 3]) -> u16>',
        ),
        ("_RMC0DNtC1a1TEL_", "<dyn a::T>"),
    ],
)
def test_names(linkage_name, expected):
    assert demangle(linkage_name) == expected


def test_names_that_refer_to_themselves_end():
    for name in ("B_", "NvB_1a", "INvC1a1bRB7_E", "M" * 5000, "R" * 5000):
        with pytest.raises(UnknownRustNameError):
            V0Printer(name).demangle()
    # Each level doubles what the one before expands to.
    bomb = "INvC1a1b" + "TRhRhE" + "".join(f"TB{'0123456789abc'[i]}_B8_E" for i in range(12)) + "E"
    with pytest.raises(UnknownRustNameError):
        V0Printer(bomb * 50).demangle()


def test_damaged_names_never_fail():
    generator = random.Random(11)
    names = [
        "_RNCINkXs25_NgCsbmNqQUJIY6D_4core5sliceINyB9_4IterhENuNgNoBb_4iter8iterator8Iterator0Bb_",
        "_RINbNbCskIICzLVDPPb_5alloc5alloc8box_freeDINbNiB4_5boxed5FnBoxuEp6OutputuEL_E",
        "_ZN71_$LT$Test$u20$$u2b$$u20$as$u20$foo..Bar$LT$Test$GT$$GT$3bar17h930b740aa94f1d3aE",
        "_ZNSt6vectorISsSaISsEE9push_backERKSs",
    ]
    alphabet = "ABCDEFGKLMNOPRSTYXabcdefghijuv0123456789_$."
    for _ in range(4000):
        letters = list(generator.choice(names))
        for _ in range(generator.randrange(1, 6)):
            letters[generator.randrange(2, len(letters))] = generator.choice(alphabet)
        assert demangle("".join(letters))


@pytest.mark.parametrize(
    ("linkage_name", "signature", "name", "bare"),
    [
        ("_ZN2ns1fEi", "ns::f(int)", "ns::f", "ns::f"),
        ("_ZN2ns1fIiEEvT_", "ns::f<int>(int)", "ns::f<int>", "ns::f"),
        ("_ZNK2ns1C3getEv", "ns::C::get() const", "ns::C::get", "ns::C::get"),
        ("_ZN2ns1CC1Ei", "ns::C::C(int)", "ns::C::C", "ns::C::C"),
        ("_ZN2ns1CD0Ev", "ns::C::~C()", "ns::C::~C", "ns::C::~C"),
        ("_ZN2ns1CclEi", "ns::C::operator()(int)", "ns::C::operator()", "ns::C::operator()"),
        ("_ZN2ns1CcvbEv", *["ns::C::operator bool()"], *["ns::C::operator bool"] * 2),
        ("_ZnwmPv", "operator new(unsigned long, void*)", "operator new", "operator new"),
        ("_ZlsRSoRK1A", *["operator<<(std::ostream&, A const&)"], *["operator<<"] * 2),
        ("_ZN12_GLOBAL__N_11fEv", "(anonymous namespace)::f()", *["(anonymous namespace)::f"] * 2),
        (
            "_ZSt4moveIRSt6vectorIiSaIiEEEONSt16remove_referenceIT_E4typeEOS5_",
            "std::move<std::vector<int, std::allocator<int> >&>"
            "(std::vector<int, std::allocator<int> >&)",
            "std::move<std::vector<int, std::allocator<int> >&>",
            "std::move",
        ),
        (
            "_ZZN2ns1fEvENKUliE_clEi",
            "ns::f()::{lambda(int)#1}::operator()(int) const",
            *["ns::f()::{lambda(int)#1}::operator()"] * 2,
        ),
        ("_ZN2ns1fEPFviE", "ns::f(void (*)(int))", "ns::f", "ns::f"),
        ("_ZN1a2ch17h7302707529caad13E", "a::ch", "a::ch", "a::ch"),
        ("_RINvC1a3genhE", "a::gen::<u8>", "a::gen::<u8>", "a::gen"),
        ("_Z1fv.cold", *["f() [clone .cold]"] * 3),
        ("_Z1fv.part.0", "f() [clone .part.0]", "f", "f"),
        ("plain", "plain", "plain", "plain"),
    ],
)
def test_what_people_call_a_function(linkage_name, signature, name, bare):
    assert source_names(linkage_name)[1:] == (signature, name, bare)


def test_all_of_libstdcxx_has_plausible_short_names():
    names = [line.split()[-1].partition("@")[0] for line in run("nm", "-D", LIBSTDCXX).splitlines()]
    for linkage_name in names:
        if not re.match(r"_Z(?!T|GV|GR|L)", linkage_name):
            continue
        found = source_names(linkage_name)
        assert found.signature in found.demangled
        assert found.signature.startswith(found.name)
        assert found.name.startswith(found.bare)
        assert found.bare
        if "operator" not in found.demangled and "(" in found.demangled:
            assert " " not in re.sub(r"<.*>|\(.*\)", "", found.name)
