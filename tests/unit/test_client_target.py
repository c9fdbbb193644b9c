"""Addresses and targets as people write them."""

from __future__ import annotations

import socket

import pytest

from uftrace_remote._resolve import choose_process, choose_processes
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.errors import NoSuchProcessError, UsageError
from uftrace_remote.target import ProcessSelector, Target
from uftrace_remote.values import Process, ProcessRef

LOCAL = Endpoint("localhost", 50051)


@pytest.mark.parametrize(
    ("text", "endpoint", "written"),
    [
        ("web1", Endpoint("web1", 50051), "web1:50051"),
        ("web1:7", Endpoint("web1", 7), "web1:7"),
        ("10.0.0.1:50052", Endpoint("10.0.0.1", 50052), "10.0.0.1:50052"),
        ("[::1]", Endpoint("::1", 50051), "[::1]:50051"),
        ("[fe80::1%eth0]:7", Endpoint("fe80::1%eth0", 7), "[fe80::1%eth0]:7"),
        ("2001:db8::1", Endpoint("2001:db8::1", 50051), "[2001:db8::1]:50051"),
        ("unix:/run/a.sock", Endpoint("", 0, "/run/a.sock"), "unix:/run/a.sock"),
    ],
)
def test_endpoints(text, endpoint, written):
    assert Endpoint.parse(text) == endpoint
    assert str(endpoint) == written
    assert Endpoint.parse(written) == endpoint


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the host is missing"),
        (":50051", "the host is missing"),
        ("web1:", "the port is missing"),
        ("web1:http", "'http' is no port"),
        ("web1:0", "'0' is no port"),
        ("web1:65536", "'65536' is no port"),
        ("web1:٣", "is no port"),
        ("we b1", "'we b1' is no host name"),
        ("[::1", "'[' without ']'"),
        ("[web1]:7", "'web1' is no IPv6 address"),
        ("[::1]7", "'7' after ']'"),
        ("a:b:c", "too many ':'"),
        ("unix:", "the path of the socket is missing"),
    ],
)
def test_endpoints_that_make_no_sense(text, complaint):
    with pytest.raises(UsageError) as caught:
        Endpoint.parse(text)
    assert complaint in caught.value.message
    assert text in caught.value.message
    assert "web1:50051" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "endpoint", "process"),
    [
        ("1234", LOCAL, ProcessSelector(pid=1234)),
        ("nginx", LOCAL, ProcessSelector(name="nginx")),
        ("exe=/usr/sbin/nginx", LOCAL, ProcessSelector(executable="/usr/sbin/nginx")),
        ("exe=/odd:path/x", LOCAL, ProcessSelector(executable="/odd:path/x")),
        ("web1:1234", Endpoint("web1"), ProcessSelector(pid=1234)),
        ("web1:50052:1234", Endpoint("web1", 50052), ProcessSelector(pid=1234)),
        ("web1:50052:nginx", Endpoint("web1", 50052), ProcessSelector(name="nginx")),
        ("web1:redis-server", Endpoint("web1"), ProcessSelector(name="redis-server")),
        ("web1:exe=/bin/a:b", Endpoint("web1"), ProcessSelector(executable="/bin/a:b")),
        ("web1:7:exe=/bin/a", Endpoint("web1", 7), ProcessSelector(executable="/bin/a")),
        ("[::1]:1234", Endpoint("::1"), ProcessSelector(pid=1234)),
        ("[::1]:50051:1234", Endpoint("::1", 50051), ProcessSelector(pid=1234)),
        ("unix:/run/a.sock:12", Endpoint("", 0, "/run/a.sock"), ProcessSelector(pid=12)),
        ("unix:/run/a.sock:nginx", Endpoint("", 0, "/run/a.sock"), ProcessSelector(name="nginx")),
    ],
)
def test_targets(text, endpoint, process):
    target = Target.parse(text)
    assert target == Target(endpoint, process)
    assert Target.parse(str(target)) == target


def test_a_target_without_a_host_is_on_the_default_one():
    assert Target.parse("12", Endpoint("web9", 7)) == Target(
        Endpoint("web9", 7), ProcessSelector(pid=12)
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the process is missing"),
        ("web1:", "the process is missing"),
        (":1234", "the host is missing"),
        ("web1:http:12", "'http' is no port"),
        ("0", "0 is no pid"),
        ("-5", "-5 is no pid"),
        ("99999999999", "99999999999 is no pid"),
        ("exe=nginx", "'nginx' is no absolute path"),
        ("web1:a b", "'a b' is neither a pid nor a process name"),
        ("unix:/run/a.sock", "the process is missing"),
        ("[::1]", "the process is missing"),
        ("[::1:12", "'[' without ']'"),
    ],
)
def test_targets_that_make_no_sense(text, complaint):
    with pytest.raises(UsageError) as caught:
        Target.parse(text)
    assert caught.value.message == f"cannot read the target '{text}': {complaint}" or (
        complaint in caught.value.message
    )
    assert caught.value.exit_code == 2
    assert "web1:1234" in caught.value.hint


