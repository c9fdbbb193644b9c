"""The guest's disks: a kernel, an initramfs and a root file system, made without being root.

Everything comes from Debian's arm64 packages and from wheels for aarch64. Nothing of arm64
is executed and nothing is mounted: ``mke2fs -d`` copies a folder into a new file system.
"""

from __future__ import annotations

import compileall
import fcntl
import hashlib
import os
import py_compile
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.arm.packages import CACHE, download, newest_kernel, unpack
from tests.arm.wheels import PYTHON, install, requirements

GUEST = Path(__file__).parent / "guest"
SITE = f"usr/local/lib/python{PYTHON}/dist-packages"
# The small kernel for virtual machines; what it needs here is in modules.
KERNEL = "cloud-arm64"
MODULES = ("virtio_mmio", "virtio_blk", "virtio_net", "veth", "sch_netem", "tun", "overlay")
PACKAGES = (
    # A shell and what the tests start from one.
    *("base-passwd", "bash", "coreutils", "dash", "diffutils", "findutils", "grep", "gzip"),
    *("hostname", "iproute2", "libcap2-bin", "mawk", "mount", "procps", "sed", "tar", "util-linux"),
    *("python3", "tzdata", "xz-utils"),
    # For tests that call a compiler or a tool themselves; `build` asks the host.
    *("binutils", "g++", "gcc", "gdb", "strace", "uftrace"),
    # What is traced.
    *("libpython3.11", "libstdc++6", "memcached", "nginx-light", "redis-server", "redis-tools"),
    "wrk",
)
# They configure other packages, which does not happen here, or are for their scripts.
LEFT_OUT = (
    *("adduser", "debconf", "dpkg", "init-system-helpers", "libdb5.3", "libgdbm-compat4"),
    *("libfile-find-rule-perl", "libgdbm6", "libnumber-compare-perl", "libpam-modules"),
    *("libpam-modules-bin", "libperl5.36", "libsemanage-common", "libsemanage2", "libsepol2"),
    *("libtext-glob-perl", "lsb-base", "passwd", "perl", "perl-base", "perl-modules-5.36"),
    *("sysvinit-utils", "ucf", "usrmerge"),
)
# What the tests need beside what the project needs.
TEST_REQUIREMENTS = ("hypothesis", "pytest", "pytest-asyncio", "pytest-timeout", "unicorn")
COMMANDS = {
    "uftrace-agent": "from uftrace_agent.cli import main",
    "uftrace-remote": "from uftrace_remote.cli.main import main",
}
USELESS = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info")


@dataclass(frozen=True, slots=True)
class Image:
    """What a virtual machine boots.

    Attributes:
        folder: Where it is; snapshots of the booted machine are kept there too.
    """

    folder: Path

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initramfs(self) -> Path:
        return self.folder / "initrd.img"

    @property
    def root(self) -> Path:
        return self.folder / "root.ext4"


