"""From one image to its predictions: the only code that does it, in evaluation, batch prediction and serving alike.

image -> check -> preprocess -> sliding window(backbone -> heads) -> undo geometry -> postprocess -> images
                                                                                  -> activate    -> metrics
Objects (a head of the kind "instances") are decoded once, on the whole image: their labels are the image, and what
metrics see.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from cyto_dl.data.formats import FileInMemory
from cyto_dl.data.image import Image, SelectionError, read_image
from cyto_dl.data.transforms import Transform, as_meta_tensor, run_transforms
from cyto_dl.errors import ConfigError, ImageError
from cyto_dl.inference.geometry import undo_geometry
from cyto_dl.inference.sliding_window import SlidingWindow
from cyto_dl.model.tasks import activate

Postprocess = Callable[[Tensor], Tensor]


class HeadsNetwork(Protocol):
    """Backbone and heads, on whatever computes them: a `TaskNetwork`, an `Ensemble` of them, an engine."""

    @property
    def heads(self) -> Iterable[str]:
        """The names of the heads."""

    def only(self, heads: Sequence[str]) -> "HeadsNetwork":
        """The same network with these heads."""

    def __call__(self, windows: Tensor, /) -> Mapping[str, Tensor]:
        """Logits per head, of windows B C (Z) Y X."""


@dataclass(frozen=True)
class InputSpec:
    """The image that a model takes: C (Z) Y X with `num_channels`, any size, intensities as acquired.

    Args:
        name: Key of the source in transforms, and name of the input over HTTP.
        spatial_dims: 2 or 3.
        num_channels: Channels of the image, after selection.
        load: Arguments of `cyto_dl.data.image.read_image` (spatial_dims, channels, z, scene, timepoint).
        spacing_um: Pixel size (Z)YX that an image without one is taken to have; None: 1.
    """

    name: str
    spatial_dims: int
    num_channels: int
    load: Mapping[str, Any] = field(default_factory=dict)
    spacing_um: tuple[float, ...] | None = None

    @property
    def axes(self) -> str:
        """CYX or CZYX."""
        return "CZYX" if self.spatial_dims == 3 else "CYX"

    @property
    def wanted(self) -> str:
        """What the model takes, in words for messages, and what it picks of a file."""
        kind = "stacks" if self.spatial_dims == 3 else "2-D images"
        names = {"channels": "channel", "z": "plane", "timepoint": "time point"}
        picked = [f"{name} {self.load[key]}" for key, name in names.items() if self.load.get(key) is not None]
        of_a_file = f": of a file {', '.join(picked)}, counted from 0" if picked else ""
        return f"the model takes {kind} ({' '.join(self.axes)}) with {_channels(self.num_channels)}{of_a_file}"


class Prediction(NamedTuple):
    """What one forward pass gives, per head."""

    images: dict[str, np.ndarray]  # postprocessed, C (Z) Y X
    activations: dict[str, Tensor]  # in the target's own units, C (Z) Y X, on the CPU: float32; int32 for objects


@dataclass(frozen=True, eq=False)
class Predictor:
    """A trained model as a function from an image to one image per head. One call at a time.

    Args:
        name: Name of the model.
        input: The image that it takes.
        outputs: Head -> {kind, activation, values, and once it has been exported dtype, channels, axes}.
        network: Backbone and heads.
        preprocess: From the image as acquired to what the network sees; dictionary transforms on `input.name`.
        postprocess: Head -> function from logits C (Z) Y X to an image.
        window: How the network is run over images larger than its window.
        metadata: The bundle's document.
        device: Where the network runs.
    """

    name: str
    input: InputSpec
    outputs: Mapping[str, Mapping[str, Any]]
    network: HeadsNetwork
    preprocess: Sequence[Transform]
    postprocess: Mapping[str, Postprocess]
    window: SlidingWindow
    metadata: Mapping[str, Any]
    device: torch.device
    _turn: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @property
    def input_name(self) -> str:
        """Of the image that it takes, in tables and over HTTP."""
        return self.input.name

    def read(self, path: str | PathLike[str] | FileInMemory) -> Image:
        """The image of a file, local, s3:// or in memory, as the model takes it.

        Raises:
            ImageError: The file is unreadable, or holds another kind of image; says which the model takes.
        """
        try:
            return self.checked(read_image(path, **self.input.load))
        except SelectionError as error:  # it speaks of the configuration, which a bundle's user does not have
            raise ImageError(f"{path}: {error.found}; {self.input.wanted}. {error.remedy}") from error

    def predict(self, image: np.ndarray | Image, *, heads: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """One image per head, C (Z) Y X, on the pixel grid of `image`.

        Args:
            image: Intensities as acquired, C (Z) Y X of any integer or float type; without the channel axis where the
                model takes one channel.
            heads: Compute only these.

        Raises:
            ImageError: The image is empty, not finite, or of other axes or channels than the model takes.
            ConfigError: There is no such head.
        """
        logits = self._logits(image, heads)
        return {head: self._draw(head, each) for head, each in logits.items()}

    async def predict_async(
        self, image: np.ndarray | Image, *, heads: Iterable[str] | None = None
    ) -> dict[str, np.ndarray]:
        """`predict` in another thread, so that an event loop goes on; calls that are awaited together take turns."""

        def in_turn() -> dict[str, np.ndarray]:
            with self._turn:
                return self.predict(image, heads=heads)

        return await asyncio.to_thread(in_turn)

    def activations(self, image: np.ndarray | Image, *, heads: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Activated output per head, in the target's own units, for metrics. Arguments as for `predict`."""
        logits = self._logits(image, heads)
        return {
            head: _as_tensor(self._draw(head, each)) if self._is_of_objects(head) else self._activate(head, each)
            for head, each in logits.items()
        }

    def predict_with_activations(self, image: np.ndarray | Image) -> Prediction:
        """Images and activations of all heads from one forward pass."""
        logits = self._logits(image, None)
        images = {head: self._draw(head, each) for head, each in logits.items()}
        activations = {
            head: _as_tensor(images[head]) if self._is_of_objects(head) else self._activate(head, each)
            for head, each in logits.items()
        }
        return Prediction(images, activations)

    def preprocessed(self, image: np.ndarray | Image) -> MetaTensor:
        """What the network sees of an image, C (Z) Y X float32; it remembers what was done to its geometry."""
        source = self.checked(image)
        item = {self.input.name: as_meta_tensor(source)}
        result = run_transforms(self.preprocess, item, path=source.path)[self.input.name]
        assert isinstance(result, MetaTensor)
        return cast(MetaTensor, result.float())

    def checked(self, image: np.ndarray | Image) -> Image:
        """The image with its channel axis and a pixel size, or an error that says what the model takes.

        Raises:
            ImageError: As `predict`.
        """
        if not isinstance(image, Image):
            image = Image(np.asarray(image), None, self.input.name)
        array = self._with_channels(image)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ImageError(f"{image.path}: the image has values that are not finite (NaN or infinite). Replace them.")
        return Image(array, image.spacing_um or self.input.spacing_um, image.path)

    @torch.inference_mode()
    def _logits(self, image: np.ndarray | Image, heads: Iterable[str] | None) -> dict[str, Tensor]:
        network = self._network_of(heads)
        source = self.preprocessed(image)
        source_BCZYX = source.as_tensor()[None].to(self.device)
        logits = self.window(source_BCZYX, network)
        if not all(_is_finite(each) for each in logits.values()):
            low, high = float(source.min()), float(source.max())
            raise ImageError(
                f"the network's output is not finite for this image, whose values after preprocessing are {low:g} to "
                f"{high:g}. Are its intensities like those of the images that the model was trained on?"
            )
        key = self.input.name
        return {head: undo_geometry(each[0], source, self.preprocess, key=key) for head, each in logits.items()}

    def _network_of(self, heads: Iterable[str] | None) -> HeadsNetwork:
        if heads is None:
            return self.network
        known = list(self.network.heads)
        chosen = list(dict.fromkeys(heads))
        unknown = [head for head in chosen if head not in known]
        if unknown or not chosen:
            named = f"no head {unknown[0]!r}" if unknown else "no prediction without a head"
            raise ConfigError(f"{self.name} has {named}. Choose among {', '.join(known)}.")
        return self.network.only(chosen)

    def _draw(self, head: str, logits: Tensor) -> np.ndarray:
        array: np.ndarray = self.postprocess[head](logits).cpu().numpy()
        return array

    def _is_of_objects(self, head: str) -> bool:
        return self.outputs[head]["kind"] == "instances"

    def _activate(self, head: str, logits: Tensor) -> Tensor:
        return activate(logits[None], self.outputs[head]["activation"])[0].cpu()

    def _with_channels(self, image: Image) -> np.ndarray:
        spec, array, shape, takes = self.input, image.array, image.array.shape, self.input.wanted
        if array.dtype.kind not in "buif":
            raise ImageError(f"{image.path}: the image is of type {array.dtype}; {takes}, of an integer or float type.")
        if array.ndim == spec.spatial_dims and spec.num_channels == 1:
            array = array[None]
        if array.ndim != spec.spatial_dims + 1:
            raise ImageError(f"{image.path}: the image has {array.ndim} axes, shape {shape}; {takes}.")
        if array.shape[0] != spec.num_channels:
            raise ImageError(
                f"{image.path}: the image has {_channels(array.shape[0])}, shape {shape}; {takes}. "
                "Give it the channels that it was trained on, and no others."
            )
        if array.size == 0:
            raise ImageError(f"{image.path}: the image is empty, shape {shape}; {takes} and at least one pixel.")
        return array


def _is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite: the extremes tell, in a tenth of the time of asking each value."""
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(values))


def _channels(number: int) -> str:
    return f"{number} channel{'s' if number != 1 else ''}"


def _as_tensor(labels: np.ndarray) -> Tensor:
    return torch.from_numpy(labels.astype(np.int32))  # uint32, the type of labels, is hardly one of torch
