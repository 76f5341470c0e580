"""Random training patches, each of which is a pure function of (seed, epoch, row, patch number).

(epoch, row, patch) -> sample -> one random box in all its tensors -> augment -> encode -> item of a batch
"""

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable
from torch.utils.data import Dataset

from cyto_dl.data.cache import CachedDataset, Sample, plain_tensors
from cyto_dl.data.check import fits, patch_too_large
from cyto_dl.data.scale import (
    Scale,
    common_steps,
    no_scale,
    off_the_grid,
    scale_of,
    source_voxel,
    target_box,
    target_spacing,
)
from cyto_dl.data.stages import for_missing
from cyto_dl.data.transforms import Transform, run_transforms
from cyto_dl.errors import ConfigError, ImageError

Item = dict[str, Any]
Index = tuple[int, int, int]
Encoder = Callable[[torch.Tensor, tuple[float, ...] | None], torch.Tensor]  # target C(Z)YX, pixel size -> C'(Z)YX

# Foreground is looked for at this many random voxels before the whole image is searched: where at least 1 % is
# foreground, the search is needed in less than one of 10^4 patches, and a patch costs no pass over the volume.
NUM_PROBES = 1024


class WholeImages(Dataset[Item]):
    """Whole images: what validation, test and prediction see.

    Args:
        samples: The images.
        augment: Random transforms that validation cannot do without; each row has always the same randomness.
    """

    def __init__(self, samples: CachedDataset, *, augment: Sequence[Transform] = ()) -> None:
        self.samples = samples
        self.augment = tuple(augment)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        sample = checked_sample(self.samples, index)[0]
        if not self.augment:
            return as_item(sample)
        with seeded(self.augment, index):
            augmented = run_transforms(self.augment, dict(own_tensors(sample).tensors), path=sample.path)
        return as_item(sample._replace(tensors=plain_tensors(augmented)))


