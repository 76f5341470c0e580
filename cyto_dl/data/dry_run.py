"""Try the deterministic transforms on a tiny image with and without its targets, when the data module is built.

At predict time there are no targets. Some transforms need theirs even when told to skip missing keys; that is better
known before the training than after it.
"""

import logging
from typing import Any

import numpy as np

from cyto_dl.data.image import Image
from cyto_dl.data.stages import Stages, for_source, readers
from cyto_dl.data.transforms import ReadImaged, as_meta_tensor, run_transforms
from cyto_dl.errors import ConfigError, ImageError

logger = logging.getLogger(__name__)

SIZE = 16  # voxels along every axis: small enough to cost nothing, a power of two for pooling-like transforms


def check_without_targets(stages: Stages, source_key: str) -> bool:
    """Refuse preprocessing that works with targets but not without; tell whether it keeps the images' size.

    Raises:
        ConfigError: Names the transform that fails without its target.
    """
    whole: Any = {key: _tiny_image(key, reader) for key, reader in readers(stages.load).items()}
    if source_key not in whole:
        return False
    alone = {source_key: whole[source_key].clone()}
    shapes = {key: image.shape[1:] for key, image in whole.items()}
    for transform in stages.preprocess:
        lenient = for_source([transform], source_key)
        try:
            whole = run_transforms([transform], whole, path="a random image")
        except ImageError as error:  # too small an image, another number of channels: the real images will tell
            logger.debug("the dry run without targets ended early: %s", error)
            return False
        try:
            alone = run_transforms(lenient, alone, path="a random image")
        except ImageError as error:
            raise ConfigError(
                f"data.transforms: {type(transform).__name__} needs a target, but at predict time there are none "
                f"({error.__cause__}). Use a transform that looks at '{source_key}' alone, or move it to augment."
            ) from error
    return all(key in whole and whole[key].shape[1:] == shape for key, shape in shapes.items())


def _tiny_image(key: str, reader: ReadImaged) -> Any:
    generator = np.random.default_rng(0)
    num_channels = reader.num_channels or np.size(reader.channels or 0)
    pixels = generator.integers(0, 2, (num_channels, *[SIZE] * reader.spatial_dims)).astype(np.float32)
    return as_meta_tensor(Image(pixels, None, f"a random {key}"))
