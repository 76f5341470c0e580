"""CytoDL: from a table of microscope images to a trusted prediction service."""

import os

__version__ = "0.1.0"

# Read when torch is loaded. Without it OpenMP's threads spin while they wait for each other, and on a machine that
# others use too a training step costs twice the CPU time (docs/lab-notebook.md, 2026-11-22).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
