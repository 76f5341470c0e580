"""What is wrong with the arguments of a data module, before anything is read: each problem as one sentence."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader

from cyto_dl.data.collate import PRESENT
from cyto_dl.data.manifest import ROW

RESERVED = ("path", "spacing_um", PRESENT, ROW)
DATA_LOADER_ARGUMENTS = tuple(inspect.signature(DataLoader.__init__).parameters)[2:]  # without self, dataset
OWN_ARGUMENTS = ("dataset", "sampler", "batch_sampler", "shuffle")  # of torch's DataLoader


def key_problems(
    columns: Mapping[str, str],
    *,
    source_key: str,
    foreground_key: str | None,
    foreground_fraction: float,
    scales: Mapping[str, int | Sequence[int]],
) -> list[str]:
    """What is wrong with the batch keys that the arguments name, and with what is said of them."""
    keys = ", ".join(columns) or "nothing"
    reserved = ", ".join(key for key in columns if key in RESERVED)
    unknown = foreground_key is not None and foreground_key not in columns
    wrong = {
        f"data.columns has the key {reserved}, which is not free: batches and rows use it": bool(reserved),
        f"data.source_key is '{source_key}', but data.columns has {keys}": source_key not in columns,
        f"data.foreground_key is '{foreground_key}', but data.columns has {keys}": unknown,
        f"data.foreground_fraction is {foreground_fraction}, but it is a fraction, 0 to 1": not 0
        <= foreground_fraction
        <= 1,
        "data.foreground_fraction is given without data.foreground_key": foreground_fraction > 0
        and foreground_key is None,
    }
    for key, scale in scales.items():
        wrong[f"data.scales has the key '{key}', but data.columns has {keys}"] = key not in columns
        wrong[
            f"scale (data.scales.{key}) is {scale!r}; give a whole number from 1 on, or one per axis in (Z)YX order"
        ] = not _is_scale(scale)
    return _true(wrong)


def number_problems(*, patches_per_image: int, batch_size: int, patch_shape: Sequence[int] | None) -> list[str]:
    """The numbers of and in patches that are below 1."""
    return _true(
        {
            f"data.patches_per_image is {patches_per_image}, but at least 1 is needed": patches_per_image < 1,
            f"data.batch_size is {batch_size}, but at least 1 is needed": batch_size < 1,
            f"data.patch_shape is {patch_shape}, but at least 1 is needed": min(patch_shape or (1,)) < 1,
        }
    )


def loader_problems(loader_kwargs: Mapping[str, Any]) -> list[str]:
    """The further arguments that torch's DataLoader does not know, or that are the data module's to give."""
    foreign = ", ".join(name for name in loader_kwargs if name not in (*DATA_LOADER_ARGUMENTS, *OWN_ARGUMENTS))
    own = ", ".join(name for name in OWN_ARGUMENTS if name in loader_kwargs)
    return _true(
        {
            f"data.{foreign} is neither an argument of the data module nor of torch's DataLoader": bool(foreign),
            f"data.{own} cannot be given: the order of the images is the data module's": bool(own),
        }
    )


def _true(wrong: Mapping[str, bool]) -> list[str]:
    return [message for message, is_wrong in wrong.items() if is_wrong]


def _is_scale(scale: Any) -> bool:
    factors = [scale] if isinstance(scale, int) else scale
    return isinstance(factors, list | tuple) and all(isinstance(factor, int) and factor >= 1 for factor in factors)
