# SPDX-License-Identifier: Apache-2.0
"""Debian's own servers and interpreter, running under a load that checks every reply.

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
from ._cpython import cpython as cpython
from ._memcached import memcached as memcached
from ._nginx import nginx as nginx
from ._postgres import postgres as postgres
from ._redis import redis as redis

ALL = (nginx, redis, postgres, memcached, cpython)
