"""Rust symbol names: the legacy scheme and v0 (RFC 2603).

The result is what `rustfilt` prints: hashes and crate disambiguators left out.
"""

from __future__ import annotations

import re
from typing import Final

from uftrace_agent.symbols.rust_v0 import UnknownRustNameError, V0Printer

_LEGACY_HASH: Final = re.compile(r"h[0-9a-f]{16}")
_ESCAPE: Final = re.compile(r"\$(SP|BP|RF|LT|GT|LP|RP|C|u[0-9a-f]{1,6})\$|\.\.")
_ESCAPED: Final = {
    "SP": "@",
    "BP": "*",
    "RF": "&",
    "LT": "<",
    "GT": ">",
    "LP": "(",
    "RP": ")",
    "C": ",",
}
_LLVM_SUFFIX: Final = ".llvm."


def demangle_rust(linkage_name: str) -> str | None:
    """The name as in the source, or None where it is not a Rust name."""
    if linkage_name.startswith("_R"):
        return _demangle_v0(linkage_name)
    if linkage_name.startswith("_ZN"):
        return _demangle_legacy(linkage_name)
    return None


def _demangle_v0(linkage_name: str) -> str | None:
    body, dot, suffix = linkage_name.removeprefix("_R").partition(".")
    try:
        demangled = V0Printer(body).demangle()
    except UnknownRustNameError:
        return None
    return demangled + _visible_suffix(dot + suffix)


_DIGITS = frozenset("0123456789")


def _demangle_legacy(linkage_name: str) -> str | None:
    elements = []
    position = len("_ZN")
    while linkage_name[position : position + 1] in _DIGITS:
        digits_end = position
        while linkage_name[digits_end : digits_end + 1] in _DIGITS:
            digits_end += 1
        if digits_end - position > 9:
            return None
        end = digits_end + int(linkage_name[position:digits_end])
        elements.append(linkage_name[digits_end:end])
        position = end
    if linkage_name[position : position + 1] != "E" or len(elements) < 2:
        return None
    if _LEGACY_HASH.fullmatch(elements.pop()) is None:
        return None  # C++
    return "::".join(map(_unescaped, elements)) + _visible_suffix(linkage_name[position + 1 :])


def _unescaped(element: str) -> str:
    if element.startswith("_$"):
        element = element[1:]
    return _ESCAPE.sub(_replacement, element)


def _replacement(match: re.Match[str]) -> str:
    code = match.group(1)
    if code is None:
        return "::"
    if code in _ESCAPED:
        return _ESCAPED[code]
    number = int(code[1:], 16)
    printable = number < 0x110000 and chr(number).isprintable()
    return chr(number) if printable else match.group()


# `.cold` says something; the suffix of a ThinLTO import does not.
def _visible_suffix(suffix: str) -> str:
    return suffix.partition(_LLVM_SUFFIX)[0]
