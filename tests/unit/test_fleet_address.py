"""Hosts of a fleet as people write them: ranges, lists, groups, targets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uftrace_remote.endpoint import Endpoint
from uftrace_remote.errors import UsageError
from uftrace_remote.fleet.address import FleetTarget, GroupName, Host, is_plural, parse_hosts
from uftrace_remote.fleet.host_ranges import expand, fold
from uftrace_remote.target import ProcessSelector

NAMES = st.from_regex(r"[a-c]{0,2}[0-9]{1,3}(-[a-b][0-9]{1,2})?(\.x)?", fullmatch=True)


@given(st.sets(NAMES, max_size=60))
def test_what_is_folded_unfolds_to_the_same(names):
    unfolded = [name for pattern in fold(names) for name in expand(pattern)]
    assert sorted(unfolded) == sorted(names)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("web1", ["web1"]),
        ("web[08-11]", ["web08", "web09", "web10", "web11"]),
        ("web[1,3,5-7]", ["web1", "web3", "web5", "web6", "web7"]),
        ("rack[1-2]-web[01-02]", ["rack1-web01", "rack1-web02", "rack2-web01", "rack2-web02"]),
        ("10.0.0.[9-10]", ["10.0.0.9", "10.0.0.10"]),
    ],
)
def test_ranges(pattern, names):
    assert list(expand(pattern)) == names
    assert fold(names) == (pattern,)


def test_a_name_that_is_in_two_ranges_is_there_once():
    assert expand("web[1-3,2-4]") == ("web1", "web2", "web3", "web4")
    assert fold(["web16", "web18", "db", "web17", "web20"]) == ("db", "web[16-18,20]")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("web[1-10001]", "means 10,001 hosts"),
        ("r[1-999999999]w[1-999999999]", "means 999,999,998,000,000,001 hosts"),
        ("web[1-9000],db[1-9000]", "hosts"),
        ("web[3-1]", "runs backwards"),
        ("web[1-x]", "'1-x' is no number"),
        ("web[]", "'' is no number"),
        ("web[1-2", "has no partner"),
        ("web1]", "is no host name"),
        ("web[1-002]", "same number of digits"),
        ("web[1-٣]", "is no number"),
        ("web1,,web2", "a host is missing"),
        ("", "a host is missing"),
        ("@", "cannot read the group '@'"),
        ("@a b", "cannot read the group"),
        ("@web:http", "'http' is no port"),
        ("web[1-2]:99999", "'99999' is no port"),
    ],
)
def test_hosts_that_make_no_sense(text, complaint):
    with pytest.raises(UsageError) as caught:
        parse_hosts(text)
    assert complaint in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("web1", (Host(Endpoint("web1"), False),)),
        ("web1:7", (Host(Endpoint("web1", 7)),)),
        ("web[1-2]:7", (Host(Endpoint("web1", 7)), Host(Endpoint("web2", 7)))),
        ("a:5,b:7", (Host(Endpoint("a", 5)), Host(Endpoint("b", 7)))),
        ("a,@g,b:7", (Host(Endpoint("a", 7)), GroupName("g", 7), Host(Endpoint("b", 7)))),
        ("@all", (GroupName("all"),)),
        ("@g:7", (GroupName("g", 7),)),
        ("[::1]", (Host(Endpoint("::1"), False),)),
        ("[::1]:7,a", (Host(Endpoint("::1", 7)), Host(Endpoint("a"), False))),
        ("2001:db8::1", (Host(Endpoint("2001:db8::1"), False),)),
        ("unix:/a,b", (Host(Endpoint("", 0, "/a,b")),)),
    ],
)
def test_hosts(text, terms):
    assert parse_hosts(text) == terms


@pytest.mark.parametrize(
    ("text", "hosts", "process"),
    [
        ("web[01-02]:nginx", "web[01-02]", ProcessSelector(name="nginx")),
        ("@web:exe=/a:b", "@web", ProcessSelector(executable="/a:b")),
        ("@all:build-id=0123abcd", "@all", ProcessSelector(build_id="0123abcd")),
        ("a,b:7:cgroup=/x", "a,b:7", ProcessSelector(cgroup="/x")),
        ("[::1]:7:12", "[::1]:7", ProcessSelector(pid=12)),
        ("unix:/a:12", "unix:/a", ProcessSelector(pid=12)),
    ],
)
def test_targets(text, hosts, process):
    assert FleetTarget.parse(text) == FleetTarget(parse_hosts(hosts), process)


def test_a_target_on_the_default_host():
    assert FleetTarget.parse("nginx") == FleetTarget((), ProcessSelector(name="nginx"))


@pytest.mark.parametrize("text", ["@web", "a,b", "web[1-2]", "web[1,2]", "web[1-2]:"])
def test_targets_without_a_process(text):
    with pytest.raises(UsageError, match="process"):
        FleetTarget.parse(text)


def test_what_asks_for_a_fleet():
    assert is_plural(["a", "b"]) and is_plural(["a,b"]) and is_plural(["a[1-2]"])
    assert is_plural(["@a"])
    assert not is_plural([]) and not is_plural(["a:1"]) and not is_plural(["[::1]:7"])
    assert not is_plural(["unix:/a,b[1]"])
