"""Tables on disk and images in memory."""

from __future__ import annotations

import gc
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.symbols_support import ElfWriter, compile_program, run
from uftrace_agent.symbols import FunctionTable, ModuleImage
from uftrace_agent.symbols.cache import DiskIndexStore, ImageCache

pytestmark = pytest.mark.usefixtures("no_leaks")

LIBC = "/usr/lib/x86_64-linux-gnu/libc.so.6"


def sample(count: int = 3) -> FunctionTable:
    symbols = [(f"function_{i}", 0x1000 + 8 * i, 8, 2, 1) for i in range(count)]
    data = ElfWriter(text=b"\xc3" * 8 * count, symbols=symbols).build()
    return ModuleImage.from_bytes(data).functions


def test_a_table_comes_back_as_it_was(tmp_path):
    with ModuleImage.open(LIBC) as image:
        table = image.functions
    store = DiskIndexStore(str(tmp_path / "cache"))
    assert store.load("key") is None
    store.store("key", table)
    loaded = store.load("key")
    assert loaded is not None
    assert list(loaded) == list(table)
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key.v1.index"]


def test_damaged_files_are_ignored_and_removed(tmp_path):
    store = DiskIndexStore(str(tmp_path))
    store.store("key", sample(50))
    path = tmp_path / "key.v1.index"
    whole = path.read_bytes()
    generator = random.Random(5)
    expected = list(sample(50))
    for turn in range(300):
        data = bytearray(whole)
        if turn % 3 == 0:
            del data[generator.randrange(len(data)) :]
        else:
            for _ in range(generator.choice([1, 4, 40])):
                data[generator.randrange(len(data))] ^= generator.randrange(1, 256)
        path.write_bytes(data)
        loaded = store.load("key")
        assert loaded is None
        assert not path.exists()
    path.write_bytes(whole)
    assert list(store.load("key")) == expected


def test_keys_cannot_leave_the_directory(tmp_path):
    store = DiskIndexStore(str(tmp_path / "cache"))
    for key in ("../x", "a/b", "", "A", "x" * 200):
        store.store(key, sample())
        assert store.load(key) is None
    assert not (tmp_path / "cache").exists()


def test_the_oldest_files_go_first(tmp_path):
    DiskIndexStore(str(tmp_path)).store("probe", sample())
    size = (tmp_path / "probe.v1.index").stat().st_size
    (tmp_path / "probe.v1.index").unlink()
    store = DiskIndexStore(str(tmp_path), limit_bytes=3 * size + size // 2)
    (tmp_path / "old.v0.index").write_bytes(bytes(size))
    os.utime(tmp_path / "old.v0.index", (1, 1))
    for age, key in enumerate(("a", "b", "c")):
        store.store(key, sample())
        os.utime(tmp_path / f"{key}.v1.index", (100 + age, 100 + age))
    assert not (tmp_path / "old.v0.index").exists()
    assert store.load("a") is not None  # used now, so `b` is the oldest
    store.store("d", sample())
    assert {path.name[0] for path in tmp_path.iterdir()} == {"a", "c", "d"}


def test_a_directory_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    store = DiskIndexStore(str(tmp_path / "file"))
    store.store("key", sample())
    assert store.load("key") is None


def test_the_second_image_takes_its_table_from_disk(tmp_path, monkeypatch):
    cache = str(tmp_path / "cache")
    with ModuleImage.open(LIBC, store=DiskIndexStore(cache)) as image:
        first = list(image.functions)
        assert image.build_id in os.listdir(cache)[0]
    monkeypatch.setattr(ModuleImage, "_build_functions", None)
    with ModuleImage.open(LIBC, store=DiskIndexStore(cache)) as image:
        assert list(image.functions) == first


def test_another_file_with_the_same_build_id_has_its_own_table(tmp_path):
    source = "__attribute__((noinline)) static int f(int x) { return x; }\n"
    source += "int main(int c, char **v) { return f(c); }"
    program = compile_program(tmp_path, source, "-Wl,--build-id=0xabcdef0123456789")
    stripped = tmp_path / "other" / "program"
    stripped.parent.mkdir()
    run("strip", "-o", stripped, program)
    store = DiskIndexStore(str(tmp_path / "cache"))
    with (
        ModuleImage.open(str(program), store=store) as whole,
        ModuleImage.open(str(stripped), store=store) as bare,
    ):
        assert whole.build_id == bare.build_id
        assert whole.address_of("main") is not None
        assert bare.address_of("main") is None
    assert len(os.listdir(tmp_path / "cache")) == 2


def test_images_are_shared_by_file_and_let_go(tmp_path):
    for name in "abc":
        (tmp_path / name).write_bytes(
            ElfWriter(symbols=[(f"function_{name}", 0x1000, 8, 2, 1)]).build()
        )
    cache = ImageCache(capacity=2)
    first = cache.open(str(tmp_path / "a"))
    assert cache.open(str(tmp_path / "a")) is first
    cache.open(str(tmp_path / "b"))
    cache.open(str(tmp_path / "c"))
    assert len(cache) == 2
    again = cache.open(str(tmp_path / "a"))
    assert again is not first
    assert first.address_of("function_a") == 0x1000  # still usable
    del first, again
    cache.clear()
    gc.collect()
    assert not [fd for fd in _open_files() if str(tmp_path) in fd]


def test_a_file_that_changed_is_another_image(tmp_path):
    path = tmp_path / "a"
    cache = ImageCache()
    path.write_bytes(ElfWriter(symbols=[("before", 0x1000, 8, 2, 1)]).build())
    first = cache.open(str(path))
    path.unlink()
    path.write_bytes(ElfWriter(symbols=[("after_", 0x1000, 8, 2, 1)]).build())
    os.utime(path, ns=(5, 5))
    second = cache.open(str(path))
    assert second is not first
    assert second.address_of("after_") == 0x1000
    assert first.address_of("before") == 0x1000


def test_images_can_be_used_from_many_threads(tmp_path):
    cache = ImageCache(str(tmp_path / "cache"), capacity=1)
    libraries = [LIBC, "/usr/lib/x86_64-linux-gnu/libm.so.6"]

    def use(turn: int) -> int:
        image = cache.open(libraries[turn % 2])
        index = turn % len(image.functions)
        symbol = image.functions.by_index(index)
        assert len(image.text_bytes(symbol.address, 1)) == 1
        return len(image.functions)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(use, range(64)))) == 2


def _open_files() -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(os.readlink(entry))
        except FileNotFoundError:
            continue
    return found
