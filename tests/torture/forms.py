# SPDX-License-Identifier: Apache-2.0
"""Which sites of which program stand for which form, and who can change them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from uftrace_agent.engine.model import Form, Writer
from uftrace_agent.engine.planner import PlanOptions
from uftrace_agent.engine.site import SitePlan

# What the program calls all of GENERATED's sites.
ANY = "any"
ALL_WRITERS = (Writer.BYTE, Writer.TRAP, Writer.STOP, Writer.AUTO)
SEVERAL_BYTES = (Writer.TRAP, Writer.STOP, Writer.AUTO)
# From 256 functions on in one request the planner prefers other forms.
PLANNED_AT_ONCE = 200
# Every site must have the form that it stands for; some may not get it, where the
# bytes of its neighbours or of its constants happen to forbid it.
LEAST_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class FormCase:
    """Sites that are to have one form.

    Attributes:
        name: What tables call it.
        sites: The prefix of the functions' names.
        form: The form.
        writers: Who can change them.
        planned_by: The writer that they are first asked for with, which decides the
            form where several fit.
        is_it: Whether a plan is what is meant, beyond its form.
        program: A program of tests/targets.
        variant: How it is built.
        least_share: Of the sites, how many must get the form.
    """

    name: str
    sites: str
    form: Form
    writers: tuple[Writer, ...] = SEVERAL_BYTES
    planned_by: Writer = Writer.AUTO
    is_it: Callable[[SitePlan], bool] = lambda plan: True
    program: str = "torture"
    variant: str = "gcc-O2"
    least_share: float = LEAST_SHARE

    @property
    def pattern(self) -> str:
        """The functions that are its sites."""
        return f"{self.sites}_*"

    def plan_options(self, writer: Writer) -> PlanOptions:
        """How its sites are asked for."""
        return PlanOptions(writer=writer, allow_multi=self.form is Form.MULTI)

    def matches(self, plan: SitePlan) -> bool:
        """Whether a site got the form that is meant."""
        return plan.form is self.form and self.is_it(plan)

    def writer_of(self, plan: SitePlan, asked: Writer) -> Writer:
        """Who should change a site when `asked` is asked for."""
        if asked is not Writer.AUTO:
            return asked
        if plan.form is Form.MULTI:
            return Writer.STOP
        return Writer.BYTE if plan.writer is Writer.BYTE else Writer.TRAP


def _changed_bytes(plan: SitePlan) -> int:
    return len(plan.head.changed())


def _is_prefixed(plan: SitePlan) -> bool:
    return plan.head.wanted[0] != 0xE9


FORMS = (
    FormCase("exact", "exact", Form.PUN, ALL_WRITERS, is_it=lambda plan: _changed_bytes(plan) == 1),
    FormCase(
        "pun",
        "pun",
        Form.PUN,
        planned_by=Writer.STOP,
        is_it=lambda plan: _changed_bytes(plan) > 1 and not _is_prefixed(plan),
    ),
    FormCase("prefixed", "prefixed", Form.PUN, is_it=_is_prefixed),
    FormCase("near", "near", Form.NEAR),
    FormCase("nop", "nop", Form.NOP),
    FormCase("call", "call", Form.CALL),
    FormCase("hop", "hop", Form.HOP),
    FormCase("sled", "sled", Form.SLED, ALL_WRITERS),
    FormCase("multi", "multi", Form.MULTI, (Writer.STOP, Writer.AUTO), planned_by=Writer.STOP),
    # What compilers make.
    FormCase("gcc", "compiled", Form.PUN),
    FormCase("pg", "compiled", Form.CALL, variant="pg"),
    FormCase("fentry", "compiled", Form.CALL, variant="fentry"),
    FormCase("gprof", "compiled", Form.CALL, program="torture_gprof", variant="pg"),
    FormCase("gprof-fentry", "call", Form.CALL, program="torture_gprof", variant="fentry"),
    FormCase("patchable", "compiled", Form.NOP, variant="clang-pfe5"),
    FormCase("xray", "compiled", Form.SLED, ALL_WRITERS, variant="xray-bare"),
)
# Sites of one program, that can be toggled together.
GENERATED = tuple(case for case in FORMS if case.sites != "compiled" and case.program == "torture")
# Functions that rely on nothing but the ABI: for other tools, which promise no more.
PLAIN = FormCase("plain", "plain", Form.NEAR)
BY_NAME = {case.name: case for case in (*FORMS, PLAIN)}
# The order in which the program knows the forms (torture.c, `forms`).
PROGRAM_FORMS = (
    "exact",
    "pun",
    "prefixed",
    "near",
    "nop",
    "call",
    "hop",
    "sled",
    "multi",
    "plain",
    "compiled",
    ANY,
)
