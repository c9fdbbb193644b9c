"""Hosts that are none: a network, pids, and if wanted a clock of its own for each.

    with Network(8) as network:
        first = network.hosts[0]
        agent = subprocess.Popen([*first.inside, "uftrace-agent", "--listen", first.address])

Each host is a network namespace on a link of its own to a bridge in this one, with a pid
namespace: what runs there sees nobody else's processes. Needs root, iproute2 and util-linux.
"""

from __future__ import annotations

import contextlib
import ipaddress
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.support.waiting import wait_until

_ROOT = Path(__file__).parents[2]
# Of the addresses for private networks (RFC 1918), little used ones.
_NETWORKS = [ipaddress.ip_network(f"10.{second}.0.0/22") for second in range(200, 250)]


@dataclass(frozen=True, slots=True)
class HostKind:
    """What a host is like, and its link to the bridge.

    Attributes:
        skew: Seconds by which the host's monotonic clock is ahead of ours.
        delay_ms: How long a frame takes each way.
        jitter_ms: How much longer it may take.
        loss_percent: How many of a hundred frames get lost.
    """

    skew: int = 0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss_percent: float = 0.0

    @property
    def has_good_link(self) -> bool:
        """Whether it neither takes time nor loses anything."""
        return not (self.delay_ms or self.jitter_ms or self.loss_percent)


_LIKE_THIS = HostKind()


@dataclass(frozen=True)
class NamespacedHost:
    """One of them.

    Attributes:
        name: Its network namespace.
        address: Its address on the bridge.
        link: The bridge's end of its link.
        init: The process that keeps its namespaces.
    """

    name: str
    address: str
    link: str
    init: int

    @property
    def inside(self) -> tuple[str, ...]:
        """What runs a command there, as a child of itself: `inner_pid` has its pid."""
        return (
            *("nsenter", "--target", str(self.init)),
            *("--net", "--mount", "--pid", "--time", "--"),
        )

    def cut(self) -> None:
        """Takes the link down: nothing gets through, and nobody is told."""
        _ip("link", "set", self.link, "down")

    def mend(self) -> None:
        """Takes the link up again."""
        _ip("link", "set", self.link, "up")


class Network:
    """A bridge with hosts.

    Args:
        count: How many.
        kinds: What the first of them are like; the others are like this one.

    Attributes:
        address: This side of the bridge.
        hosts: All of them.
    """

    def __init__(self, count: int, kinds: Sequence[HostKind] = ()) -> None:
        self._count = count
        self._kinds = kinds
        self._stack = ExitStack()
        self.address = ""
        self.hosts: tuple[NamespacedHost, ...] = ()

    def __enter__(self) -> Network:
        with ExitStack() as stack:
            # Names of links have 15 characters at most.
            tag = f"u{random.randrange(1 << 24):06x}"
            network, bridge = _free_network(), f"{tag}b"
            addresses = network.hosts()
            self.address = str(next(addresses))
            _ip("link", "add", bridge, "type", "bridge")
            stack.callback(_ip, "link", "delete", bridge)
            _ip("address", "add", f"{self.address}/{network.prefixlen}", "dev", bridge)
            _ip("link", "set", bridge, "up")
            hosts = []
            for number in range(self._count):
                kind = self._kinds[number] if number < len(self._kinds) else _LIKE_THIS
                where = f"{next(addresses)}/{network.prefixlen}"
                hosts.append(stack.enter_context(_host(f"{tag}{number}", bridge, where, kind)))
            self.hosts = tuple(hosts)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()


@contextlib.contextmanager
def _host(name: str, bridge: str, where: str, kind: HostKind) -> Iterator[NamespacedHost]:
    link = f"{name}v"
    _ip("netns", "add", name)
    with ExitStack() as stack:
        stack.callback(_ip, "netns", "delete", name)
        if kind.has_good_link:
            _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            stack.callback(subprocess.run, ("ip", "link", "delete", link), capture_output=True)
        else:
            stack.enter_context(_bad_cable(link, name, kind))
        _ip("link", "set", link, "master", bridge, "up")
        for command in (
            ("link", "set", "lo", "up"),
            ("address", "add", where, "dev", "eth0"),
            ("link", "set", "eth0", "up"),
        ):
            _ip("-netns", name, *command)
        clock = ("--time", "--monotonic", str(kind.skew), "--boottime", str(kind.skew))
        keeper = subprocess.Popen(
            [
                *("ip", "netns", "exec", name),
                *("unshare", *clock, "--pid", "--fork", "--mount-proc", "--kill-child"),
                *("sleep", "infinity"),
            ]
        )
        stack.callback(keeper.wait)
        # Everything in a pid namespace ends with its first process.
        stack.callback(keeper.kill)
        init = inner_pid(keeper)
        # Before it has become another program, /proc there is still the old one.
        wait_until(lambda: _command_of(init) == "sleep", timeout=30.0)
        yield NamespacedHost(name, where.partition("/")[0], link, init)


@contextlib.contextmanager
def _bad_cable(link: str, namespace: str, kind: HostKind) -> Iterator[None]:
    far = f"{link}f"
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.support.lossy_link", link, far),
            *("--delay", str(kind.delay_ms), "--jitter", str(kind.jitter_ms)),
            *("--loss", str(kind.loss_percent)),
        ],
        stdout=subprocess.PIPE,
        cwd=_ROOT,
    ) as carrier:
        try:
            assert carrier.stdout is not None
            assert carrier.stdout.readline() == b"ready\n"
            _ip("link", "set", far, "netns", namespace, "name", "eth0")
            yield
        finally:
            carrier.kill()


def inner_pid(wrapper: subprocess.Popen[bytes]) -> int:
    """The pid, as seen here, of what `NamespacedHost.inside` runs."""
    children = Path(f"/proc/{wrapper.pid}/task/{wrapper.pid}/children")
    found: list[int] = []

    def is_there() -> bool:
        assert wrapper.poll() is None, "the command in a namespace ended"
        found[:] = map(int, children.read_text().split())
        return bool(found)

    wait_until(is_there, timeout=30.0)
    return found[0]


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except FileNotFoundError:
        return ""


def _free_network() -> ipaddress.IPv4Network:
    said = subprocess.run(
        ("ip", "-4", "-oneline", "address"), check=True, capture_output=True, text=True
    ).stdout
    taken = [ipaddress.ip_interface(line.split()[3]).network for line in said.splitlines() if line]
    free = [n for n in _NETWORKS if not any(n.overlaps(each) for each in taken)]
    # At random: somebody else may be looking for one at this moment.
    network = random.choice(free)
    assert isinstance(network, ipaddress.IPv4Network)
    return network


def _ip(*arguments: str) -> None:
    done = subprocess.run(("ip", *arguments), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
