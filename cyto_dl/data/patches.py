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
from cyto_dl.data.transforms import Transform, run_transforms
from cyto_dl.errors import ConfigError, ImageError

Item = dict[str, Any]
Index = tuple[int, int, int]
Encoder = Callable[[torch.Tensor, tuple[float, ...] | None], torch.Tensor]  # target C(Z)YX, pixel size -> C'(Z)YX

# Foreground is looked for at this many random voxels before the whole image is searched: where at least 1 % is
# foreground, the search is needed in less than one of 10^4 patches, and a patch costs no pass over the volume.
NUM_PROBES = 1024


class WholeImages(Dataset[Item]):
    """Whole images without augmentation: what validation, test and prediction see."""

    def __init__(self, samples: CachedDataset) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        return as_item(checked_sample(self.samples, index))


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
        self.augment = tuple(augment)
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
        sample = checked_sample(self.samples, index[1])
        if self.patch_shape is not None:
            sample = self._crop(sample, generator)
        with seeded(self.augment, int(generator.integers(2**32))):
            augmented = run_transforms(self.augment, dict(sample.tensors), path=sample.path)
        if isinstance(augmented, list):  # a transform that makes several samples of one
            return [self._encoded(sample._replace(tensors=plain_tensors(one)), index[1]) for one in augmented]
        return self._encoded(sample._replace(tensors=plain_tensors(augmented)), index[1])

    def _encoded(self, sample: Sample, row: int) -> Item:
        """The item of a batch, with what the encoders make of its targets."""
        tensors = dict(sample.tensors)
        for key, encode in self.encoders.items():
            if key not in tensors:
                continue
            try:
                tensors[key] = encode(tensors[key], sample.spacing_um)
            except ValueError as error:
                name = self.samples.name(row, key)
                raise ImageError(f"{name}: the target '{key}' cannot be encoded for its head: {error}") from error
        return as_item(sample._replace(tensors=tensors))

    def _crop(self, sample: Sample, generator: np.random.Generator) -> Sample:
        shape = tuple(sample.tensors[self.samples.source_key].shape[1:])
        if not fits(self.patch_shape or (), shape):
            raise ConfigError(patch_too_large(sample.path, shape, self.patch_shape or ()))
        origin = self._origin(sample, shape, generator)
        box = [slice(start, start + size) for start, size in zip(origin, self.patch_shape or (), strict=True)]
        patches = {}
        for key, tensor in sample.tensors.items():  # a target may lack the leading axes: a stack's projection
            inside: tuple[Any, ...] = (..., *box[len(shape) - tensor.ndim + 1 :])
            patches[key] = tensor[inside].clone()  # a slice would keep the file mapped
        return sample._replace(tensors=patches)

    def _origin(self, sample: Sample, shape: tuple[int, ...], generator: np.random.Generator) -> list[int]:
        """The first voxel of a patch: every position at which the patch fits is equally likely, or near foreground."""
        room = [size - patch for size, patch in zip(shape, self.patch_shape or (), strict=True)]
        origin = [int(generator.integers(most + 1)) for most in room]
        if self.foreground_key is None or generator.random() >= self.foreground_fraction:
            return origin
        voxel = random_foreground_voxel(sample.tensors[self.foreground_key], generator)
        if voxel is None:
            return origin
        missing = len(shape) - len(voxel)
        centred = [
            min(max(centre - patch // 2, 0), most)
            for centre, patch, most in zip(voxel, (self.patch_shape or ())[missing:], room[missing:], strict=True)
        ]
        return origin[:missing] + centred


def checked_sample(samples: CachedDataset, index: int) -> Sample:
    """The sample of a row, whose targets cover the same voxels as the source; they may lack its leading axes.

    Raises:
        ImageError: A target has another size than its source.
    """
    sample = samples[index]
    shape = tuple(sample.tensors[samples.source_key].shape[1:])
    for key, tensor in sample.tensors.items():
        if tuple(tensor.shape[1:]) != shape[len(shape) - tensor.ndim + 1 :]:
            target = samples.data[index].get(key)
            raise ImageError(
                f"{sample.path}: '{samples.source_key}' has the size {shape}, but its '{key}' "
                f"({target if isinstance(target, str) else 'an array'}) has {tuple(tensor.shape[1:])}. They must cover "
                "the same voxels; a target may lack the leading axes."
            )
    return sample


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
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    for offset, transform in enumerate(transforms):
        if isinstance(transform, Randomizable):
            transform.set_random_state(seed=(seed + offset) % 2**32)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
