"""Keeps what was parsed: open images in memory, function tables on disk."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tempfile
import threading
import zipfile
from collections import OrderedDict
from contextlib import suppress
from typing import Final

import numpy as np

from uftrace_agent.symbols.function_table import COLUMNS, FunctionTable
from uftrace_agent.symbols.module_image import ModuleImage

_FORMAT_VERSION: Final = 1
_SUFFIX: Final = f".v{_FORMAT_VERSION}.index"
_DIGEST_SIZE: Final = 16
_ImageKey = tuple[tuple[int, int, int, int], str, tuple[int, int]]
_KEY: Final = re.compile(r"[0-9a-z-]{1,120}")


class DiskIndexStore:
    """Function tables in a directory, one file each: a digest and an npz archive.

    Several agents may share the directory: files appear whole or not at all.

    Args:
        directory: Made, for its owner only, where it does not exist.
        limit_bytes: The files that were unused the longest go beyond that.
    """

    def __init__(self, directory: str, limit_bytes: int = 256 << 20) -> None:
        self._directory = directory
        self._limit_bytes = limit_bytes

    def load(self, key: str) -> FunctionTable | None:
        """The table of a key; None where there is none, or it is damaged."""
        path = self._path(key)
        if path is None:
            return None
        try:
            with open(path, "rb") as file:
                content = file.read()
            archive = memoryview(content)[_DIGEST_SIZE:]
            # Checked before it is parsed: numpy and zipfile fail in many ways on garbage.
            if _digest(archive) != content[:_DIGEST_SIZE]:
                raise ValueError("damaged")
            with np.load(io.BytesIO(archive), allow_pickle=False) as stored:
                table = FunctionTable.from_columns({name: stored[name] for name in COLUMNS})
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, MemoryError):
            with suppress(OSError):
                os.unlink(path)
            return None
        return table

    def store(self, key: str, table: FunctionTable) -> None:
        """Keep a table. A full or read-only disk is no error: it is only a cache."""
        path = self._path(key)
        if path is None:
            return
        try:
            archive = _archive(table)
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self._directory, suffix=".tmp")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(_digest(archive) + archive)
                os.replace(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
            self._remove_oldest()
        except OSError:
            return

    def _path(self, key: str) -> str | None:
        return os.path.join(self._directory, key + _SUFFIX) if _KEY.fullmatch(key) else None

    # Also what a killed agent, or one of another version, left behind.
    def _remove_oldest(self) -> None:
        files = []
        for entry in os.scandir(self._directory):
            if entry.name.endswith((".index", ".tmp")):
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    files.append((status.st_mtime_ns, status.st_size, entry.path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._limit_bytes:
                return
            with suppress(FileNotFoundError):
                os.unlink(path)
            total -= size


# What numpy.savez writes, which has no types for arrays by name.
def _archive(table: FunctionTable) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, column in table.columns().items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, column, allow_pickle=False)
    return buffer.getvalue()


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_SIZE).digest()


class ImageCache:
    """Open images by file identity, the least recently used dropped first.

    An image that is dropped stays usable to whoever holds it; its descriptor
    closes when the last reference goes. Safe to use from several threads.

    Args:
        directory: Where function tables are kept between runs; None for nowhere.
        capacity: How many images, and so descriptors, are kept.
    """

    def __init__(self, directory: str | None = None, capacity: int = 128) -> None:
        self._store = DiskIndexStore(directory) if directory is not None else None
        self._capacity = capacity
        self._lock = threading.Lock()
        self._images: OrderedDict[_ImageKey, ModuleImage] = OrderedDict()

    def open(
        self,
        path: str,
        *,
        root: str = "/",
        expected_build_id: str | None = None,
        mapped_path: str | None = None,
    ) -> ModuleImage:
        """As `ModuleImage.open`, out of memory where the same file is open already.

        Do not close what it returns.
        """
        image = ModuleImage.open(
            path,
            root=root,
            expected_build_id=expected_build_id,
            mapped_path=mapped_path,
            store=self._store,
        )
        key = (image.identity, image.name, _root_identity(root))
        with self._lock:
            known = self._images.get(key)
            if known is None:
                known = self._images[key] = image
            self._images.move_to_end(key)
            while len(self._images) > self._capacity:
                self._images.popitem(last=False)
        if known is not image:
            image.close()
        return known

    def __len__(self) -> int:
        return len(self._images)

    def clear(self) -> None:
        """Forget all images."""
        with self._lock:
            self._images.clear()


# What a file's debug files say is only as good as the root they are found in:
# a container must not name the functions of a library that the host shares
# with it. All processes of one root share their images.
def _root_identity(root: str) -> tuple[int, int]:
    try:
        status = os.stat(root)
    except OSError:
        return (0, 0)
    return (status.st_dev, status.st_ino)
