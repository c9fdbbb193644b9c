"""Equal answers together, and hosts as ranges."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from uftrace_remote.endpoint import DEFAULT_PORT, Endpoint
from uftrace_remote.fleet.address import Host, parse_hosts
from uftrace_remote.fleet.grouping import fold_endpoints, group_answers, host_label

PORTS = st.sampled_from([DEFAULT_PORT, DEFAULT_PORT, 7, 50060])
HOSTS = st.one_of(
    st.from_regex(r"[a-c]{1,2}[0-9]{1,2}(\.x[0-9])?", fullmatch=True),
    st.from_regex(r"10\.0\.[0-3]\.[0-9]", fullmatch=True),
    st.sampled_from(["::1", "fe80::2", "2001:db8::10"]),
)
ENDPOINTS = st.builds(Endpoint, HOSTS, PORTS)


@given(st.sets(ENDPOINTS, min_size=1, max_size=40))
def test_folded_endpoints_mean_the_same_hosts(endpoints):
    terms = parse_hosts(",".join(fold_endpoints(endpoints)))
    assert all(isinstance(term, Host) for term in terms)
    assert len(terms) == len(endpoints)
    assert {term.endpoint for term in terms} == endpoints


def endpoints(text: str) -> list[Endpoint]:
    return [term.endpoint for term in parse_hosts(text)]


def test_how_hosts_are_folded():
    assert fold_endpoints(endpoints("web[01-16],db1")) == ("db1", "web[01-16]")
    assert fold_endpoints(endpoints("web[1-3]:7,db1:50051")) == ("db1:50051", "web[1-3]:7")
    assert fold_endpoints([*endpoints("::1"), Endpoint("", 0, "/run/a")]) == (
        "[::1]",
        "unix:/run/a",
    )
    assert host_label(Endpoint("web1")) == "web1"
    assert host_label(Endpoint("web1", 7)) == "web1:7"
    assert host_label(Endpoint("::1")) == "[::1]"
    assert host_label(Endpoint("", 0, "/run/a")) == "unix:/run/a"


def test_one_line_for_198_identical_answers_and_two_for_the_odd_ones():
    odd = {17: "0.9", 120: "0.8"}
    answers = [
        (Endpoint(f"web{number:03}"), odd.get(number, "1.0")) for number in range(200, 0, -1)
    ]
    groups = group_answers(answers)
    assert [(each.where, each.value) for each in groups] == [
        ("web[001-016,018-119,121-200]", "1.0"),
        ("web017", "0.9"),
        ("web120", "0.8"),
    ]
    assert len(groups[0].hosts) == 198


@given(
    st.lists(st.tuples(ENDPOINTS, st.integers(0, 3)), max_size=40, unique_by=lambda each: each[0])
)
def test_every_host_is_in_one_group_with_its_answer(answers):
    groups = group_answers(answers, key=lambda value: value % 2)
    assert len(groups) <= 2
    found = {host: group.value for group in groups for host in group.hosts}
    assert sum(len(group.hosts) for group in groups) == len(answers)
    assert all(found[host] % 2 == value % 2 for host, value in answers)
