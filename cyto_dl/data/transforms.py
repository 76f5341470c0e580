"""From files to tensors: `ReadImaged`, and running a list of transforms with errors that name the file."""

import copy
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from cyto_dl.data.check import not_finite
from cyto_dl.data.contrast import warn_of_flat_images
from cyto_dl.data.image import Image, read_image, select_array, wrong_num_channels
from cyto_dl.errors import CytoDLError, ImageError

Transform = Callable[[Any], Any]

EXACT = 2**24  # the whole numbers up to here are float32 numbers


class ReadImaged(MapTransform):
    """Read the images that a row names: path or array -> float32 tensor C(Z)YX that knows its pixel size.

    Args:
        keys: The keys of the row to read.
        spatial_dims: 2 for CYX, 3 for CZYX.
        channels: Which channels, counted from 0, in which order; None for all.
        z: Which plane of a stack, when spatial_dims is 2.
        scene: Number or name of one of several images in a file.
        timepoint: Which one of a time series.
        num_channels: How many channels there must be, after the selection; None for any number.
        allow_missing_keys: Skip keys that the row does not have.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_dims: int,
        channels: int | Sequence[int] | None = None,
        z: int | None = None,
        scene: int | str | None = None,
        timepoint: int | None = None,
        num_channels: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spatial_dims = spatial_dims
        self.channels = channels
        self.z = z
        self.scene = scene
        self.timepoint = timepoint
        self.num_channels = num_channels

    @property
    def selection(self) -> dict[str, Any]:
        """How the images are read: the arguments of `read_image`, and num_channels."""
        names = ("spatial_dims", "channels", "z", "scene", "timepoint", "num_channels")
        return {name: getattr(self, name) for name in names}

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        item = dict(data)
        for key in self.key_iterator(item):  # type: ignore[arg-type]  # MONAI's keys are any hashable, ours are words
            image = self._read(item[key], f"{item.get('row', 'array')} '{key}'")
            if self.num_channels not in (None, len(image.array)):
                raise ImageError(wrong_num_channels(image.path, str(key), len(image.array), self.num_channels))
            _check_exact(image, str(key))
            _check_finite(image, str(key))
            item[key] = as_meta_tensor(image)
        return item

    def _read(self, value: Any, name: str) -> Image:
        selection: dict[str, Any] = {"spatial_dims": self.spatial_dims, "channels": self.channels, "z": self.z}
        if isinstance(value, str | PathLike):
            return read_image(value, **selection, scene=self.scene, timepoint=self.timepoint)
        if isinstance(value, np.ndarray | torch.Tensor):
            return select_array(np.asarray(value), name=name, **selection)
        raise ImageError(f"{name}: an image is a path or an array, but this is a {type(value).__name__}.")


def _check_exact(image: Image, key: str) -> None:
    """Refuse whole numbers that float32 would round: two labels would become one."""
    array = image.array
    is_large = array.dtype.kind in "iu" and not -EXACT <= array.min() <= array.max() <= EXACT
    if is_large and (array.astype(np.float32) != array).any():
        raise ImageError(
            f"{image.path}: '{key}' has whole numbers up to {array.max()}, but above {EXACT} float32 cannot tell them "
            "apart. Number labels from 1 on (skimage.segmentation.relabel_sequential), or divide intensities."
        )


def _check_finite(image: Image, key: str) -> None:
    """Refuse NaN and infinity, which a threshold or a clipping afterwards would hide: NaN becomes background."""
    num_bad = image.array.size - int(np.count_nonzero(np.isfinite(image.array)))
    if num_bad:
        raise ImageError(not_finite(image.path, key, num_bad, image.array.size))


def as_meta_tensor(image: Image) -> MetaTensor:
    """An image as MONAI's transforms want it: float32 C(Z)YX, the pixel size (1 where unknown) in the affine."""
    affine = np.eye(4)
    if image.spacing_um is not None:
        affine[range(len(image.spacing_um)), range(len(image.spacing_um))] = image.spacing_um
    pixels = torch.from_numpy(image.array.astype(np.float32))
    meta = {"path": image.path, "spacing_um": image.spacing_um}
    return MetaTensor(pixels, affine=torch.from_numpy(affine), meta=meta)


def run_transforms(transforms: Sequence[Transform], item: Any, *, path: str) -> Any:
    """The item after all transforms, in order; a list of items, after a transform that makes several of one.

    Raises:
        CytoDLError: As a transform raised it, also from inside MONAI's wrappers.
        ImageError: A transform failed otherwise; the message names the file and the transform.
    """
    for transform in transforms:
        warn_of_flat_images(transform, item, path=path)
        try:
            item = [transform(one) for one in item] if isinstance(item, list) else transform(item)
        except Exception as error:  # transforms are anybody's code: what they raise gets the file's name
            cause = root_cause(error)
            if isinstance(cause, CytoDLError):
                raise cause from error
            name = getattr(transform, "__name__", type(transform).__name__)
            raise ImageError(
                f"{path}: the transform {name} failed ({type(cause).__name__}: {cause}). "
                "Check its arguments in data.transforms against this image."
            ) from error
    return item


def root_cause(error: BaseException) -> BaseException:
    """What went wrong inside MONAI's 'applying transform ...'."""
    while error.__cause__ is not None and str(error).startswith("applying transform"):
        error = error.__cause__
    return error


def allowing_missing_keys(transform: Transform) -> Transform:
    """A copy of a dictionary transform that skips keys that are not there."""
    lenient = copy.copy(transform)
    lenient.allow_missing_keys = True  # type: ignore[attr-defined]  # the caller checked that it has this attribute
    return lenient
