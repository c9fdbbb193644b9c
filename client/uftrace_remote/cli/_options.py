# Options that several commands share, and their types.
from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from uftrace_remote.enums import PatchWriter
from uftrace_remote.values import Lease, Limits, PatchOptions

_Command = TypeVar("_Command", bound=Callable[..., Any])

WRITERS = ("auto", "byte", "trap", "stop")
_SCALES = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3600_000_000_000,
}


def duration_type(default_unit: str) -> Callable[[str], int]:
    """A type for options: `10us`, `1.5ms`, `2s`, `1m`, in nanoseconds.

    Args:
        default_unit: Unit of a bare number.
    """

    def duration(text: str) -> int:
        match = re.match(r"([0-9]+(?:\.[0-9]+)?)\s*(ns|us|ms|s|m|h)?\Z", text, re.ASCII)
        if match is None:
            raise click.BadParameter(f"'{text}' is no duration (write 10us, 1.5ms, 2s, 1m)")
        return round(float(match[1]) * _SCALES[match[2] or default_unit])

    return duration


def share(text: str) -> float:
    """A type for options: `20%`, `20` or `off`, as a share of one processor; 0 is off."""
    match = re.match(r"([0-9]+(?:\.[0-9]+)?) ?%?\Z", text, re.ASCII)
    if match is None and text != "off":
        raise click.BadParameter(f"'{text}' is no share of a processor (write 20% or off)")
    return float(match[1]) / 100 if match else 0.0


_RATES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}


def call_rate(text: str) -> float:
    """A type for options: `250000`, `500k`, `1M` or `off`, calls per second; 0 is off."""
    match = re.match(r"([0-9]+(?:\.[0-9]+)?)([kKMG]?)\Z", text, re.ASCII)
    if match is None and text != "off":
        raise click.BadParameter(f"'{text}' is no number of calls per second (500k, 1M, off)")
    return float(match[1]) * _RATES[match[2]] if match else 0.0


def limit_options(
    *, of: str, cpu: str = "--budget", rate: str = "--rate-limit"
) -> Callable[[_Command], _Command]:
    """What tracing may cost.

    Args:
        of: Whose limits they are, in words.
        cpu: Name of the one.
        rate: Name of the other.
    """

    def decorate(command: _Command) -> _Command:
        for option in (
            click.option(
                rate,
                "rate",
                type=call_rate,
                metavar="CALLS",
                help="Calls per second that one function may have (500k, 1M, off).",
            ),
            click.option(
                cpu,
                "cpu",
                type=share,
                metavar="SHARE",
                help=f"Processor time that probes of {of} may take (20%, off).",
            ),
        ):
            command = option(command)
        return command

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

duration_option = click.option(
    "-d",
    "--duration",
    "--for",
    "duration_ns",
    type=duration_type("s"),
    metavar="TIME",
    help="Stop after this long (2s, 500ms, 1m).  [default: until Ctrl-C]",
)


def patch_options(command: _Command) -> _Command:
    """How to patch: for patch, live and record."""
    command = limit_options(of="these functions")(command)
    for option in (
        click.option(
            "--pending",
            is_flag=True,
            help="Also in modules that are loaded later; FUNC may match nothing yet.",
        ),
        click.option(
            "--all-or-nothing", is_flag=True, help="Patch nothing where one function is refused."
        ),
        click.option("--entry-only", is_flag=True, help="Trace entries alone."),
        click.option(
            "--writer",
            type=click.Choice(WRITERS),
            default="auto",
            show_default=True,
            help="How code bytes are changed: one at a time, under traps, or in a stop.",
        ),
        click.option(
            "--multi",
            is_flag=True,
            help="Move several instructions where no other form fits (stops all threads).",
        ),
    ):
        command = option(command)
    return command


def to_patch_options(
    writer: str,
    entry_only: bool,
    all_or_nothing: bool,
    multi: bool,
    cpu: float | None = None,
    rate: float | None = None,
    *,
    pending: bool = False,
    dry_run: bool = False,
    lease: Lease | None = None,
) -> PatchOptions:
    """What those options say."""
    return PatchOptions(
        writer=PatchWriter[writer.upper()],
        entry_only=entry_only,
        all_or_nothing=all_or_nothing,
        dry_run=dry_run,
        allow_multi=multi,
        limits=Limits(cpu, rate),
        lease=lease,
        pending=pending,
    )
