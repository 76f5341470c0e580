"""Check the images of a manifest from their headers, before anything is trained: every problem as one sentence."""

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from cyto_dl.data.image import ImageInfo, describe_array, describe_image, select_array, wrong_num_channels
from cyto_dl.data.manifest import ROW, Row
from cyto_dl.data.scale import Scale, common_steps, no_scale, off_the_grid, other_scale, scale_of
from cyto_dl.errors import ImageError

Read = Mapping[str, Any]  # keyword arguments of read_image, and num_channels


@dataclass(frozen=True)
class Described:
    """One image of a manifest: its row, key, file and header."""

    where: str
    key: str
    path: str
    info: ImageInfo


def describe_rows(rows: Sequence[Row], reads: Mapping[str, Read]) -> tuple[list[list[Described]], list[str]]:
    """The headers of the images of every row, and what is wrong with each image alone.

    Args:
        rows: As `read_manifest` returns them.
        reads: How each key is read: the keyword arguments of `read_image`, and `num_channels` if it is known.

    Returns:
        Per row the images that can be read; the problems of the others.
    """
    described, problems = [], []
    for row in rows:
        images = []
        for key, read in reads.items():
            if row.get(key) is None:
                continue
            try:
                image = _describe(row, key, read)
            except ImageError as error:
                problems.append(f"{row[ROW]}: {error}")
                continue
            images.append(image)
            if read.get("num_channels") not in (None, image.info.shape[0]):
                problem = wrong_num_channels(image.path, key, image.info.shape[0], read["num_channels"])
                problems.append(f"{row[ROW]}: {problem}")
        described.append(images)
    return described, problems


def _describe(row: Row, key: str, read: Read) -> Described:
    selection = {name: value for name, value in read.items() if name != "num_channels"}
    value = row[key]
    if isinstance(value, str | os.PathLike):
        return Described(row[ROW], key, str(value), describe_image(value, **selection))
    name = f"{row[ROW]} '{key}'"
    if not hasattr(value, "shape"):
        raise ImageError(f"{name}: an image is a path or an array, but this is a {type(value).__name__}.")
    in_memory = {name: selection[name] for name in ("spatial_dims", "channels", "z") if name in selection}
    described = Described(row[ROW], key, name, describe_array(np.asarray(value), name=name, **in_memory))
    if not np.isfinite(value).all():  # of files only the header is read; theirs are found when they are read
        pixels = select_array(np.asarray(value), name=name, **in_memory).array
        if num_bad := int(np.count_nonzero(~np.isfinite(pixels))):
            raise ImageError(not_finite(name, key, num_bad, pixels.size))
    return described


def not_finite(name: str, key: str, num_bad: int, num_pixels: int, *, where: str = "") -> str:
    """The message for an image with NaN or infinity."""
    return (
        f"{name}: {num_bad} of {num_pixels} pixels of '{key}' are NaN or infinite{where}. "
        "Repair the image, or leave it out."
    )


def check_channels(described: Sequence[Sequence[Described]]) -> list[str]:
    """The keys whose images differ in their number of channels."""
    return _check_same(described, "number of channels", lambda info: info.shape[0])


def check_dtypes(described: Sequence[Sequence[Described]], source_key: str) -> list[str]:
    """Whether the sources differ in dtype: their intensities are then not on one scale.

    Targets may differ: label images are often saved in the smallest dtype that holds their labels.
    """
    sources = [[image for image in row if image.key == source_key] for row in described]
    return _check_same(sources, "dtype", lambda info: info.dtype)


def _check_same(described: Sequence[Sequence[Described]], name: str, value: Callable[[ImageInfo], Any]) -> list[str]:
    by_key: dict[str, dict[Any, list[Described]]] = defaultdict(lambda: defaultdict(list))
    for image in (image for row in described for image in row):
        by_key[image.key][value(image.info)].append(image)
    return _differences(by_key, name)


def _differences(by_key: Mapping[str, Mapping[Any, list[Described]]], name: str) -> list[str]:
    """The keys whose images are in more than one group, with an example of each."""
    problems = []
    for key, groups in by_key.items():
        if len(groups) > 1:
            each = "; ".join(
                f"{found}: {len(some)} images, e.g. {some[0].path} ({some[0].where})" for found, some in groups.items()
            )
            problems.append(f"the images of '{key}' differ in their {name}: {each}. Convert them, or leave some out.")
    return problems


def check_sizes(
    described: Sequence[Sequence[Described]],
    source_key: str,
    scales: Mapping[str, int | Sequence[int]] = MappingProxyType({}),
) -> list[str]:
    """The targets whose size is no whole multiple or fraction of their source's, and those of differing multiples.

    Targets may lack the source's leading axes.

    Args:
        described: As `describe_rows` returns them.
        source_key: The key of the source.
        scales: How many voxels of a target lie along one of its source, for the targets of which that is said.
    """
    problems = []
    by_key: dict[str, dict[Scale, list[Described]]] = defaultdict(lambda: defaultdict(list))
    for row in described:
        source, targets = _source_and_targets(row, source_key)
        for target in targets if source else ():
            assert source is not None
            shape, found = source.info.shape[1:], target.info.shape[1:]
            scale = scale_of(shape, found)
            if target.key not in scales and scale is not None:
                by_key[target.key][scale].append(target)
                continue
            names = {"key": target.key, "target": target.path}
            if target.key in scales:
                given = scales[target.key]
                problem = other_scale(source_key, source.path, shape, scale=given, found=found, **names)
            else:
                problem = no_scale(source_key, source.path, shape, found=found, **names)
            problems += [f"{source.where}: {problem}"] if problem else []
    named = {key: {_as_text(scale): some for scale, some in groups.items()} for key, groups in by_key.items()}
    return problems + _differences(named, "number of voxels per voxel of the source")


