# SPDX-License-Identifier: Apache-2.0
"""Debian's own servers and language runtimes, running under a load that checks every reply.

    with redis() as program, program.load() as load:
        ...                               # trace program.pid, or load.pid
        report = load.finish()            # raises unless it did some work
    assert report.errors == 0, report.detail

Everything lives in a private temporary folder, listens on loopback or on a
socket in that folder only, and is ended by pid.
"""

from ._base import Load as Load
from ._base import LoadReport as LoadReport
from ._base import Program as Program
from ._memcached import memcached as memcached
from ._nginx import nginx as nginx
from ._postgres import postgres as postgres
from ._redis import redis as redis
from ._self_checking import cpython as cpython
from ._self_checking import self_checking as self_checking
from ._web import golang as golang
from ._web import java as java
from ._web import node as node
from ._web import python3 as python3
