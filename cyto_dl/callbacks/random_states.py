"""Make the random numbers of training steps independent of everything else, and resumable."""

import random
from collections.abc import Mapping
from typing import Any

import lightning
import numpy as np
import torch


class RandomStates(lightning.Callback):
    """Every training step begins with the random states in which the step before it ended.

    Whatever draws random numbers in between (validation, making a DataLoader's iterator, a resume) leaves them as
    they are; that is why a resumed run draws the same dropout masks as an uninterrupted one. The states of
    python, numpy, torch and CUDA are in the checkpoint as plain containers and tensors.

    With several processes the checkpoint holds those of the first, which all of them continue with: Lightning seeds
    all alike too.
    """

    def __init__(self) -> None:
        self.states: dict[str, Any] = {}

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Take up where the last step ended."""
        if self.states:
            restore_random_states(self.states)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Remember where this step ended."""
        self.states = capture_random_states()

    def state_dict(self) -> dict[str, Any]:
        """The states after the last training step; empty before the first."""
        return self.states

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the states of a checkpoint."""
        self.states = state_dict
        if self.states:  # at once too: a user's transforms may draw before the first step begins
            restore_random_states(self.states)


def capture_random_states() -> dict[str, Any]:
    """The states of python's, numpy's, torch's and CUDA's global generators, as plain containers and tensors."""
    version, internal, next_gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    return {
        "python": [version, list(internal), next_gauss],
        "numpy": {
            "bit_generator": numpy_state["bit_generator"],
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Set the global generators to `states`; CUDA's where there are as many devices as when they were captured."""
    version, internal, next_gauss = states["python"]
    random.setstate((version, tuple(internal), next_gauss))
    numpy_state = states["numpy"]
    np.random.set_state(
        {
            "bit_generator": numpy_state["bit_generator"],
            "state": {"key": numpy_state["key"].numpy().astype(np.uint32), "pos": numpy_state["pos"]},
            "has_gauss": numpy_state["has_gauss"],
            "gauss": numpy_state["gauss"],
        }
    )
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
