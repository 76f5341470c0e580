"""A data loader that can be stopped in the middle of an epoch and started again where it was.

(seed, epoch) -> order of (epoch, row, patch) -> this rank's share -> batches, counted
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from cyto_dl.errors import CytoDLError

logger = logging.getLogger(__name__)


def rank_and_world_size() -> tuple[int, int]:
    """Which of how many processes of a distributed training this is; (0, 1) without one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class PatchSampler(Sampler[tuple[int, int, int]]):
    """All patches of an epoch as (epoch, row, patch), in an order that depends on (seed, epoch) alone.

    In a distributed training each rank gets every n-th; the first patches of the order fill up the last round.
    """

    def __init__(self, num_rows: int, patches_per_image: int, *, seed: int) -> None:
        self.num_rows = num_rows
        self.patches_per_image = patches_per_image
        self.seed = seed
        self.epoch = 0
        self.rank, self.world_size = rank_and_world_size()
        self._skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = epoch

    def skip_once(self, num_patches: int) -> None:
        """The next iteration begins after this many patches of this rank."""
        self._skip = num_patches

    def __len__(self) -> int:
        return -(-self.num_rows * self.patches_per_image // self.world_size)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        epoch, skip, self._skip = self.epoch, self._skip, 0
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_rows * self.patches_per_image)
        order = np.resize(order, len(self) * self.world_size)[self.rank :: self.world_size]
        for number in order[skip:].tolist():
            yield (epoch, *divmod(number, self.patches_per_image))


class RowSampler(Sampler[int]):
    """All rows in order; in a distributed run each rank gets every n-th, so that each row is seen exactly once.

    With fewer rows than ranks every rank gets all of them: a rank without any would not take part in the average.
    """

    def __init__(self, num_rows: int) -> None:
        rank, world_size = rank_and_world_size()
        self.rows = range(rank, num_rows, world_size) if num_rows >= world_size else range(num_rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows)


class ImageLoader(DataLoader):
    """A DataLoader through which our errors come as they were raised, without the traceback of a worker process."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator is lazy, torch's iterator is not
        try:
            yield from super().__iter__()
        except CytoDLError as error:
            kind = type(error)
            message = str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2]
            raise kind(message.rstrip()) from error


class ResumableLoader(ImageLoader):
    """A DataLoader over a `PatchSampler` whose position in the epoch is in the checkpoint (a stateful loader).

    Lightning makes the first iterator before it says which epoch it is, so nothing is read before the first batch is
    asked for.
    """

    # How many of the batches handed out were not trained on yet. The checkpoint of a crash is written between the
    # fetching of a batch and its optimizer step; that batch must come again.
    num_unfinished: Callable[[], int] = staticmethod(lambda: 0)
    _epoch = 0
    _num_handed_out = 0
    _loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The epoch, how many of its batches were trained on, and what these batches are made of."""
        if self._loaded is not None:
            return dict(self._loaded)
        return {"epoch": self._epoch, "batches": self._num_handed_out - self.num_unfinished(), **self._recipe()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The next iteration goes on after the batches that `state_dict` counts, if it is of the same epoch."""
        self._loaded = dict(state_dict)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator, as in ImageLoader
        if isinstance(self.sampler, PatchSampler):  # Lightning's overfit_batches puts in another
            self._epoch = self.sampler.epoch
            self._num_handed_out = self._num_done(self._epoch)
            self.sampler.skip_once(self._num_handed_out * (self.batch_size or 1))
        for batch in super().__iter__():
            self._num_handed_out += 1
            yield batch

    def _num_done(self, epoch: int) -> int:
        """How many batches of this epoch the loaded state says were trained on."""
        loaded, self._loaded = self._loaded, None
        if loaded is None or loaded["epoch"] != epoch:
            return 0
        if changed := [name for name, value in self._recipe().items() if loaded.get(name) != value]:
            logger.warning(
                "epoch %d starts from its beginning: %s changed since the checkpoint, so its batches are others",
                epoch,
                ", ".join(changed),
            )
            return 0
        return int(loaded["batches"])

    def _recipe(self) -> dict[str, Any]:
        if not isinstance(self.sampler, PatchSampler):
            return {}
        sampler = self.sampler
        num_patches = sampler.num_rows * sampler.patches_per_image
        return {
            "num_patches": num_patches,
            "batch_size": self.batch_size,
            "seed": sampler.seed,
            "ranks": sampler.world_size,
        }
