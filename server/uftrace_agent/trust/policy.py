"""Rules about which processes may be touched by whom, and what that may cost.

Pure. The first rule that fits decides; where none does, everything is allowed
that the caller's role allows, within the defaults. docs/trust.md has the format.
"""

from __future__ import annotations

import fnmatch
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from uftrace_agent.config import parse_rate, parse_share
from uftrace_agent.errors import ForbiddenError
from uftrace_agent.trust.process_facts import ProcessFacts
from uftrace_agent.trust.roles import Identity, Role

_SECONDS: Final = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MAXIMA: Final = ("max_budget", "max_rate", "max_lease", "lease_required")
_RULE_KEYS: Final = frozenset(
    ("name", "effect", "access", "who", "uids", "executables", "cgroups", *_MAXIMA)
)
_ACCESSES: Final = ("view", "change")


class PolicyError(ValueError):
    """The text is no policy; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Maxima:
    """What those who are no admin may ask for at most.

    Attributes:
        budget: Share of one processor.
        rate: Calls per second of one function.
        lease_ns: How long a lease may be; infinite for no maximum.
        lease_required: Whether nothing may be enabled for good.
    """

    budget: float = math.inf
    rate: float = math.inf
    lease_ns: float = math.inf
    lease_required: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for, apart from touching a process. None: it says nothing of it.

    Attributes:
        change: Whether it changes something.
        budget: Share of one processor; infinite for no limit.
        rate: Calls per second; infinite for no limit.
        own: Whether these limits are of functions alone, and not of the session.
        lease_ns: For how long.
        lasting: Whether it enables something for good.
    """

    change: bool = False
    budget: float | None = None
    rate: float | None = None
    own: bool = False
    lease_ns: int | None = None
    lasting: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. Of each condition that is given, one pattern has to fit.

    Attributes:
        name: For people, in errors and in the audit file.
        allow: Whether it allows or denies.
        accesses: `view`, `change`, or both.
        who: Globs of identities and of `role:ROLE`.
        uids: Ranges, both ends in.
        executables: Globs.
        cgroups: Globs.
        maxima: What it allows at most.
    """

    name: str
    allow: bool
    accesses: frozenset[str]
    who: tuple[re.Pattern[str], ...] | None
    uids: tuple[range, ...] | None
    executables: tuple[re.Pattern[str], ...] | None
    cgroups: tuple[re.Pattern[str], ...] | None
    maxima: Maxima

    def fits(self, identity: Identity, facts: ProcessFacts, change: bool) -> bool:
        """Whether the rule is about this."""
        return (
            _ACCESSES[change] in self.accesses
            and _one_fits(self.who, identity.name, f"role:{identity.role.word}")
            and (self.uids is None or any(facts.uid in uids for uids in self.uids))
            and _one_fits(self.executables, facts.executable)
            and _one_fits(self.cgroups, facts.cgroup)
        )


@dataclass(frozen=True, slots=True)
class Policy:
    """All rules, and what is allowed where none fits."""

    rules: tuple[Rule, ...] = ()
    defaults: Maxima = Maxima()

    def check(self, identity: Identity, facts: ProcessFacts, asked: Asked) -> Maxima:
        """Let a request pass.

        Returns:
            The maxima that hold for it; none for an admin.

        Raises:
            ForbiddenError: A rule denies it, or a maximum is passed (POLICY_DENIED).
        """
        rule = next((r for r in self.rules if r.fits(identity, facts, asked.change)), None)
        name, maxima = (rule.name, rule.maxima) if rule else ("defaults", self.defaults)
        if rule is not None and not rule.allow:
            verb = "change" if asked.change else "look at"
            raise denied(
                name,
                f"does not let {identity.name} {verb} process {facts.process.pid} "
                f"({facts.executable or 'unknown program'}, uid {facts.uid})",
                "ask who administers the agent; the rule is in its policy file",
            )
        if identity.role is Role.ADMIN:
            return Maxima()
        if asked.change:
            for problem, hint in _excesses(asked, maxima):
                raise denied(name, problem, hint)
        return maxima


def denied(rule: str, what: str, hint: str) -> ForbiddenError:
    """The error of what a rule does not allow."""
    return ForbiddenError(
        f"policy rule {rule!r} {what}",
        reason="POLICY_DENIED",
        hint=hint,
        metadata={"rule": rule},
    )


def _excesses(asked: Asked, maxima: Maxima) -> Iterator[tuple[str, str]]:
    most = f"{maxima.budget:.4%}".rstrip("0%").rstrip(".") + " %"
    if asked.budget is not None and maxima.budget < math.inf:
        # A function with a limit of its own no longer counts for the session's:
        # a hundred of them would take a hundred times the maximum.
        if asked.own:
            yield (
                "lets nobody but an admin give functions a budget of their own",
                f"the session's can be up to {most} of a processor: uftrace-remote budget",
            )
        if asked.budget > maxima.budget:
            yield (
                f"allows a budget of {most} of a processor at most",
                "ask for less, or somebody with the role admin",
            )
    if asked.rate is not None and asked.rate > maxima.rate:
        yield (
            f"allows {maxima.rate:,.0f} calls per second of a function at most",
            "ask for less, or somebody with the role admin",
        )
    longest = f"{maxima.lease_ns / 1e9:g}s"
    if asked.lease_ns is not None and asked.lease_ns > maxima.lease_ns:
        yield f"allows leases of {longest} at most", f"say --for {longest}"
    if asked.lasting and maxima.lease_required:
        yield (
            "wants a lease for everything that is enabled",
            f"say --for {longest if maxima.lease_ns < math.inf else '10m'}; live and record have "
            "leases of their own",
        )


def parse_policy(text: str) -> Policy:
    """Read a policy.

    Raises:
        PolicyError: It is none; nothing is guessed, unknown keys included.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"no TOML: {error}") from error
    _known(document, frozenset(("defaults", "rule")), "the file")
    defaults = document.get("defaults", {})
    if not isinstance(defaults, dict):
        raise PolicyError("defaults: a table [defaults] is wanted")
    _known(defaults, frozenset(_MAXIMA), "defaults")
    tables = document.get("rule", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise PolicyError("rule: tables [[rule]] are wanted")
    maxima = _maxima(defaults, Maxima(), "defaults")
    rules = tuple(_rule(table, number, maxima) for number, table in enumerate(tables, 1))
    names = [rule.name for rule in rules]
    for name in names:
        if names.count(name) > 1 or name == "defaults":
            raise PolicyError(f"rule {name!r}: the name is taken")
    return Policy(rules, maxima)


def _rule(table: Mapping[str, Any], number: int, defaults: Maxima) -> Rule:
    name = table.get("name", "")
    if not isinstance(name, str) or not name or not name.isprintable():
        raise PolicyError(f"rule {number}: it has no name")
    where = f"rule {name!r}"
    _known(table, _RULE_KEYS, where)
    effect = table.get("effect")
    if effect not in ("allow", "deny"):
        raise PolicyError(f"{where}: effect is not allow or deny")
    accesses = _texts(table, "access", where)
    if accesses is not None and not set(accesses) <= set(_ACCESSES):
        raise PolicyError(f"{where}: access is not a list of view and change")
    if effect == "deny" and (given := [key for key in _MAXIMA if key in table]):
        raise PolicyError(f"{where}: {given[0]} makes no sense with deny")
    return Rule(
        name=name,
        allow=effect == "allow",
        accesses=frozenset(_ACCESSES if accesses is None else accesses),
        who=_globs(table, "who", where),
        uids=_uids(table, where),
        executables=_globs(table, "executables", where),
        cgroups=_globs(table, "cgroups", where),
        maxima=_maxima(table, defaults, where),
    )


def _maxima(table: Mapping[str, Any], defaults: Maxima, where: str) -> Maxima:
    required = table.get("lease_required", None)
    if required is not None and not isinstance(required, bool):
        raise PolicyError(f"{where}: lease_required is not true or false")
    try:
        lease = _duration_ns(table["max_lease"]) if "max_lease" in table else defaults.lease_ns
        maxima = Maxima(
            budget=parse_share(str(table["max_budget"]))
            if "max_budget" in table
            else defaults.budget,
            rate=parse_rate(str(table["max_rate"])) if "max_rate" in table else defaults.rate,
            lease_ns=lease,
            # What lasts for ever is longer than any maximum.
            lease_required=required
            if required is not None
            else defaults.lease_required or lease < math.inf,
        )
    except ValueError as error:
        raise PolicyError(f"{where}: {error}") from error
    return maxima


def _duration_ns(value: Any) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)", str(value), re.ASCII)
    if value == "off":
        return math.inf
    if match is None or not float(match[1]):
        raise ValueError(f"{value!r} is no duration (10m, 2h, off)")
    return float(match[1]) * _SECONDS[match[2]] * 1e9