def test_what_is_local():
    assert Endpoint("localhost").is_local
    assert Endpoint("127.0.0.1").is_local
    assert Endpoint(socket.gethostname()).is_local
    assert Endpoint("", 0, "/run/a.sock").is_local
    assert not Endpoint("web1.example.com").is_local


def test_directory_names_are_safe():
    assert Endpoint("::1", 7).directory_name == "__1_7"
    assert "/" not in Endpoint("", 0, "/run/../a.sock").directory_name


# -- which process is meant ---------------------------------------------------


def process(pid: int, name: str, path: str, *arguments: str) -> Process:
    return Process(ProcessRef(pid), name, arguments, path)


PROCESSES = [
    process(10, "nginx", "/usr/sbin/nginx", "nginx: master process", "-g"),
    process(11, "worker", "/srv/app/worker-x86"),
    process(12, "worker", "/srv/app/worker-x86"),
    process(13, "python3", "/usr/bin/python3.11", "./serve.py"),
    process(14, "a-very-long-nam", "/opt/a-very-long-name-indeed"),
]


@pytest.mark.parametrize(
    ("text", "pid"),
    [
        ("10", 10),
        ("nginx", 10),
        ("serve.py", 13),
        ("python3.11", 13),
        ("a-very-long-name-indeed", 14),
        ("exe=/usr/sbin/nginx", 10),
    ],
)
def test_one_process_fits(text, pid):
    assert choose_process(ProcessSelector.parse(text), PROCESSES).pid == pid


def test_several_processes_fit():
    with pytest.raises(UsageError, match="2 processes are called 'worker'") as caught:
        choose_process(ProcessSelector.parse("worker"), PROCESSES)
    assert "11 (worker), 12 (worker)" in caught.value.hint


def test_no_process_fits_but_one_is_near():
    with pytest.raises(NoSuchProcessError, match="no process is called 'ngin'") as caught:
        choose_process(ProcessSelector.parse("ngin"), PROCESSES)
    assert "did you mean 10" in caught.value.hint
    with pytest.raises(NoSuchProcessError) as caught:
        choose_process(ProcessSelector.parse("apache"), PROCESSES)
    assert "uftrace-remote ps" in caught.value.hint


def test_a_port_in_place_of_a_pid():
    with pytest.raises(NoSuchProcessError, match="no process has the pid 50051") as caught:
        choose_process(ProcessSelector.parse("50051"), PROCESSES)
    assert "HOST:50051:PID" in caught.value.hint


# -- build ids, cgroups, and all that fit -------------------------------------

WORKERS = [
    Process(ProcessRef(20), "web", build_id="5fd3c2a1ff", cgroup="/system.slice/web.service"),
    Process(ProcessRef(21), "web", build_id="5fd3c2a1ff", cgroup="/system.slice/web.service/a:b"),
    Process(ProcessRef(22), "web", build_id="0011223344", cgroup="/system.slice/web.service2"),
    Process(ProcessRef(23), "web", attachable=False, cgroup="/"),
    Process(ProcessRef(24), "zombie", attachable=False, cgroup="/"),
]


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        ("build-id=5FD3C2A1", ProcessSelector(build_id="5fd3c2a1")),
        ("cgroup=/system.slice/web.service", ProcessSelector(cgroup="/system.slice/web.service")),
        ("cgroup=/a:b/", ProcessSelector(cgroup="/a:b")),
        ("cgroup=/", ProcessSelector(cgroup="/")),
    ],
)
def test_selectors_with_keys(text, selector):
    assert ProcessSelector.parse(text) == selector
    assert Target.parse(f"web1:7:{text}") == Target(Endpoint("web1", 7), selector)
    assert Target.parse(str(Target(LOCAL, selector))) == Target(LOCAL, selector)


@pytest.mark.parametrize("text", ["build-id=", "build-id=5fd3c2a", "build-id=xyz", "cgroup=web"])
def test_selectors_with_keys_that_make_no_sense(text):
    with pytest.raises(UsageError) as caught:
        ProcessSelector.parse(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "pids"),
    [
        ("web", [20, 21, 22]),
        ("build-id=5fd3c2a1", [20, 21]),
        ("cgroup=/system.slice/web.service", [20, 21]),
        ("cgroup=/system.slice", [20, 21, 22]),
        ("cgroup=/", [20, 21, 22]),
        ("21", [21]),
        ("zombie", [24]),
    ],
)
def test_all_that_fit(text, pids):
    found = choose_processes(ProcessSelector.parse(text), WORKERS)
    assert [each.pid for each in found] == pids


@pytest.mark.parametrize("text", ["build-id=deadbeef", "cgroup=/system", "apache", "7"])
def test_nothing_fits(text):
    with pytest.raises(NoSuchProcessError) as caught:
        choose_processes(ProcessSelector.parse(text), WORKERS)
    assert "uftrace-remote ps" in caught.value.hint


def test_several_have_the_build_id():
    with pytest.raises(UsageError, match="2 processes are of the build id 5fd3c2a1"):
        choose_process(ProcessSelector.parse("build-id=5fd3c2a1"), WORKERS)
