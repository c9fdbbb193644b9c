"""What a pattern selects, and what is suggested when it selects nothing."""

from __future__ import annotations

import time

import pytest

from tests.unit.symbols_support import TEXT_ADDRESS, ElfWriter, large_elf
from uftrace_agent.errors import InvalidRequestError
from uftrace_agent.symbols import FunctionPattern, FunctionTable, ModuleImage
from uftrace_agent.symbols.suggest import suggest

NAMES = [
    *("main", "getuid", "get_name", "set_name", "name_get", "SSL_read", "SSL_write", "ssl_read"),
    *("_ZN2ns1fEi", "_ZN2ns1fEd", "_ZN2ns1gIiEEvT_", "_ZN2ns1CclEi", "_ZN2ns2C23getEv"),
    *("_Z9main_loopv", "_ZL6staticv", "_Z4pickIiEiT_", "_ZN5other4mainEv", "_ZN2ns1CixEi"),
    *("_ZN12_GLOBAL__N_16hiddenEv", "_Z3barB5cxx11v", "_Z9main_loopv.cold", "memcpy@plt"),
    *("_RNvC6_123foo3bar", "_RINvC1a3genhE", "_ZN4core3fmt5write17h0123456789abcdefE"),
    *("_ZN2ns7FactoryB5cxx11Ev", "weird[1]", "_ZNKSs4findEPKcmm", "größe"),
]


def table_of(*names: str) -> FunctionTable:
    symbols = [(name, TEXT_ADDRESS + 8 * i, 8, 2, 1) for i, name in enumerate(names)]
    # What follows an @ in a symbol table is a version, so the stub is spelled otherwise.
    return ModuleImage.from_bytes(
        ElfWriter(text=b"\xc3" * 8 * len(names), symbols=symbols).build()
    ).functions


@pytest.fixture(scope="module")
def table() -> FunctionTable:
    return table_of(*(name.replace("@plt", "_plt") for name in NAMES))


@pytest.fixture(scope="module")
def large_table() -> FunctionTable:
    return ModuleImage.from_bytes(large_elf(200_000)).functions


def selected(table: FunctionTable, text: str) -> set[str]:
    indices = FunctionPattern.parse(text).select(table)
    assert indices.tolist() == sorted(set(indices.tolist()))
    return {table.by_index(index).linkage_name for index in indices.tolist()}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("main", {"main"}),
        ("mai", set()),
        ("size", set()),
        ("größe", {"größe"}),
        ("gr*e", {"größe"}),
        ("gr??e", {"größe"}),
        ("get*", {"getuid", "get_name"}),
        ("*_name", {"get_name", "set_name"}),
        ("?et_name", {"get_name", "set_name"}),
        ("[gs]et_name", {"get_name", "set_name"}),
        ("[!g]et_name", {"set_name"}),
        ("[a-h]et_*", {"get_name"}),
        ("[z-a]et_name", set()),
        ("weird[1]", {"weird[1]"}),
        ("SSL_[rw]*", {"SSL_read", "SSL_write"}),
        ("re:^(get|set)_", {"get_name", "set_name"}),
        ("re:name$", {"get_name", "set_name"}),
        ("re:(?i)^ssl_r", {"SSL_read", "ssl_read"}),
        ("re:^SSL[^_]*_w", {"SSL_write"}),
        ("re:d.SSL", set()),
        ("ns::f", {"_ZN2ns1fEi", "_ZN2ns1fEd"}),
        ("ns::f(int)", {"_ZN2ns1fEi"}),
        ("ns::g", {"_ZN2ns1gIiEEvT_"}),
        ("ns::g<int>", {"_ZN2ns1gIiEEvT_"}),
        ("void ns::g<int>(int)", {"_ZN2ns1gIiEEvT_"}),
        ("void*", set()),
        ("ns::C::operator()", {"_ZN2ns1CclEi"}),
        ("ns::C::operator[]", {"_ZN2ns1CixEi"}),
        ("ns::C::operator[](int)", {"_ZN2ns1CixEi"}),
        ("ns::Factory[abi:cxx11]", {"_ZN2ns7FactoryB5cxx11Ev"}),
        ("*::get", {"_ZN2ns2C23getEv"}),
        ("ns::C?::*", {"_ZN2ns2C23getEv"}),
        ("(anonymous namespace)::hidden", {"_ZN12_GLOBAL__N_16hiddenEv"}),
        ("*::hidden", {"_ZN12_GLOBAL__N_16hiddenEv"}),
        ("std::string::find", {"_ZNKSs4findEPKcmm"}),
        ("std::*tring::find", {"_ZNKSs4findEPKcmm"}),
        ("main_loop", {"_Z9main_loopv"}),
        ("static", {"_ZL6staticv"}),
        ("pick", {"_Z4pickIiEiT_"}),
        ("other::main", {"_ZN5other4mainEv"}),
        ("main_loop() [[]clone .cold]", {"_Z9main_loopv.cold"}),
        ("123foo::bar", {"_RNvC6_123foo3bar"}),
        ("a::gen", {"_RINvC1a3genhE"}),
        ("a::gen::<u8>", {"_RINvC1a3genhE"}),
        ("core::fmt::write", {"_ZN4core3fmt5write17h0123456789abcdefE"}),
        ("re:^ns::C", {"_ZN2ns1CclEi", "_ZN2ns2C23getEv", "_ZN2ns1CixEi"}),
        ("_ZN2ns1fEi", {"_ZN2ns1fEi"}),
        ("  main  ", {"main"}),
    ],
)
def test_selection(table, pattern, expected):
    assert selected(table, pattern) == expected


