"""Where a result comes from: the machine, the versions and the commit, for every record."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


def processor() -> str:
    """What the processor calls itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def circumstances(device: str) -> dict[str, Any]:
    """What a record says of the machine and the libraries."""
    return {
        "hardware": {
            "device": device,
            "processor": processor(),
            "threads": torch.get_num_threads(),
        },
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def device_name(device: str) -> str:
    """What a device is: a GPU's product name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


@functools.cache
def version() -> str | None:
    """The installed package's; None where it is not installed."""
    try:
        return importlib.metadata.version("unbackdoor")
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def commit() -> str | None:
    """Of the checkout that this runs from, with a + where it has changes; None outside one."""
    where = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=where, capture_output=True, text=True, timeout=10)
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--", "."], cwd=where, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
