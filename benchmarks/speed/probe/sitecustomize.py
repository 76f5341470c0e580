"""Python runs this file first in every process of the measured pipeline: what a process costs, and what it has loaded.

Each process writes <CYTO_DL_PROBE>/<number>.json when it ends: what it ran, its CPU seconds until it first imported
something of ours, its CPU seconds in all, and its modules.
"""

import atexit
import json
import os
import sys
import time
from pathlib import Path

OURS = ("cyto_dl", "pipelines")  # what comes before is Python's and the orchestrator's
LIBRARIES = ("boto3", "kfp", "kubernetes", "lightning", "matplotlib", "mlflow", "monai", "pandas", "scipy", "torch")


class _FirstImport:
    """Sees every import before it is done, and finds nothing."""

    start: float | None = None

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if self.start is None and name in OURS:
            self.start = time.process_time()


def _write(folder: str, first: _FirstImport) -> None:
    words = sys.orig_argv
    step = words[words.index("--function_to_execute") + 1] if "--function_to_execute" in words else None
    found = {
        "step": step,
        "module": words[words.index("-m") + 1] if "-m" in words else None,
        "start_cpu_seconds": first.start,
        "cpu_seconds": time.process_time(),
        "libraries": sorted(set(LIBRARIES) & set(sys.modules)),
    }
    Path(folder, f"{os.getpid()}-{time.time_ns()}.json").write_text(json.dumps(found))


if "CYTO_DL_PROBE" in os.environ:
    _first = _FirstImport()
    sys.meta_path.insert(0, _first)
    atexit.register(_write, os.environ["CYTO_DL_PROBE"], _first)