class PatchDataset(Dataset[Item | list[Item]]):
    """Random, augmented patches of the images of `samples`.

    Args:
        samples: The images.
        augment: Random transforms, applied to each patch.
        encoders: What makes of an augmented target, and its pixel size in µm, the one that a network learns.
        patch_shape: (Z)YX; None for whole images.
        patches_per_image: How many patches an epoch takes of each image.
        foreground_key: The key whose non-zero voxels are the foreground.
        foreground_fraction: The fraction of patches that are centred on a random foreground voxel.
        seed: Other seeds give other patches.
    """

    def __init__(
        self,
        samples: CachedDataset,
        *,
        augment: Sequence[Transform] = (),
        encoders: Mapping[str, Encoder] | None = None,
        patch_shape: Sequence[int] | None = None,
        patches_per_image: int = 1,
        foreground_key: str | None = None,
        foreground_fraction: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.samples = samples
        self._augment = {missing: for_missing(augment, missing) for missing in samples.missing}
        self.encoders = dict(encoders or {})
        self.patch_shape = None if patch_shape is None else tuple(patch_shape)
        self.patches_per_image = patches_per_image
        self.foreground_key = foreground_key
        self.foreground_fraction = foreground_fraction
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples) * self.patches_per_image

    def __getitem__(self, index: Index | int) -> Item | list[Item]:
        """The patch of (epoch, row, patch number); a plain number counts through the patches of epoch 0."""
        if isinstance(index, int):  # Lightning's overfit_batches puts in a sampler of plain numbers
            index = (0, *divmod(index, self.patches_per_image))
        generator = np.random.default_rng([self.seed, *index])
        sample, scales = checked_sample(self.samples, index[1])
        sample = own_tensors(sample) if self.patch_shape is None else self._crop(sample, scales, generator)
        augment = self._augment[self.samples.missing[index[1]]]
        with seeded(augment, int(generator.integers(2**32))):
            augmented = run_transforms(augment, dict(sample.tensors), path=sample.path)
        items = [
            sample._replace(tensors=plain_tensors(one))
            for one in (augmented if isinstance(augmented, list) else [augmented])
        ]
        for item in items:
            self._check_scales(item, scales)
        encoded = [self._encoded(item, index[1]) for item in items]
        return encoded if isinstance(augmented, list) else encoded[0]  # several, if a transform makes several of one

    def _check_scales(self, item: Sample, before: Mapping[str, Scale]) -> None:
        """Refuse augmentations that treat a source and its target of other size alike, voxel by voxel."""
        source_key = self.samples.source_key
        for key in before.keys() & item.tensors.keys():
            if set(before[key]) != {1} and _scale(item, source_key, key) != before[key]:
                raise ConfigError(
                    f"{item.path}: data.transforms.augment changes how many voxels '{key}' has per voxel of "
                    f"'{source_key}', so that they no longer show the same place. Where sizes differ, use flips, and "
                    "rotations by right angles in a plane in which patch_shape has equal sides."
                )

    def _encoded(self, sample: Sample, row: int) -> Item:
        """The item of a batch, with what the encoders make of its targets."""
        tensors = dict(sample.tensors)
        for key, encode in self.encoders.items():
            if key not in tensors:
                continue
            scale = _scale(sample, self.samples.source_key, key)
            try:
                tensors[key] = encode(tensors[key], target_spacing(sample.spacing_um, scale))
            except ValueError as error:
                name = self.samples.name(row, key)
                raise ImageError(f"{name}: the target '{key}' cannot be encoded for its head: {error}") from error
        return as_item(sample._replace(tensors=tensors))

    def _crop(self, sample: Sample, scales: Mapping[str, Scale], generator: np.random.Generator) -> Sample:
        shape, patch = tuple(sample.tensors[self.samples.source_key].shape[1:]), self.patch_shape or ()
        if not fits(patch, shape):
            raise ConfigError(patch_too_large(sample.path, shape, patch))
        steps = common_steps(len(shape), scales.values())
        if any(size % step for size, step in zip(patch, steps, strict=True)):
            raise ConfigError(off_the_grid(sample.path, patch, steps))
        origin = self._origin(sample, scales, steps, generator)
        box = [slice(start, start + size) for start, size in zip(origin, patch, strict=True)]
        patches = {}
        for key, tensor in sample.tensors.items():
            inside: tuple[Any, ...] = (..., *target_box(box, scales[key]))
            patches[key] = tensor[inside].clone()  # a slice would keep the file mapped
        return sample._replace(tensors=patches)

    def _origin(
        self, sample: Sample, scales: Mapping[str, Scale], steps: tuple[int, ...], generator: np.random.Generator
    ) -> list[int]:
        """The first voxel of a patch: anywhere on the common grid with equal probability, or near foreground."""
        shape = sample.tensors[self.samples.source_key].shape[1:]
        patch = [size // step for size, step in zip(self.patch_shape or (), steps, strict=True)]  # in steps
        room = [size // step - length for size, step, length in zip(shape, steps, patch, strict=True)]
        origin = [int(generator.integers(most + 1)) for most in room]
        key = self.foreground_key
        if key in sample.tensors and generator.random() < self.foreground_fraction:
            voxel = random_foreground_voxel(sample.tensors[key], generator)
            for axis, centre in enumerate(source_voxel(voxel, scales[key]) if voxel else (), start=-len(voxel or ())):
                origin[axis] = min(max(centre // steps[axis] - patch[axis] // 2, 0), room[axis])
        return [start * step for start, step in zip(origin, steps, strict=True)]


def own_tensors(sample: Sample) -> Sample:
    """A copy that a transform may write into: the cache's tensors are shared by all who read the image."""
    return sample._replace(tensors={key: tensor.clone() for key, tensor in sample.tensors.items()})


def checked_sample(samples: CachedDataset, index: int) -> tuple[Sample, dict[str, Scale]]:
    """The sample of a row, and how many voxels of each of its images lie along one of the source.

    Raises:
        ImageError: A target's size does not go with its source's.
    """
    sample = samples[index]
    source_key, scales = samples.source_key, {}
    for key, tensor in sample.tensors.items():
        scale = _scale(sample, source_key, key)
        if scale is None:
            shapes = {"shape": sample.tensors[source_key].shape[1:], "found": tensor.shape[1:]}
            raise ImageError(no_scale(source_key, sample.path, key=key, target=samples.name(index, key), **shapes))
        scales[key] = scale
    return sample, scales


def _scale(sample: Sample, source_key: str, key: str) -> Scale | None:
    shape, target_shape = (tuple(sample.tensors[which].shape[1:]) for which in (source_key, key))
    return scale_of(shape, target_shape)


def random_foreground_voxel(target: torch.Tensor, generator: np.random.Generator) -> list[int] | None:
    """A voxel (Z)YX at which any channel is not zero, each equally likely; None if there is none."""
    probes = [torch.from_numpy(generator.integers(size, size=NUM_PROBES)) for size in target.shape[1:]]
    probed: tuple[Any, ...] = (slice(None), *probes)
    hits = target[probed].ne(0).any(0).nonzero()
    if len(hits):
        return [int(probe[hits[0, 0]]) for probe in probes]
    voxels = target.ne(0).any(0).nonzero()
    return voxels[int(generator.integers(len(voxels)))].tolist() if len(voxels) else None


def as_item(sample: Sample) -> Item:
    """A sample as the item of a batch."""
    return {**sample.tensors, "path": sample.path, "spacing_um": sample.spacing_um}


@contextlib.contextmanager
def seeded(transforms: Sequence[Transform], seed: int) -> Iterator[None]:
    """Inside, all randomness of the transforms comes from `seed`; afterwards the global generators are as before."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    state = np.random.RandomState(seed)  # one for all: seeding one costs as much as flipping a patch
    np.random.set_state(state.get_state())
    for transform in transforms:
        if isinstance(transform, Randomizable):
            transform.set_random_state(state=state)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
