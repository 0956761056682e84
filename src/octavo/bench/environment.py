"""What a figure was measured on; without it the figure means nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.version import __version__

if TYPE_CHECKING:
    from octavo.engine import Engine


def describe_environment(engine: Engine) -> dict[str, Any]:
    """Model, device, dtype, versions, commit and date, as plain values."""
    import torch

    config, ledger = engine.config, engine.ledger
    return {
        "model": config.model,
        "device": config.device,
        **_gpu(config.device),
        "threads": torch.get_num_threads(),
        "dtype": _dtype(engine),
        "kv_cache_tokens": ledger.kv_tokens,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "torch": str(torch.__version__),
        **describe_machine(),
    }


def describe_machine() -> dict[str, Any]:
    """What holds for this process whatever it measures. Needs no torch."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "octavo": __version__,
        "commit": commit(Path(__file__)),
        "python": platform.python_version(),
        "system": platform.platform(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _gpu(device: str) -> dict[str, str]:
    """The GPU's name, if it is one."""
    import torch

    return {"gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {}


def _dtype(engine: Engine) -> str:
    import torch

    from octavo.execution.build import choose_dtype

    return choose_dtype(engine.config.dtype, engine.model_config.dtype, torch.device(engine.config.device))


def processor_name() -> str:
    """The processor's name as Linux tells it, or what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit(file: Path) -> str | None:
    """The git commit that ``file`` belongs to, with "-dirty" if its tree has changes; None if it is in none."""
    folder = file.parent
    if _git(folder, "ls-files", "--error-unmatch", file.name) is None:
        return None  # installed into some environment that happens to lie in a tree
    head = _git(folder, "rev-parse", "HEAD")
    return head and head + ("-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None if it fails or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
