# SPDX-License-Identifier: Apache-2.0
"""Load of postgres: sessions that check every answer, and pgbench."""

from __future__ import annotations

import itertools
import re
import struct
import subprocess
import sys
import threading

from loadlib import Client, Tally, run

FOLDER, *PGBENCH = sys.argv[2:]
SESSIONS = 2
CONNECTED = threading.Barrier(SESSIONS + 1)
BACKENDS: list[int] = []
TRANSACTIONS, PGBENCH_CLIENTS = 60, 3

# Deterministic queries that take different paths through the server. All answers
# must be as the first, which a session gets before the load counts as started.
QUERIES = (
    "select count(*), sum(aid), min(filler), max(bid) from pgbench_accounts",
    "select md5(string_agg(x::text, ',' order by x desc)) from generate_series(1, 3000) x",
    "select sum(a.aid * t.tid) from pgbench_accounts a join pgbench_tellers t "
    "on a.aid % 10 = t.tid % 10 where a.aid < 3000",
    "with recursive f(n, a, b) as (values (1, 0::numeric, 1::numeric) union all "
    "select n + 1, b, a + b from f where n < 200) select max(a) from f",
    "select jsonb_agg(jsonb_build_object('k', x, 'v', sqrt(x)) order by x) "
    "from generate_series(1, 200) x",
    "select regexp_replace(repeat('abc-', 100), '(b)(c)', '\\2\\1', 'g'), to_char("
    "timestamp '2024-02-29 13:14:15', 'Day DD Month YYYY HH24:MI:SS')",
    "select k, count(*), avg(v)::numeric(20,6), stddev(v)::numeric(20,6), rank() over "
    "(order by sum(v)) from (select x % 17 k, x * 1.5 v from generate_series(1, 4000) x) s "
    "group by k order by k",
    "select count(distinct x % 1000) from generate_series(1, 20000) x",
    "select exp(1.5), ln(2.5), sin(0.5), power(2.5, 3.5), 10::float4 / 3",
)


class Session(Client):
    """The simple query protocol, as a trusted user."""

    def __init__(self) -> None:
        super().__init__(f"{FOLDER}/.s.PGSQL.5432")
        body = struct.pack(">I", 3 << 16) + b"user\0postgres\0database\0bench\0\0"
        self.send(struct.pack(">I", len(body) + 4) + body)
        self.pid = 0
        while True:
            kind, data = self._message()
            if kind == b"K":
                self.pid = struct.unpack(">I", data[:4])[0]
            if kind == b"E":
                raise AssertionError(data)
            if kind == b"Z":
                return

    def _message(self) -> tuple[bytes, bytes]:
        head = self.take(5)
        return head[:1], self.take(struct.unpack(">I", head[1:])[0] - 4)

    def query(self, text: str) -> object:
        """Returns the rows, or the message of an error."""
        body = text.encode() + b"\0"
        self.send(b"Q" + struct.pack(">I", len(body) + 4) + body)
        rows: list[bytes] = []
        failure = b""
        while True:
            kind, data = self._message()
            if kind == b"D":
                rows.append(data)
            elif kind == b"E":
                fields = dict((part[:1], part[1:]) for part in data.split(b"\0") if part)
                failure = fields[b"C"] + b" " + fields[b"M"]
            elif kind == b"Z":
                return failure or rows


def number(session: Session, text: str) -> int:
    rows = session.query(text)
    assert isinstance(rows, list), rows
    # One row with one column: its count, its length, its text.
    return int(rows[0][6:])


def check_session(tally: Tally, stop: threading.Event) -> None:
    session = Session()
    BACKENDS.append(session.pid)
    table = f"check_{session.pid}"
    session.query(f"create table {table} (id int primary key, v text, n numeric)")
    wants = [session.query(query) for query in QUERIES]
    for query, want in zip(QUERIES, wants, strict=True):
        assert isinstance(want, list) and want, (query, want)
    CONNECTED.wait(30)
    turn = 0
    while not stop.is_set():
        for query, want in zip(QUERIES, wants, strict=True):
            tally.check(query, session.query(query), want)
        turn += 1
        insert = f"insert into {table} select {turn * 100} + x, repeat('v', x), x * 1.25 "
        tally.check("insert", session.query(insert + "from generate_series(0, 49) x"), [])
        tally.check("count", number(session, f"select count(*) from {table}"), 50)
        tally.check("sum", number(session, f"select sum(n * 4)::int from {table}"), 6125)
        update = f"update {table} set n = n + 1, v = v || 'x' where id % 2 = 0"
        tally.check("update", session.query(update), [])
        tally.check("length", number(session, f"select sum(length(v)) from {table}"), 1250)
        # Errors leave through siglongjmp; the transaction is rolled back.
        duplicate = f"insert into {table} values ({turn * 100}, 'again', 0)"
        want = f'23505 duplicate key value violates unique constraint "{table}_pkey"'.encode()
        tally.check("duplicate", session.query(duplicate), want)
        tally.check("division", session.query("select 1 / 0"), b"22012 division by zero")
        tally.check("delete", session.query(f"delete from {table}"), [])


def pgbench(tally: Tally, stop: threading.Event) -> None:
    total = TRANSACTIONS * PGBENCH_CLIENTS
    command = [*PGBENCH, "-n", "-c", str(PGBENCH_CLIENTS), "-j", "1", "-t", str(TRANSACTIONS)]
    modes = itertools.cycle(("simple", "extended", "prepared"))
    while not stop.is_set():
        done = subprocess.run(
            [*command, "-M", next(modes), "bench"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        match = re.search(r"actually processed: (\d+)/(\d+)", done.stdout)
        if done.returncode or not match or int(match[1]) != total:
            tally.error(f"pgbench {done.returncode}: {done.stdout}{done.stderr}")
        tally.add(total)


def check_totals(tally: Tally) -> None:
    # What TPC-B keeps invariant, over everything pgbench did.
    session = Session()
    sums = [
        number(session, f"select coalesce(sum({column}), 0) from {table}")
        for column, table in (
            ("abalance", "pgbench_accounts"),
            ("tbalance", "pgbench_tellers"),
            ("bbalance", "pgbench_branches"),
            ("delta", "pgbench_history"),
        )
    ]
    tally.check("balances", len(set(sums)), 1)
    tally.note(f"balances {sums}")


if __name__ == "__main__":
    run(
        [*[check_session] * SESSIONS, pgbench],
        pids=lambda: BACKENDS,
        connected=CONNECTED,
        after=check_totals,
    )