def test_everything(table):
    assert len(FunctionPattern.parse("*").select(table)) == len(table)
    assert len(FunctionPattern.parse("re:.").select(table)) == len(table)
    assert len(FunctionPattern.parse("*").select(FunctionTable.empty())) == 0


def test_aliases_select_their_function():
    symbols = [("malloc", 0x1000, 8, 2, 1), ("__libc_malloc", 0x1000, 8, 2, 1)]
    table = ModuleImage.from_bytes(ElfWriter(symbols=symbols).build()).functions
    for pattern in ("malloc", "__libc_malloc", "__libc_*", "re:^__"):
        assert FunctionPattern.parse(pattern).select(table).tolist() == [0]


@pytest.mark.parametrize(
    ("pattern", "basename", "expected"),
    [
        ("main", "anything", True),
        ("libc!main", "libc.so.6", True),
        ("libc.so!main", "libc.so.6", True),
        ("libc.so.6!main", "libc.so.6", True),
        ("libc!main", "libc-2.31.so", True),
        ("libc!main", "libcrypto.so.3", False),
        ("libc*!main", "libcrypto.so.3", True),
        ("libpython3.11!main", "libpython3.11.so.1.0", True),
        ("libpython*!main", "libpython3.11.so.1.0", True),
        ("nginx!main", "nginx", True),
        ("nginx!main", "nginx2", False),
        ("[ab].so!main", "a.so", True),
    ],
)
def test_modules(pattern, basename, expected):
    parsed = FunctionPattern.parse(pattern)
    assert parsed.matches_module(basename) is expected
    assert parsed.function == "main"


def test_an_exclamation_mark_is_not_always_a_module():
    assert FunctionPattern.parse("A::operator!").module == ""
    assert FunctionPattern.parse("A::operator!=").function == "A::operator!="
    assert FunctionPattern.parse("re:a!b").function == "a!b"
    assert FunctionPattern.parse("lib!re:^a!b").function == "^a!b"
    assert FunctionPattern.parse("lib!re:^a").is_regex


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no function name"),
        ("   ", "no function name"),
        ("libc!", "no function name"),
        ("re:", "no function name"),
        ("!main", "before the '!'"),
        ("re:a(b", "position 1"),
        ("re:*", "position 0"),
        ("re:a{99999999999}", "expression"),
        ("a\nb", "line break"),
        ("a" * 5000, "longer"),
    ],
)
def test_bad_patterns(text, words):
    with pytest.raises(InvalidRequestError, match="bad function pattern") as caught:
        FunctionPattern.parse(text)
    assert words in caught.value.message
    assert caught.value.reason == "INVALID_PATTERN"
    assert caught.value.hint


def test_200000_names_are_searched_quickly(large_table):
    assert len(large_table) == 200_000
    for pattern, count, seconds in (
        ("function_123457", 1, 0.1),
        ("function_*99", 1333, 0.5),
        ("*tion_19999?", 7, 0.5),
        ("re:^function_[0-9]{2}$", 60, 1.5),  # demangles every name, once
        ("re:^project.*[0-9]{3}$", 66633, 1.0),
        ("project::module::function3", 1, 0.5),
    ):
        start = time.thread_time()  # others may keep the machine busy
        found = FunctionPattern.parse(pattern).select(large_table)
        elapsed = time.thread_time() - start
        assert len(found) == count, pattern
        assert elapsed < seconds, (pattern, elapsed)


def test_suggestions(table):
    assert suggest("mian_loop", [table])[0] == "main_loop"
    assert suggest("SSL_raed", [table])[:2] == ["SSL_read", "ssl_read"]
    assert suggest("ns::C2::gt", [table])[0] == "ns::C2::get"
    assert suggest("get_nam", [table], count=1) == ["get_name"]
    assert suggest("zzzzzzzz", [table]) == []
    assert suggest("", [table]) == []
    assert suggest("x", [FunctionTable.empty()]) == []
    assert suggest("man", [table, table]) == ["main"]


def test_suggestions_among_200000_names_come_quickly(large_table):
    start = time.thread_time()
    found = suggest("functoin_123457", [large_table])
    elapsed = time.thread_time() - start
    assert "function_123457" in found
    assert elapsed < 0.5, elapsed
