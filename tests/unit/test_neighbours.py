"""Other tracers are known by the libraries that they bring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pytest

from uftrace_agent.engine.neighbours import other_tracer
from uftrace_agent.engine.program import ModuleView


@dataclass
class View:
    name: str


def found(*names: str) -> str:
    return other_tracer([cast(ModuleView, View(name)) for name in names])


@pytest.mark.parametrize(
    ("library", "word"),
    [
        ("libmcount.so", "uftrace"),
        ("libmcount-single.so", "uftrace"),
        ("libmcount-fast.so", "uftrace"),
        ("libmcount-fast-single.so", "uftrace"),
        ("libmcount-nop.so", "uftrace"),
        ("libmcount.so.1", "uftrace"),
        ("frida-agent-64.so", "Frida"),
        ("frida-gadget.so", "Frida"),
        ("libfrida-gadget.so", "Frida"),
        ("frida-agent-64.so.1", "Frida"),
        ("liborbit.so", "Orbit"),
        ("liborbituserspaceinstrumentation.so", "Orbit"),
    ],
)
def test_a_tracer_is_named_and_what_to_do(library: str, word: str) -> None:
    sentence = found("app", "libc.so.6", library)
    assert word in sentence
    assert "start the process again" in sentence


@pytest.mark.parametrize(
    "library",
    [
        *("app", "libc.so.6", "libmcounter.so", "mylibmcount.so", "libmcount.conf", "mcount"),
        *("frida", "libfridayprayer.txt", "orbit", "libdl.so.2", "[vdso]", ""),
    ],
)
def test_other_libraries_are_no_tracers(library: str) -> None:
    assert found("app", library) == ""


def test_the_first_that_is_found_is_told() -> None:
    assert "Frida" in found("frida-agent-64.so", "libmcount.so")
    assert found() == ""
