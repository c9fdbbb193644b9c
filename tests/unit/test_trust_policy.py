"""Rules: which one decides, what it lets ask for, and what is no rule."""

from __future__ import annotations

import math

import pytest

from uftrace_agent.errors import ForbiddenError
from uftrace_agent.process.identity import ProcessId
from uftrace_agent.trust.policy import Asked, Maxima, Policy, PolicyError, parse_policy
from uftrace_agent.trust.policy_file import PolicyFile
from uftrace_agent.trust.process_facts import ProcessFacts
from uftrace_agent.trust.roles import Identity, Role

TRACER = Identity("token:trace", Role.TRACE)
ADMIN = Identity("token:admin", Role.ADMIN)
ALICE = Identity("cert:alice", Role.TRACE)
CHANGE = Asked(change=True)
MINUTE = 60 * 10**9

POLICY = """
[defaults]
max_budget = "10%"
max_rate = "1M"

[[rule]]
name = "no-databases"
effect = "deny"
executables = ["/usr/*/postgres", "/usr/bin/mysqld"]

[[rule]]
name = "alice-on-web"
effect = "allow"
who = ["cert:alice"]
cgroups = ["/system.slice/web*"]
max_lease = "10m"

[[rule]]
name = "root-is-only-looked-at"
effect = "deny"
access = ["change"]
who = ["role:trace"]
uids = [0, "100-199"]
"""


def process(executable: str = "/bin/app", uid: int = 1000, cgroup: str = "/") -> ProcessFacts:
    return ProcessFacts(ProcessId(7, 8, "b"), uid, executable, cgroup)


def rule_of(policy: Policy, identity: Identity, facts: ProcessFacts, asked: Asked) -> str | None:
    try:
        policy.check(identity, facts, asked)
    except ForbiddenError as error:
        assert error.reason == "POLICY_DENIED"
        assert error.hint
        assert repr(error.metadata["rule"]) in error.message
        return error.metadata["rule"]
    return None


@pytest.fixture
def policy() -> Policy:
    return parse_policy(POLICY)


def test_nothing_written_is_everything_allowed():
    assert parse_policy("").check(TRACER, process(), CHANGE) == Maxima()


@pytest.mark.parametrize(
    ("identity", "facts", "asked", "rule"),
    [
        (TRACER, process("/usr/sbin/postgres"), CHANGE, "no-databases"),
        (ADMIN, process("/usr/bin/mysqld"), Asked(), "no-databases"),
        (TRACER, process("/usr/bin/mysqld2"), CHANGE, None),
        (TRACER, process(uid=0), CHANGE, "root-is-only-looked-at"),
        (TRACER, process(uid=199), CHANGE, "root-is-only-looked-at"),
        (TRACER, process(uid=200), CHANGE, None),
        (TRACER, process(uid=0), Asked(), None),
        (ADMIN, process(uid=0), CHANGE, None),
        # The first rule that fits decides.
        (ALICE, process(uid=0, cgroup="/system.slice/web1"), CHANGE, None),
        (ALICE, process(uid=0), CHANGE, "root-is-only-looked-at"),
    ],
)
def test_the_first_rule_that_fits_decides(policy, identity, facts, asked, rule):
    assert rule_of(policy, identity, facts, asked) == rule


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        (Asked(True, budget=0.1), None),
        (Asked(True, budget=0.11), "defaults"),
        (Asked(True, budget=math.inf), "defaults"),
        # A hundred functions with 10 % each would be 1000 %.
        (Asked(True, budget=0.01, own=True), "defaults"),
        (Asked(True, rate=1e6, own=True), None),
        (Asked(True, rate=1.1e6), "defaults"),
        (Asked(True, lasting=True), None),
    ],
)
def test_the_most_that_may_be_asked_for(policy, asked, rule):
    assert rule_of(policy, TRACER, process(), asked) == rule
    assert rule_of(policy, ADMIN, process(), asked) is None


@pytest.mark.parametrize(
    ("asked", "denied"),
    [
        (Asked(True, lease_ns=10 * MINUTE), False),
        (Asked(True, lease_ns=10 * MINUTE + 1), True),
        (Asked(True, lasting=True), True),
        (Asked(True, budget=0.2), True),
    ],
)
def test_a_longest_lease_means_that_one_is_wanted_and_defaults_go_on(policy, asked, denied):
    facts = process(cgroup="/system.slice/web1")
    expected = "alice-on-web" if denied else None
    assert rule_of(policy, ALICE, facts, asked) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rule = ", "no TOML"),
        ("[[rules]]", "unknown key 'rules'"),
        ("[[rule]]\neffect = 'deny'", "rule 1: it has no name"),
        ("[[rule]]\nname = 'a'", "effect"),
        ("[[rule]]\nname = 'a'\neffect = 'deny'\nuid = [0]", "unknown key 'uid'"),
        ("[[rule]]\nname = 'a'\neffect = 'deny'\nuids = ['9-1']", "uids"),
        ("[[rule]]\nname = 'a'\neffect = 'deny'\nuids = [true]", "uids"),
        ("[[rule]]\nname = 'a'\neffect = 'deny'\nwho = []", "who"),
        ("[[rule]]\nname = 'a'\neffect = 'deny'\naccess = ['write']", "access"),
        ("[[rule]]\nname = 'a'\neffect = 'deny'\nmax_lease = '1h'", "no sense with deny"),
        ("[[rule]]\nname = 'a'\neffect = 'allow'\nmax_lease = 'soon'", "no duration"),
        ("[[rule]]\nname = 'defaults'\neffect = 'deny'", "taken"),
        ("[defaults]\nmax_budget = 'lots'", "defaults: 'lots'"),
        ("[defaults]\nlease_required = 1", "true or false"),
        ("defaults = 1", "table"),
        ("rule = 1", "tables"),
    ],
)
def test_what_is_no_policy_says_where(text, said):
    with pytest.raises(PolicyError, match=said):
        parse_policy(text)


def test_the_file_is_reread_and_a_broken_one_leaves_the_old_rules(tmp_path, capfd):
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    path.chmod(0o644)
    file = PolicyFile(path)
    assert len(file.current().rules) == 3
    # WHEN a new version is broken, gone, or anybody's to change THEN the old one holds
    path.write_text("[[rule]]\n")
    assert len(file.current().rules) == 3
    path.unlink()
    assert len(file.current().rules) == 3
    # As it is while an editor writes over it
    path.write_text("")
    assert len(file.current().rules) == 3
    path.write_text("[defaults]")
    path.chmod(0o666)
    assert len(file.current().rules) == 3
    # WHEN it is whole again THEN it is taken
    path.chmod(0o644)
    assert file.current().rules == ()


def test_a_broken_file_at_the_start_is_an_error(tmp_path):
    with pytest.raises(PolicyError, match="No such file"):
        PolicyFile(tmp_path / "missing")
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(PolicyError, match="UTF-8"):
        PolicyFile(tmp_path / "bytes")
