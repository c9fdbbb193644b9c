"""How people name functions.

    main                  the function of that name
    ns::f                 a C++ or Rust function, whatever its parameters
    SSL_*                 a glob: * ? [a-z] [!a-z]
    re:^(get|set)_        a regular expression, found anywhere in the name
    libc!mem*             any of these in libc.so.6 only

Linkage names, aliases and demangled names all count.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from uftrace_agent.errors import InvalidRequestError
from uftrace_agent.symbols.demangle import SourceNames, is_mangled, source_names
from uftrace_agent.symbols.function_table import FunctionTable

_REGEX_PREFIX: Final = "re:"
_GLOB_CHARACTERS: Final = re.compile(r"[*?\[]")
_SOURCE_CHARACTERS: Final = re.compile(r"::|[(*\s]")
_PLAIN_NAME: Final = re.compile(r"[A-Za-z_]\w*")
_LONGEST_PATTERN: Final = 4096

# Words of demangled names that the mangled form does not spell out.
_ABBREVIATED: Final = frozenset(
    re.findall(
        r"\w+",
        "std allocator basic_string string char_traits istream ostream iostream basic_istream "
        "basic_ostream basic_iostream operator new delete unsigned signed char short int long "
        "float double bool void wchar_t char8_t char16_t char32_t __int128 __float128 auto "
        "decltype nullptr_t const volatile restrict noexcept anonymous namespace lambda unnamed "
        "type clone abi vtable thunk virtual non to guard variable for construction typeinfo "
        "name true false template parameter object static_cast sizeof alignof throw throws "
        "typename complex imaginary str usize isize i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 "
        "f64 as dyn mut impl unsafe extern fn closure shim where co_await initializer nullptr "
        "requires C",
    )
)


@dataclass(frozen=True, slots=True)
class FunctionPattern:
    """One pattern.

    Attributes:
        text: As it was given.
        module: Glob over the base name of the file, "" for every file.
        function: The part for the function, without module and `re:`.
        is_regex: Whether `function` is a regular expression.
    """

    text: str
    module: str
    function: str
    is_regex: bool

    @classmethod
    def parse(cls, text: str) -> FunctionPattern:
        """Read a pattern.

        Raises:
            InvalidRequestError: Empty, too long, or a bad regular expression.
        """
        if len(text) > _LONGEST_PATTERN:
            raise _invalid(text[:40] + "...", f"longer than {_LONGEST_PATTERN} characters")
        if any(letter in text for letter in "\n\r\0"):
            raise _invalid(text, "it has a line break or a NUL character")
        module, function = _split_module(text)
        if module is not None and not module:
            raise _invalid(text, "nothing before the '!'")
        is_regex = function.startswith(_REGEX_PREFIX)
        if is_regex:
            function = function.removeprefix(_REGEX_PREFIX)
        function = function if is_regex else function.strip()
        if not function:
            raise _invalid(text, "no function name in it")
        if is_regex:
            try:
                re.compile(function)
            except re.error as error:
                place = "" if error.pos is None else f" at position {error.pos}"
                raise _invalid(text, f"{error.msg}{place} of the regular expression") from error
            except (OverflowError, RecursionError) as error:
                raise _invalid(text, "the regular expression is too complex") from error
        return cls(text, module or "", function, is_regex)

    @property
    def is_exact(self) -> bool:
        """Whether it names one function rather than many."""
        return not self.is_regex and _GLOB_CHARACTERS.search(self.function) is None

    def matches_module(self, basename: str) -> bool:
        """Whether the functions of a file of that base name are meant.

        `libc.so.6` also goes by `libc.so` and `libc`, `libc-2.31.so` by `libc`.
        """
        if not self.module:
            return True
        matches = _glob_matcher(self.module)
        return any(matches(name) for name in _module_names(basename))

    def select(self, table: FunctionTable) -> NDArray[np.int64]:
        """Ascending indices of the functions meant, under any of their names."""
        if not len(table):
            return np.empty(0, np.int64)
        if not self.is_regex and not self.function.strip("*"):
            return np.arange(len(table), dtype=np.int64)
        if self.is_exact and _SOURCE_CHARACTERS.search(self.function) is None:
            exact = np.array(table.indices_of_name(self.function), np.int64)
            cxx = table.owners_of_names(self._lines_of_plain_name(table))
            return np.union1d(exact, cxx)
        names = table.linkage_names()
        matches = (
            re.compile(self.function).search if self.is_regex else _glob_matcher(self.function)
        )
        literal = "" if self.is_regex else _longest_literal(self.function)
        lines = [line for line, name in enumerate(names) if literal in name and matches(name)]
        if self.is_regex or _SOURCE_CHARACTERS.search(self.function):
            words = [] if self.is_regex else _required_words(self.function)
            lines += [
                line
                for line, name in enumerate(names)
                if name[:1] == "_"
                and is_mangled(name)
                and all(word in name for word in words)
                and self._matches_source(table.source_names(line), matches)
            ]
        return table.owners_of_names(np.array(lines, np.int64))

    # Not the whole demangled name: a return type is not part of what a pattern
    # is about. Somebody may have copied it from what we print, though.
    def _matches_source(self, names: SourceNames, matches: Callable[[str], object]) -> bool:
        return bool(
            matches(names.name)
            or matches(names.bare)
            or matches(names.signature)
            or self.function == names.demangled
        )

    # `f` also means the C++ functions f(...) that are in no namespace.
    def _lines_of_plain_name(self, table: FunctionTable) -> NDArray[np.int64]:
        name = self.function
        if _PLAIN_NAME.fullmatch(name) is None or not name.isascii():
            return np.empty(0, np.int64)
        mangled = re.compile(rf"^_ZL?{len(name)}{name}.*$".encode(), re.MULTILINE)
        lines = [
            table.line_at(match.start())
            for match in mangled.finditer(table.names)
            if source_names(match.group().decode()).bare == name
        ]
        return np.array(lines, np.int64)


def _invalid(text: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"bad function pattern {text!r}: {problem}",
        reason="INVALID_PATTERN",
        hint="NAME, a glob such as SSL_*, re:REGEX, each also as MODULE!...",
        metadata={"pattern": text},
    )


# The first '!' separates the module; but not those of `operator!` and `[!a-z]`,
# and none inside of a regular expression.
_MODULE: Final = re.compile(r"(.*?)(?<!\[)(?<!operator)!(.*)")


def _split_module(text: str) -> tuple[str | None, str]:
    found = None if text.startswith(_REGEX_PREFIX) else _MODULE.fullmatch(text)
    return (None, text) if found is None else (found[1].strip(), found[2])


def _module_names(basename: str) -> Iterable[str]:
    yield basename
    stem, separator, _version = basename.partition(".so")
    if separator:
        yield f"{stem}.so"
        yield stem
        plain = re.sub(r"-[\d.]+$", "", stem)
        yield f"{plain}.so"
        yield plain


# fnmatch would fold case on some systems, and lets a glob character in a name
# (`operator[]`, `f[abi:cxx11]`) never match itself; here the text itself matches too.
@lru_cache(maxsize=256)
def _glob_matcher(glob: str) -> Callable[[str], object]:
    return re.compile(f"{_glob_to_regex(glob)}|{re.escape(glob)}", re.DOTALL).fullmatch


def _glob_to_regex(glob: str) -> str:
    parts: list[str] = []
    position = 0
    while position < len(glob):
        letter = glob[position]
        position += 1
        if letter == "*":
            if not parts or parts[-1] != ".*":
                parts.append(".*")
        elif letter == "?":
            parts.append(".")
        elif letter == "[":
            skip = position + 1 if glob[position : position + 1] == "!" else position
            end = glob.find("]", skip + 1)
            if end < 0:
                parts.append(r"\[")
                continue
            parts.append(_character_class(glob[position:end]))
            position = end + 1
        else:
            parts.append(re.escape(letter))
    return "".join(parts)


def _character_class(body: str) -> str:
    negated = body.startswith("!")
    body = body[1:] if negated else body
    parts: list[str] = []
    position = 0
    while position < len(body):
        first = body[position]
        if body[position + 1 : position + 2] == "-" and position + 2 < len(body):
            last = body[position + 2]
            position += 3
            if first <= last:
                parts.append(f"{re.escape(first)}-{re.escape(last)}")
        else:
            parts.append(re.escape(first))
            position += 1
    if not parts:  # only ranges such as z-a, which hold nothing
        return "." if negated else r"(?!)"
    return f"[{'^' if negated else ''}{''.join(parts)}]"


# Text that whatever a glob matches must contain: much faster to look for than
# to run the regular expression.
def _longest_literal(glob: str) -> str:
    return max(re.split(r"[*?]", re.sub(r"\[.*", "*", glob)), key=len)


# Identifiers that a mangled name must contain for its demangled form to match
# a glob: saves demangling all names of a large program.
def _required_words(glob: str) -> list[str]:
    without_classes = re.sub(r"\[[^\]]*\]", "*", glob)
    found = []
    for match in re.finditer(r"\w+", without_classes):
        word = match.group()
        before = without_classes[match.start() - 1 : match.start()]
        after = without_classes[match.end() : match.end() + 1]
        if not word.isascii() or word[0].isdigit():
            continue
        # A word cut off by a wildcard may be part of an abbreviated one (`*tring`).
        cut = before in ("*", "?") or after in ("*", "?")
        if word in _ABBREVIATED or (cut and any(word in full for full in _ABBREVIATED)):
            continue
        found.append(word)
    return found
