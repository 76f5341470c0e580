"""Where and with what a benchmark ran, and its figures, as JSON:  write_result(path, figures)"""

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cyto_dl.bundle.provenance import git_commit
from cyto_dl.storage import atomic_path

_PACKAGES = ("torch", "monai", "lightning", "numpy", "scikit-image", "scipy", "connected-components-3d", "edt")


def write_result(path: Path, figures: Mapping[str, Any]) -> None:
    """Write the figures beside the date, the commit, the device and the versions that they were measured with."""
    result = {
        **figures,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "git_commit": git_commit(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_model(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")


def cpu_model() -> str:
    """What the processor calls itself."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
