"""Names for people: C++ (Itanium ABI) and Rust (legacy and v0) demangling.

C++ goes to `__cxa_demangle` of libstdc++ (or libc++abi): it is what c++filt
is built from, and a few microseconds a name. Without one of them C++ names
stay as they are.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

from uftrace_agent.symbols.rust_demangle import demangle_rust

# Longer names are made by machines for machines; the demangler's own limit is lower.
_LONGEST_NAME: Final = 16384
_CXX_LIBRARIES: Final = ("libstdc++.so.6", "libc++abi.so.1")


def demangle(linkage_name: str) -> str:
    """The name as written in the source, or the name itself where it is not mangled.

    Suffixes of the compiler stay visible: `foo(int) [clone .cold]`.
    """
    if not is_mangled(linkage_name) or len(linkage_name) > _LONGEST_NAME:
        return linkage_name
    return demangle_rust(linkage_name) or _demangle_cxx(linkage_name) or linkage_name


class SourceNames(NamedTuple):
    """All that people call a function, for `_ZN2ns1fIiEEvT_` as an example.

    Attributes:
        demangled: Whole: `void ns::f<int>(int)`.
        signature: Without the return type: `ns::f<int>(int)`.
        name: Without parameters too: `ns::f<int>`.
        bare: Without template or generic arguments too: `ns::f`.
    """

    demangled: str
    signature: str
    name: str
    bare: str


def source_names(linkage_name: str) -> SourceNames:
    """What a function is called in the source.

    A cold part has its whole name only: it is not what people mean by the name
    of the function.
    """
    demangled = demangle(linkage_name)
    if demangled == linkage_name or ".cold" in linkage_name:
        return SourceNames(demangled, demangled, demangled, demangled)
    signature, name = _signature(demangled)
    return SourceNames(demangled, signature, name, _without_type_arguments(name))


def is_mangled(linkage_name: str) -> bool:
    """Whether it is worth a try."""
    return linkage_name.startswith(("_Z", "_R", "__Z", "___Z"))


def _demangle_cxx(linkage_name: str) -> str | None:
    function = _cxa_demangle()
    return function(linkage_name) if function is not None else None


@lru_cache(maxsize=1)
def _cxa_demangle() -> Callable[[str], str | None] | None:
    for library_name in _CXX_LIBRARIES:
        try:
            raw = ctypes.CDLL(library_name).__cxa_demangle
        except (OSError, AttributeError):
            continue
        raw.restype = ctypes.c_void_p
        raw.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        free = ctypes.CDLL(None).free
        free.restype = None
        free.argtypes = [ctypes.c_void_p]

        return _bound(raw, free)
    return None


_ForeignFunction = Callable[..., int | None]


def _bound(raw: _ForeignFunction, free: _ForeignFunction) -> Callable[[str], str | None]:
    def call(linkage_name: str) -> str | None:
        result = raw(linkage_name.encode("utf-8", "backslashreplace"), None, None, None)
        if not result:
            return None
        try:
            return ctypes.string_at(result).decode("utf-8", "backslashreplace")
        finally:
            free(result)

    return call


_SIMPLE_SIGNATURE: Final = re.compile(r"[\w:~$.]+(?<!operator)(?=\()")
_TRAILING_QUALIFIERS: Final = re.compile(r"(?:\[clone [^\]]*\]|const|volatile|noexcept|&|\s)*")
_BRACKETS: Final = re.compile(r"[()<>\[\]{} ]")
_OPERATOR: Final = re.compile(r"(?<!\w)operator(?!\w)")


# A demangled name without return type, and that without the parameter list.
def _signature(demangled: str) -> tuple[str, str]:
    simple = _SIMPLE_SIGNATURE.match(demangled)
    if simple is not None and ")::" not in demangled:
        return demangled, simple.group()
    end = _end_of_parameters(demangled)
    if end == 0:
        return demangled, demangled
    depth = 0
    for token in reversed(list(_BRACKETS.finditer(demangled, 0, end))):
        if token.group() == ")":
            depth += 1
        elif token.group() == "(":
            depth -= 1
            if depth == 0:
                start = _start_of_name(demangled[: token.start()])
                return demangled[start:], demangled[start : token.start()]
    return demangled, demangled


# Where the parameter list ends; 0 where there is none.
def _end_of_parameters(demangled: str) -> int:
    end = demangled.rfind(")") + 1
    return end if _TRAILING_QUALIFIERS.fullmatch(demangled, end) else 0


# The last space outside of brackets ends the return type; but `operator new`,
# `operator std::string` and `operator<` have spaces and brackets of their own.
def _start_of_name(name: str) -> int:
    operators = list(_OPERATOR.finditer(name))
    end = operators[-1].start() if operators else len(name)
    depth = 0
    for token in reversed(list(_BRACKETS.finditer(name, 0, end))):
        letter = token.group()
        if letter in ">)]}":
            depth += 1
        elif letter in "<([{":
            depth -= 1
        elif depth == 0:
            return token.end()
    return 0


# `ns::f<int>` and `ns::f::<i32>` are both `ns::f`.
def _without_type_arguments(name: str) -> str:
    if not name.endswith(">") or _OPERATOR.search(name):
        return name
    depth = 0
    for token in reversed(list(_BRACKETS.finditer(name.replace("->", "  ")))):
        letter = token.group()
        if letter == ">":
            depth += 1
        elif letter == "<":
            depth -= 1
            if depth == 0:
                return name[: token.start()].removesuffix("::") or name
    return name
