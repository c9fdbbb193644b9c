# Options that say how a change goes through a fleet.
from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from uftrace_remote.cli._options import duration_type
from uftrace_remote.fleet.rollout import RolloutPolicy

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Share:
    """So many members, or a share of them."""

    count: int = 0
    share: float = 0.0


def _canary(text: str) -> Share:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)%|([0-9]+)", text, re.ASCII)
    if match is None:
        raise click.BadParameter(f"'{text}' is no number of processes (write 3 or 10%)")
    return Share(share=float(match[1]) / 100) if match[1] else Share(count=int(match[2]))


def failure_options(command: _Command) -> _Command:
    """How many processes of a fleet may fail."""
    for option in (
        click.option(
            "--best-effort",
            is_flag=True,
            help="Leave out every process that fails, as long as one is left.",
        ),
        click.option(
            "--max-failures",
            type=click.IntRange(min=0),
            default=0,
            metavar="N",
            help="So many may fail and are left out; one more, and all are rolled back.",
        ),
    ):
        command = option(command)
    return command


def rollout_options(command: _Command) -> _Command:
    """How a change goes through a fleet."""
    command = failure_options(command)
    for option in (
        click.option(
            "--watch",
            "watch_ns",
            type=duration_type("s"),
            default="5s",
            show_default=True,
            metavar="TIME",
            help="Watch each wave for so long before the next.",
        ),
        click.option(
            "--batch",
            type=click.IntRange(min=1),
            metavar="N",
            help="So many processes at a time after the canary.",
        ),
        click.option(
            "--canary",
            type=_canary,
            metavar="N|%",
            help="Patch so many first, and watch them.",
        ),
    ):
        command = option(command)
    return command


def to_policy(
    canary: Share | None,
    batch: int | None,
    max_failures: int,
    best_effort: bool,
    watch_ns: int,
) -> RolloutPolicy:
    """What those options say."""
    first = canary or Share()
    return RolloutPolicy(
        most_failures=None if best_effort else max_failures,
        canary=first.count,
        canary_share=first.share,
        batch=batch or 0,
        watch_seconds=watch_ns / 1e9,
    )
