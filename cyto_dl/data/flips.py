"""Mirror a patch: what most microscope images have no preferred side for."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable


class RandFlipsd(MapTransform, Randomizable):
    """Mirrors all images of a patch along each of several axes with a probability, the same axes for every image.

    It does what one `monai.transforms.RandFlipd` per axis does to pixels and nothing to metadata, which a training
    patch has none of: those took most of the processor time that a patch costs (docs/lab-notebook.md).
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        spatial_axes: Sequence[int] = (-1, -2),
        prob: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        """Make the transform.

        Args:
            keys: The keys of tensors C(Z)YX.
            spatial_axes: Counted from the last: -1 is X, -2 is Y, -3 is Z.
            prob: Of each axis, independently of the others.
            allow_missing_keys: Leave out keys that an item does not have.
        """
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.spatial_axes = tuple(spatial_axes)
        self.prob = prob
        self._mirrored: tuple[int, ...] = ()

    def randomize(self, data: Any = None) -> None:
        """Draw the axes along which the next item is mirrored."""
        self._mirrored = tuple(axis for axis in self.spatial_axes if self.R.random() < self.prob)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The item with its images mirrored."""
        self.randomize()
        item = dict(data)
        for key in self.key_iterator(item):  # type: ignore[arg-type]  # MONAI's keys are any hashable, ours are words
            item[key] = torch.flip(item[key], self._mirrored)
        return item
