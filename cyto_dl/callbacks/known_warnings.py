"""Warnings of libraries that a user can do nothing about, each by its module and its words."""

import warnings

_KNOWN = [
    # Lightning 2.6 uses what torch 2.13 deprecates; its next release will not.
    (FutureWarning, r"lightning\.pytorch\.utilities\._pytree", r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    # Losses and metrics are logged once an epoch, so that no interval of steps is too long.
    (UserWarning, r"lightning\.pytorch\.loops\.fit_loop", r"The number of training batches \(\d+\) is smaller than"),
    # A run's folder is meant to be gone on with, and the log says so.
    (
        UserWarning,
        r"lightning\.pytorch\.callbacks\.model_checkpoint",
        r"Checkpoint directory .* exists and is not",
    ),
]


def ignore_known_warnings() -> None:
    """Show these no more in this process; every other warning is."""
    for category, module, message in _KNOWN:
        warnings.filterwarnings("ignore", message=message, category=category, module=module)