def image() -> Image:
    """Return the image, built when there is none of what the sources say now.

    Raises:
        RuntimeError: A package or a wheel could not be had.
        subprocess.CalledProcessError: A tool failed.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = CACHE / f"image-{_digest()}"
    with (CACHE / "image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            print("arm: making the guest's image (once; a minute or two)", file=sys.stderr)
            with tempfile.TemporaryDirectory(prefix="making-", dir=CACHE) as scratch:
                finished = Path(scratch, "image")
                finished.mkdir()
                _make(Path(scratch), Image(finished))
                for old in CACHE.glob("image-*"):
                    shutil.rmtree(old)
                finished.rename(folder)
    return Image(folder)


def _digest() -> str:
    digest = hashlib.sha256(repr(requirements(*TEST_REQUIREMENTS)).encode())
    for path in (Path(__file__), *sorted(GUEST.iterdir())):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _make(scratch: Path, made: Image) -> None:
    kernel, root = scratch / "kernel", scratch / "root"
    unpack(download([newest_kernel(KERNEL)]), kernel)
    shutil.copy(next(kernel.glob("boot/vmlinuz-*")), made.kernel)
    _make_initramfs(scratch / "initramfs", kernel, made.initramfs)

    unpack(download(PACKAGES, with_dependencies=True, leave_out=LEFT_OUT), root)
    for useless in USELESS:
        shutil.rmtree(root / useless, ignore_errors=True)
    install(root / SITE, *TEST_REQUIREMENTS)
    _furnish(root)
    _compile(root, f"usr/lib/python{PYTHON}", SITE)
    _make_file_system(root, made.root)


def _make_initramfs(folder: Path, kernel: Path, out: Path) -> None:
    unpack(download(["busybox-static"]), folder)
    (folder / "modules").mkdir()
    modules = _with_dependencies(kernel)
    for module in modules:
        shutil.copy(module, folder / "modules")
    (folder / "modules/order").write_text("".join(f"{module.name}\n" for module in modules))
    shutil.copy(GUEST / "init", folder / "init")
    (folder / "init").chmod(0o755)
    # Not compressed: that takes an emulated processor longer than to read it.
    listing = subprocess.run(["find", "."], cwd=folder, stdout=subprocess.PIPE, check=True).stdout
    with out.open("wb") as stream:
        command = ["cpio", "--create", "--format=newc", "--quiet"]
        subprocess.run(command, cwd=folder, input=listing, stdout=stream, check=True)


# A module names in its section .modinfo what it needs, so no depmod is needed.
def _with_dependencies(kernel: Path) -> list[Path]:
    known = {path.stem.replace("-", "_"): path for path in kernel.glob("lib/modules/**/*.ko")}
    order: list[Path] = []

    def add(name: str) -> None:
        path = known[name]
        depends = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
        for needed in depends[1].decode().split(",") if depends and depends[1] else ():
            add(needed.replace("-", "_"))
        if path not in order:
            order.append(path)

    for name in MODULES:
        add(name)
    return order


def _furnish(root: Path) -> None:
    for folder in ("checkout", "dev", "home", "opt", "proc", "root", "run", "sys", "tmp"):
        (root / folder).mkdir(exist_ok=True)
    shutil.copytree(GUEST, root / "opt/guest")
    (root / "opt/guest/start").chmod(0o755)
    etc = root / "etc"
    # What the packages' scripts would have done.
    shutil.copy(root / "usr/share/base-passwd/passwd.master", etc / "passwd")
    shutil.copy(root / "usr/share/base-passwd/group.master", etc / "group")
    (root / "usr/bin/awk").symlink_to("mawk")
    (root / "usr/bin/sh").unlink(missing_ok=True)
    (root / "usr/bin/sh").symlink_to("dash")
    (etc / "hosts").write_text("127.0.0.1 localhost guest\n")
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    # An editable install of the checkout, which comes later.
    parts = ("server", "client", "proto")
    (root / SITE / "checkout.pth").write_text("".join(f"/checkout/{part}\n" for part in parts))
    for name, line in COMMANDS.items():
        script = root / "usr/local/bin" / name
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(f"#!/usr/bin/python3\n{line}\n\nmain()\n")
        script.chmod(0o755)


# Python in the emulator needs minutes for that. Byte code is the same on every architecture,
# but not in every version.
def _compile(root: Path, *folders: str) -> None:
    if f"{sys.version_info.major}.{sys.version_info.minor}" != PYTHON:
        print(f"arm: this is not Python {PYTHON}: imports in the guest will be slow")
        return
    for folder in folders:
        compileall.compile_dir(
            root / folder,
            stripdir=str(root / folder),
            prependdir=f"/{folder}",
            quiet=2,
            workers=os.cpu_count() or 1,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )


def _make_file_system(root: Path, out: Path) -> None:
    du = subprocess.run(["du", "-sm", root], stdout=subprocess.PIPE, text=True, check=True)
    megabytes = int(du.stdout.split()[0]) * 115 // 100 + 32
    options = ("-t", "ext4", "-O", "^has_journal", "-E", "root_owner=0:0", "-m", "0")
    command = ["mke2fs", "-qq", *options, "-d", str(root), str(out), f"{megabytes}M"]
    # Not in the search path of those who are not root.
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    subprocess.run(command, env={**os.environ, "PATH": path}, check=True)
