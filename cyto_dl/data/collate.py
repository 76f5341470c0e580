"""Items as a batch: images stacked, paths and pixel sizes listed, and which of the items have which target."""

from collections.abc import Collection, Sequence
from typing import Any

import torch

from cyto_dl.data.patches import Item
from cyto_dl.errors import ConfigError

PRESENT = "present"


def collate(items: Sequence[Item | list[Item]], *, optional: Collection[str] = ()) -> dict[str, Any]:
    """A batch of the items.

    Args:
        items: With their images C(Z)YX; a list where a transform made several of one.
        optional: The keys that some rows of the data lack.

    Returns:
        {key: tensor BC(Z)YX, or a list}. If an item of the batch lacks a key, then only those that have it are stacked,
        and `present[key]` numbers them; a key that all lack is not in the batch, and `present[key]` is empty.

    Raises:
        ConfigError: The images have different sizes.
    """
    flat = [one for item in items for one in (item if isinstance(item, list) else [item])]
    batch: dict[str, Any] = {}
    present: dict[str, torch.Tensor] = {}
    for key in dict.fromkeys([key for item in flat for key in item] + list(optional)):
        having = [number for number, item in enumerate(flat) if key in item]
        if len(having) < len(flat):
            present[key] = torch.tensor(having, dtype=torch.long)
        if having:
            batch[key] = _stack([flat[number] for number in having], key)
    return batch | ({PRESENT: present} if present else {})


def _stack(items: Sequence[Item], key: str) -> torch.Tensor | list[Any]:
    values = [item[key] for item in items]
    if not isinstance(values[0], torch.Tensor):
        return values
    if len({value.shape for value in values}) > 1:
        sizes = ", ".join(f"{item['path']} {tuple(item[key].shape)}" for item in items)
        raise ConfigError(
            f"The images of a batch have different sizes of '{key}': {sizes}. "
            "Set data.patch_shape, or data.batch_size to 1."
        )
    return torch.stack(values)
