"""How an image or a head's output becomes pixels: previews, files and answers of the server are drawn here.

Every function takes one image, C (Z) Y X (a tensor or an array: logits, or an input image), and gives a new tensor
C (Z) Y X. A configuration names them with `_partial_: true`:

    postprocessing:
      input:      {raw: {_target_: cyto_dl.model.utils.postprocessing.rescale, _partial_: true}}
      prediction: {seg: {_target_: cyto_dl.model.utils.postprocessing.sigmoid_rescale, _partial_: true}}

Only `rescale` looks at an image's own minimum and maximum; a prediction's numbers keep their meaning in all others.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import cc3d
import numpy as np
import torch
from torch import Tensor

from cyto_dl.errors import ConfigError
from cyto_dl.model.instances import decode_instances

Pixels = Tensor | np.ndarray

WHITE = 255
DTYPES = {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32}


def rescale(image: Pixels, *, in_range: Sequence[float] | None = None) -> Tensor:
    """An input image as 8-bit grey values, 0-255.

    Args:
        image: C (Z) Y X, any units; what is not known (NaN) becomes 0.
        in_range: The two values that become 0 and 255; what lies outside is clipped. None: the image's own minimum
            and maximum. A constant image becomes 0.
    """
    values = _float(image)
    known = values[~values.isnan()]
    if in_range is None and known.numel():
        in_range = known.min().item(), known.max().item()
    low, high = in_range or (0, 0)
    if not high > low:
        return torch.zeros_like(values, dtype=torch.uint8)
    return ((values.nan_to_num(low) - low) / (high - low) * WHITE).clamp(0, WHITE).round().to(torch.uint8)


def sigmoid_rescale(logits: Pixels) -> Tensor:
    """Probabilities as 8-bit grey values: 0 is 0, 1 is 255, whatever the image holds."""
    return (torch.sigmoid(_float(logits)) * WHITE).round().to(torch.uint8)


def sigmoid_threshold(logits: Pixels, *, threshold: float = 0.5) -> Tensor:
    """The mask, uint8, of what is more probable than `threshold`: 1 inside, 0 outside."""
    return (torch.sigmoid(_float(logits)) > threshold).to(torch.uint8)


def sigmoid(logits: Pixels) -> Tensor:
    """Probabilities per channel, float32 in 0..1."""
    return torch.sigmoid(_float(logits))


def softmax(logits: Pixels) -> Tensor:
    """Class probabilities, float32; the channels sum to 1."""
    return torch.softmax(_float(logits), dim=0)


def identity(image: Pixels) -> Tensor:
    """The values as they are, float32."""
    return _float(image).clone()


def argmax(logits: Pixels) -> Tensor:
    """The most probable class of each pixel, 1 (Z) Y X, uint8 (uint16 for more than 256 classes).

    Raises:
        ConfigError: There is one channel only, of which the class would be 0 everywhere.
    """
    values = _float(logits)
    if len(values) < 2:
        raise ConfigError("postprocessing argmax needs a head with 2 or more channels; use sigmoid_threshold for 1.")
    classes = values.argmax(dim=0, keepdim=True)
    return classes.to(torch.uint8 if len(values) <= 256 else torch.uint16)


def connected_components(logits: Pixels, *, threshold: float = 0.5, min_size: int = 0) -> Tensor:
    """Labels of the separate objects in channel 0, 1 (Z) Y X, uint32: background 0, objects 1, 2, 3...

    Pixels that touch at a side, an edge or a corner are of one object.

    Args:
        logits: C (Z) Y X; channel 0 is the foreground's logit.
        threshold: Probability above which a pixel is foreground.
        min_size: Objects of fewer pixels are left out.

    Source: cc3d, https://github.com/seung-lab/connected-components-3d.
    """
    mask = sigmoid_threshold(logits, threshold=threshold)[0].cpu().numpy()
    connectivity: Literal[8, 26] = 8 if mask.ndim == 2 else 26
    if min_size > 1:
        mask = cc3d.dust(mask, threshold=min_size, connectivity=connectivity)
    labels = cc3d.connected_components(mask, connectivity=connectivity, out_dtype=np.uint32)
    return torch.from_numpy(np.ascontiguousarray(labels))[None]


def instances(
    logits: Pixels,
    *,
    foreground: float = 0.5,
    seed: float | Sequence[float] = 0.5,
    min_size: int = 1,
    min_seed: int = 1,
) -> Tensor:
    """Labels of objects, also of touching ones, 1 (Z) Y X, uint32: background 0, objects 1, 2, 3...

    Args:
        logits: 2 (Z) Y X, the output of an `InstanceHead`.
        foreground: Probability above which a pixel belongs to an object. Higher: smaller objects, and fewer.
        seed: Border distance, 0..1, above which a pixel belongs to an object's core. Higher: more is split. Several: a
            core that falls into parts at a higher one is replaced by these.
        min_size: Objects of fewer pixels are left out.
        min_seed: Cores of fewer pixels split nothing off.

    Raises:
        ConfigError: A parameter is out of its range, or the head has no 2 channels.
    """
    values = _float(logits).cpu().numpy()
    if len(values) != 2:
        raise ConfigError(f"postprocessing instances needs the 2 channels of an InstanceHead, not {len(values)}.")
    levels = list(seed) if isinstance(seed, Sequence) and not isinstance(seed, str) else [seed]
    if not levels:
        raise ConfigError("postprocessing instances: seed is empty; give one number or more, each between 0 and 1.")
    for name, probability in [("foreground", foreground), *(("seed", level) for level in levels)]:
        if not _is_number(probability) or not 0 < probability < 1:
            raise ConfigError(f"postprocessing instances: {name} is {probability!r}; it must lie between 0 and 1.")
    for name, pixels in {"min_size": min_size, "min_seed": min_seed}.items():
        if not _is_number(pixels) or pixels < 0:
            raise ConfigError(f"postprocessing instances: {name} is {pixels!r}; it must be a number of pixels.")
    labels = decode_instances(values, foreground=foreground, seed=levels, min_size=min_size, min_seed=min_seed)
    return torch.from_numpy(labels)[None]


def denormalize(image: Pixels, *, mean: float | None, std: float | None, dtype: str = "float32") -> Tensor:
    """Intensities in the target's original units: image * std + mean.

    Args:
        image: C (Z) Y X, normalised by (value - mean) / std.
        mean: The mean that normalisation subtracted. None, and std None too: each image's own, which a prediction
            cannot know; it stays in standard deviations.
        std: The standard deviation that normalisation divided by.
        dtype: "float32", or "uint8" / "uint16", which round and clip to what they hold.

    Raises:
        ConfigError: Another dtype was asked for, or one of mean and std without the other.
    """
    if (mean is None) != (std is None):
        raise ConfigError(f"postprocessing denormalize: mean is {mean} and std is {std}; give both, or neither.")
    if dtype not in DTYPES:
        raise ConfigError(f"postprocessing denormalize: dtype is {dtype!r}; choose one of {', '.join(DTYPES)}.")
    values = _float(image).clone() if mean is None or std is None else _float(image) * std + mean
    if dtype == "float32":
        return values
    limits = torch.iinfo(DTYPES[dtype])
    return values.round().clamp(limits.min, limits.max).to(DTYPES[dtype])


def default_prediction(kind: str, activation: str) -> Callable[[Pixels], Tensor]:
    """What draws a head that `postprocessing.prediction` does not name: its activated output, or its objects.

    A sigmoid gives 8-bit probabilities, a softmax the classes, anything else the values as they are.
    """
    if kind == "instances":
        return instances
    return {"sigmoid": sigmoid_rescale, "softmax": argmax}.get(activation, identity)


def gives_labels(function: Callable[..., Tensor]) -> bool:
    """Whether a postprocessing function (or a partial of it) gives labels, whose numbers are names."""
    return getattr(function, "func", function) in (sigmoid_threshold, argmax, connected_components, instances)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _float(image: Pixels) -> Tensor:
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image))
    return image.as_subclass(Tensor).detach().float()  # MONAI's MetaTensor becomes a plain one