def check_patch_shape(
    described: Sequence[Sequence[Described]], source_key: str, patch_shape: Sequence[int]
) -> list[str]:
    """The sources that a patch does not fit into, or whose targets it would cut through a voxel.

    Of a stack whose target is a projection, a patch needs every plane: any of them may have made the projection.
    """
    patch = tuple(patch_shape)
    problems = []
    for row in described:
        source, targets = _source_and_targets(row, source_key)
        if source is None:
            continue
        shape = source.info.shape[1:]
        scales = [scale_of(shape, target.info.shape[1:]) for target in targets]
        steps = common_steps(len(shape), [scale for scale in scales if scale is not None])
        projection = _projection(source, targets)
        if projection is not None and len(patch) == len(shape) and patch[0] != shape[0]:
            problems.append(f"{source.where}: {_other_planes(source, projection, patch[0])}")
        elif not fits(patch, shape):
            problems.append(f"{source.where}: {patch_too_large(source.path, shape, patch)}")
        elif any(size % step for size, step in zip(patch, steps, strict=True)):
            problems.append(f"{source.where}: {off_the_grid(source.path, patch, steps)}")
    return problems


def check_depths(described: Sequence[Sequence[Described]], source_key: str, num_planes: int) -> list[str]:
    """The stacks with a projection that are deeper than a window of `num_planes`, as one sentence with an example."""
    rows = [_source_and_targets(row, source_key) for row in described]
    stacks = [source for source, targets in rows if source is not None and _projection(source, targets) is not None]
    deeper = [source for source in stacks if source.info.shape[1] > num_planes]
    if not deeper:
        return []
    first = deeper[0]
    return [
        f"{len(deeper)} of {len(stacks)} stacks have more planes than num_planes (the first of data.patch_shape, "
        f"{num_planes}), e.g. {first.path} ({first.where}) has {first.info.shape[1]}. A projection needs all planes in "
        "one window: raise the first number of model.inference.roi_size, or give every stack num_planes planes."
    ]


def _projection(source: Described, targets: Sequence[Described]) -> Described | None:
    """The first target with fewer axes than its source."""
    return next((target for target in targets if len(target.info.shape) < len(source.info.shape)), None)


def _other_planes(source: Described, projection: Described, num_planes: int) -> str:
    return (
        f"{source.path}: the stack has {source.info.shape[1]} planes, but num_planes (the first number of "
        f"data.patch_shape) is {num_planes}. '{projection.key}' ({projection.path}) is a projection of the stack, so "
        "patches have all its planes: set num_planes, and give every stack as many."
    )


def _source_and_targets(row: Sequence[Described], source_key: str) -> tuple[Described | None, list[Described]]:
    source = next((image for image in row if image.key == source_key), None)
    return source, [image for image in row if image.key != source_key]


def _as_text(scale: Scale) -> str:
    return " x ".join(map(str, scale))


def fits(patch_shape: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether a patch has as many axes as an image and is nowhere larger."""
    return len(patch_shape) == len(shape) and all(patch <= size for patch, size in zip(patch_shape, shape, strict=True))


def patch_too_large(path: str, shape: Sequence[int], patch_shape: Sequence[int]) -> str:
    """The message for an image that a patch does not fit into."""
    return (
        f"{path}: the image's size is {tuple(shape)}, but data.patch_shape is {tuple(patch_shape)}. Give a patch shape "
        "with as many axes as the image and nowhere larger, or pad the images in data.transforms.preprocess."
    )


def check_leakage(
    rows_by_split: Mapping[str, Sequence[Row]], *, source_key: str, identity: Callable[[Any], Any] | None = None
) -> list[str]:
    """The sources that are in more than one of train, valid and test: the scores would be too good.

    Args:
        rows_by_split: As `read_manifest` returns them.
        source_key: The key of the source.
        identity: What two equal images share. Default: the path, symbolic links resolved; for arrays the object.
    """
    identity = identity or _address
    places: dict[Any, dict[str, Row]] = defaultdict(dict)
    for split, rows in rows_by_split.items():
        for row in rows if split != "predict" else ():  # one may well predict what one trained on
            places[identity(row[source_key])].setdefault(split, row)
    leaks = [found for found in places.values() if len(found) > 1]
    several = [", ".join(_place(split, row, source_key) for split, row in found.items()) for found in leaks]
    return [f"the same image is in several splits: {where}. Keep it in one of them." for where in several]


def _address(value: Any) -> Any:
    return os.path.realpath(value) if isinstance(value, str | os.PathLike) else id(value)


def _place(split: str, row: Row, source_key: str) -> str:
    source = row[source_key]
    return f"{split} ({row[ROW]}{': ' + str(source) if isinstance(source, str) else ''})"