def _uids(table: Mapping[str, Any], where: str) -> tuple[range, ...] | None:
    values = table.get("uids")
    if values is None:
        return None
    problem = PolicyError(f'{where}: uids is not a list such as [0, "1000-1999"]')
    if not isinstance(values, list) or not values:
        raise problem
    ranges = []
    for value in values:
        match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", str(value), re.ASCII)
        if isinstance(value, bool) or match is None:
            raise problem
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise problem
        ranges.append(range(first, last + 1))
    return tuple(ranges)


def _globs(table: Mapping[str, Any], key: str, where: str) -> tuple[re.Pattern[str], ...] | None:
    texts = _texts(table, key, where)
    return None if texts is None else tuple(re.compile(fnmatch.translate(t)) for t in texts)


# An empty list would be a rule that never fits: rather said than guessed.
def _texts(table: Mapping[str, Any], key: str, where: str) -> list[str] | None:
    values = table.get(key)
    if values is None:
        return None
    if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
        raise PolicyError(f"{where}: {key} is not a list of texts")
    return values


def _known(table: Mapping[str, Any], keys: frozenset[str], where: str) -> None:
    for key in table:
        if key not in keys:
            raise PolicyError(f"{where}: unknown key {key!r}; known are {', '.join(sorted(keys))}")


def _one_fits(patterns: tuple[re.Pattern[str], ...] | None, *texts: str) -> bool:
    return patterns is None or any(p.match(text) for p in patterns for text in texts)
