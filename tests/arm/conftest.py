"""What is collected here: tests that run code of AArch64 itself are for the guest alone."""

from __future__ import annotations

import platform

collect_ignore = [] if platform.machine() == "aarch64" else ["test_relocation_native.py"]
