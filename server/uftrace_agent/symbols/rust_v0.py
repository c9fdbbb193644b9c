"""Rust's v0 mangling (RFC 2603, rustc book "Symbol Mangling") undone.

A recursive descent over the grammar that appends to one list of parts. Back
references make it possible to write short names that expand without end, so
depth and output are bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_BASIC_TYPES: Final = {
    "a": "i8",
    "b": "bool",
    "c": "char",
    "d": "f64",
    "e": "str",
    "f": "f32",
    "h": "u8",
    "i": "isize",
    "j": "usize",
    "l": "i32",
    "m": "u32",
    "n": "i128",
    "o": "u128",
    "p": "_",
    "s": "i16",
    "t": "u16",
    "u": "()",
    "v": "...",
    "x": "i64",
    "y": "u64",
    "z": "!",
}
_SIGNED: Final = frozenset("asilxn")
_UNSIGNED: Final = frozenset("htmjyo")
_HEX_DIGITS: Final = frozenset("0123456789abcdef")
_ESCAPES: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "'": "\\'", "\\": "\\\\", "\0": "\\0"}
_DEEPEST: Final = 120
_LONGEST: Final = 1 << 16
_BASE_62: Final = {
    letter: value
    for value, letter in enumerate("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
}


class UnknownRustNameError(Exception):
    """Not a v0 name, or one that uses what came after this was written."""


class V0Printer:
    """Demangles one name.

    Args:
        body: The linkage name without `_R` and without a dot suffix.
    """

    def __init__(self, body: str) -> None:
        self._text = body
        self._position = 0
        self._parts: list[str] = []
        self._length = 0
        self._depth = 0
        self._bound_lifetimes = 0
        self._silent = 0

    def demangle(self) -> str:
        """The whole name.

        Raises:
            UnknownRustNameError: It does not follow the grammar.
        """
        if not self._peek().isupper() or not self._text.isascii():
            raise UnknownRustNameError
        self._path(in_value=True)
        if self._peek():  # the crate that instantiated a generic; nobody needs it
            with self._silently():
                self._path(in_value=False)
        if self._peek():
            raise UnknownRustNameError
        return "".join(self._parts)

    # -- characters and output

    def _peek(self) -> str:
        return self._text[self._position : self._position + 1]

    def _next(self) -> str:
        letter = self._peek()
        if not letter:
            raise UnknownRustNameError
        self._position += 1
        return letter

    def _accept(self, letter: str) -> bool:
        if self._peek() == letter:
            self._position += 1
            return True
        return False

    def _print(self, text: str) -> None:
        if self._silent:
            return
        self._length += len(text)
        if self._length > _LONGEST:
            raise UnknownRustNameError
        self._parts.append(text)

    @contextmanager
    def _silently(self) -> Iterator[None]:
        self._silent += 1
        yield
        self._silent -= 1

    @contextmanager
    def _deeper(self) -> Iterator[None]:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise UnknownRustNameError
        yield
        self._depth -= 1

    # -- numbers and identifiers

    def _base_62(self) -> int:
        if self._accept("_"):
            return 0
        value = 0
        while (letter := self._next()) != "_":
            if letter not in _BASE_62 or value > 1 << 64:
                raise UnknownRustNameError
            value = value * 62 + _BASE_62[letter]
        return value + 1

    def _optional_base_62(self, tag: str) -> int:
        return self._base_62() + 1 if self._accept(tag) else 0

    def _identifier(self) -> str:
        is_punycode = self._accept("u")
        start = self._position
        if not self._accept("0"):
            while self._peek().isdigit():
                self._position += 1
        digits = self._text[start : self._position]
        if not 0 < len(digits) <= 6:
            raise UnknownRustNameError
        self._accept("_")
        end = self._position + int(digits)
        if end > len(self._text):
            raise UnknownRustNameError
        name = self._text[self._position : end]
        self._position = end
        return _from_punycode(name) if is_punycode else name

    def _at_back_reference(self, parse: Callable[[], None]) -> None:
        start = self._position - 1
        target = self._base_62()
        if target >= start:
            raise UnknownRustNameError
        if self._silent:
            return  # what it refers to was parsed once already
        resume, self._position = self._position, target
        with self._deeper():
            parse()
        self._position = resume

    # -- paths

    def _path(self, *, in_value: bool) -> None:
        with self._deeper():
            tag = self._next()
            if tag == "C":
                self._optional_base_62("s")
                self._print(self._identifier())
            elif tag == "N":
                self._nested_path(in_value)
            elif tag in "MXY":
                if tag != "Y":
                    self._optional_base_62("s")
                    with self._silently():
                        self._path(in_value=False)
                self._print("<")
                self._type()
                if tag != "M":
                    self._print(" as ")
                    self._path(in_value=False)
                self._print(">")
            elif tag == "I":
                self._path(in_value=in_value)
                self._print("::<" if in_value else "<")
                self._list(self._generic_argument)
                self._print(">")
            elif tag == "B":
                self._at_back_reference(lambda: self._path(in_value=in_value))
            else:
                raise UnknownRustNameError

    def _nested_path(self, in_value: bool) -> None:
        namespace = self._next()
        if not namespace.isalpha():
            raise UnknownRustNameError
        self._path(in_value=in_value)
        disambiguator = self._optional_base_62("s")
        name = self._identifier()
        if namespace.isupper():
            kind = {"C": "closure", "S": "shim"}.get(namespace, namespace)
            self._print(f"::{{{kind}{':' if name else ''}{name}#{disambiguator}}}")
        elif name:
            self._print(f"::{name}")

    # Items up to an E, with commas between. Returns how many.
    def _list(self, parse: Callable[[], None], separator: str = ", ") -> int:
        count = 0
        while not self._accept("E"):
            if count:
                self._print(separator)
            parse()
            count += 1
        return count

    def _generic_argument(self) -> None:
        if self._accept("L"):
            self._lifetime(self._base_62())
        elif self._accept("K"):
            self._const()
        else:
            self._type()

    # -- types

    def _type(self) -> None:
        tag = self._next()
        if tag in _BASIC_TYPES:
            self._print(_BASIC_TYPES[tag])
            return
        with self._deeper():
            if tag in "RQ":
                self._print("&")
                if self._accept("L"):
                    lifetime = self._base_62()
                    if lifetime:
                        self._lifetime(lifetime)
                        self._print(" ")
                self._print("mut " if tag == "Q" else "")
                self._type()
            elif tag in "PO":
                self._print("*const " if tag == "P" else "*mut ")
                self._type()
            elif tag in "AS":
                self._print("[")
                self._type()
                if tag == "A":
                    self._print("; ")
                    self._const()
                self._print("]")
            elif tag == "T":
                self._print("(")
                self._print(",)" if self._list(self._type) == 1 else ")")
            elif tag == "F":
                self._in_binder(self._function_signature)
            elif tag == "D":
                self._print("dyn ")
                self._in_binder(self._dyn_bounds)
                if not self._accept("L"):
                    raise UnknownRustNameError
                lifetime = self._base_62()
                if lifetime:
                    self._print(" + ")
                    self._lifetime(lifetime)
            elif tag == "B":
                self._at_back_reference(self._type)
            else:
                self._position -= 1
                self._path(in_value=False)

    def _in_binder(self, parse: Callable[[], None]) -> None:
        count = self._optional_base_62("G")
        if count > 100:
            raise UnknownRustNameError
        if count:
            names = []
            for _ in range(count):
                self._bound_lifetimes += 1
                names.append(self._lifetime_name(1))
            self._print(f"for<{', '.join(names)}> ")
        parse()
        self._bound_lifetimes -= count

    def _lifetime(self, index: int) -> None:
        self._print(self._lifetime_name(index))

    def _lifetime_name(self, index: int) -> str:
        if index == 0:
            return "'_"
        depth = self._bound_lifetimes - index
        if depth < 0:
            raise UnknownRustNameError
        return f"'{chr(ord('a') + depth)}" if depth < 26 else f"'_{depth}"

    def _function_signature(self) -> None:
        if self._accept("U"):
            self._print("unsafe ")
        if self._accept("K"):
            abi = "C" if self._accept("C") else self._identifier().replace("_", "-")
            self._print(f'extern "{abi}" ')
        self._print("fn(")
        self._list(self._type)
        self._print(")")
        if not self._accept("u"):
            self._print(" -> ")
            self._type()

    def _dyn_bounds(self) -> None:
        self._list(self._dyn_trait, " + ")

    # A trait of `dyn`; its associated types go inside of its generic arguments.
    def _dyn_trait(self) -> None:
        is_open = self._open_path()
        while self._accept("p"):
            self._print(", " if is_open else "<")
            is_open = True
            self._print(f"{self._identifier()} = ")
            self._type()
        if is_open:
            self._print(">")

    def _open_path(self) -> bool:
        if self._accept("B"):
            is_open = False

            def parse() -> None:
                nonlocal is_open
                is_open = self._open_path()

            self._at_back_reference(parse)
            return is_open
        if self._accept("I"):
            self._path(in_value=False)
            self._print("<")
            self._list(self._generic_argument)
            return True
        self._path(in_value=False)
        return False

    # -- constants

    def _const(self) -> None:
        tag = self._next()
        if tag == "p":
            self._print("_")
        elif tag == "B":
            self._at_back_reference(self._const)
        elif tag in _SIGNED or tag in _UNSIGNED:
            sign = "-" if tag in _SIGNED and self._accept("n") else ""
            value = self._hex_number()
            self._print(f"{sign}{value}" if value < 1 << 64 else f"{sign}{value:#x}")
        elif tag == "b":
            value = self._hex_number()
            if value > 1:
                raise UnknownRustNameError
            self._print("true" if value else "false")
        elif tag == "c":
            value = self._hex_number()
            if value >= 0x110000 or 0xD800 <= value < 0xE000:
                raise UnknownRustNameError
            self._print(f"'{_escaped(chr(value))}'")
        else:
            raise UnknownRustNameError

    def _hex_number(self) -> int:
        start = self._position
        while self._peek() and self._peek() in _HEX_DIGITS:
            self._position += 1
        digits = self._text[start : self._position]
        if not self._accept("_") or len(digits) > 32:
            raise UnknownRustNameError
        return int(digits or "0", 16)


def _escaped(letter: str) -> str:
    if letter in _ESCAPES:
        return _ESCAPES[letter]
    return letter if letter.isprintable() else f"\\u{{{ord(letter):x}}}"


# RFC 3492 with `_` for the delimiter.
def _from_punycode(name: str) -> str:
    basic, _, extended = name.rpartition("_")
    try:
        encoded = f"{basic}-{extended}" if basic else extended
        return encoded.encode("ascii").decode("punycode")
    except (UnicodeError, ValueError, OverflowError) as error:
        raise UnknownRustNameError from error
