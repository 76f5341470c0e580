"""Pictures of what a model sees and predicts, saved after every validation.

<output_dir>/valid/epoch_003/<image>_raw.png          the source
                             <image>_seg_target.png   the target of task seg
                             <image>_seg.png          its prediction
                             ..., each also as .ome.tif with the pixel size
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from PIL import Image
from torch import Tensor

from cyto_dl.data.image import write_image
from cyto_dl.errors import ConfigError
from cyto_dl.inference.picture import coloured_labels, grey, plane
from cyto_dl.model.multitask import MultiTaskIm2Im
from cyto_dl.model.utils.postprocessing import WHITE, gives_labels
from cyto_dl.storage import atomic_path


class ImagePreviews(lightning.Callback):
    """Saves inputs, targets and predictions of the first validation images, drawn by the model's postprocessing.

    The OME-TIFF holds the values as postprocessing gives them. The PNG shows them on a screen: the middle plane of a
    stack, three 8-bit channels as RGB (else the first channel), labels in colours, a mask in white, and what has
    more than 8 bits over its own range.
    """

    def __init__(self, output_dir: str, every_n_epochs: int = 1, num_images: int = 4) -> None:
        """Make the callback.

        Args:
            output_dir: Where the folder valid/ is made.
            every_n_epochs: Save after epochs 0, n, 2n...
            num_images: How many images, from the first of the validation split on.
        """
        self.output_dir = Path(output_dir)
        self.every_n_epochs = every_n_epochs
        self.num_images = num_images
        self._stems: list[str] = []
        self._files: list[Path] = []

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save the images of one batch."""
        if not self._is_due(trainer):
            return
        if not isinstance(pl_module, MultiTaskIm2Im):
            raise ConfigError(f"callbacks: ImagePreviews cannot draw a {type(pl_module).__name__}; leave it out.")
        folder = self._folder(trainer)
        spacings_um = batch.get("spacing_um") or [None] * len(batch[pl_module.x_key])
        for index in range(min(len(batch[pl_module.x_key]), self.num_images - len(self._stems))):
            stem = self._stem(batch, index)
            shape = batch[pl_module.x_key].shape[2:]
            for name, array, is_label in _draw(pl_module, outputs["prediction"], batch, index):
                path = folder / f"{stem}_{name}"
                write_image(f"{path}.ome.tif", array, spacing_um=_spacing(spacings_um[index], shape, array.shape[1:]))
                self._files += [Path(f"{path}.ome.tif"), _write_png(Path(f"{path}.png"), array, is_label=is_label)]

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Hand the pictures to the loggers that take them."""
        if self._files:
            for logger in trainer.loggers:
                if hasattr(logger, "log_previews"):
                    logger.log_previews(self._files, trainer.current_epoch)
        self._stems, self._files = [], []

    def _is_due(self, trainer: lightning.Trainer) -> bool:
        return (
            trainer.state.fn == "fit"
            and not trainer.sanity_checking
            and trainer.is_global_zero
            and trainer.current_epoch % self.every_n_epochs == 0
            and len(self._stems) < self.num_images
        )

    def _folder(self, trainer: lightning.Trainer) -> Path:
        folder = self.output_dir / "valid" / f"epoch_{trainer.current_epoch:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _stem(self, batch: Mapping[str, Any], index: int) -> str:
        """The image's file name without suffix; numbered where files of several folders have the same."""
        paths = batch.get("path")
        stem = Path(paths[index]).name.split(".")[0] if paths else ""
        stem = stem or "image"
        count = self._stems.count(stem)
        self._stems.append(stem)
        return f"{stem}-{count + 1}" if count else stem


def _draw(
    model: MultiTaskIm2Im, logits: Mapping[str, Tensor], batch: Mapping[str, Any], index: int
) -> list[tuple[str, np.ndarray, bool]]:
    """(name, image C(Z)YX, whether its numbers are labels) of the source, its targets and the predictions."""
    inputs, predictions = model.postprocessing["input"], model.postprocessing["prediction"]
    drawings = [(model.x_key, inputs[model.x_key], batch[model.x_key][index])]
    for name in model.tasks:
        positions = model.images_with(name, batch).tolist() if name in batch else []
        if index in positions:
            drawings.append((f"{name}_target", inputs[name], batch[name][positions.index(index)]))
        drawings.append((name, predictions[name], logits[name][index]))
    return [_apply(name, function, image) for name, function, image in drawings]


def _apply(name: str, function: Callable[..., Tensor], image: Tensor) -> tuple[str, np.ndarray, bool]:
    array = function(image).cpu().numpy()
    return name, array, gives_labels(function) or array.dtype in (np.uint32, np.bool_)


def _spacing(
    spacing_um: tuple[float, ...] | None, source_shape: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[float, ...] | None:
    """The pixel size of an image that covers the same field with other pixels, or one plane of it."""
    if spacing_um is None:
        return None
    kept = slice(len(source_shape) - len(shape), None)
    return tuple(
        um * source / size for um, source, size in zip(spacing_um[kept], source_shape[kept], shape, strict=True)
    )


def _write_png(path: Path, array: np.ndarray, *, is_label: bool) -> Path:
    shown_CYX = plane(array)
    if is_label:
        picture = coloured_labels(shown_CYX)
    else:
        window = (0, WHITE) if array.dtype == np.uint8 else (float(shown_CYX.min()), float(shown_CYX.max()))
        picture = grey(shown_CYX, window)
    if (picture == picture[..., :1]).all():
        picture = np.ascontiguousarray(picture[..., 0])  # grey needs one channel
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary)
    return path
