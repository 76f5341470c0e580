"""One backbone, any number of heads, each with its own loss and metrics: from images to images.

source -> backbone -> heads -> losses                              training, on patches
source -> sliding window(backbone -> heads) -> losses, metrics     validation and test, on whole images
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from cyto_dl.data.collate import PRESENT
from cyto_dl.data.scale import scale_of, target_spacing
from cyto_dl.errors import ConfigError, TrainingError, list_problems
from cyto_dl.inference.sliding_window import SlidingWindow
from cyto_dl.model.network import TaskNetwork
from cyto_dl.model.optimizers import make_optimizer, optimizer_problems
from cyto_dl.model.tasks import Task, build_tasks
from cyto_dl.model.utils.postprocessing import default_prediction, rescale
from cyto_dl.model.weighting import build_weighting

Batch = Mapping[str, Any]

# What torch says when an image does not suit a network, as opposed to being out of memory
SHAPE_ERRORS = ("Sizes of tensors must match", "to have", "must match the size", "Kernel size can't be greater")

SPLITS_OF_STAGE = {"fit": ("train", "valid"), "validate": ("valid",), "test": ("test",)}


class MultiTaskIm2Im(lightning.LightningModule):
    """Train one network for several tasks that share a source image."""

    roles: tuple[str, ...] = ("generator",)  # whose optimizers and schedules model.optimizer and .lr_scheduler name

    def __init__(
        self,
        *,
        x_key: str | None = None,
        backbone: nn.Module | None = None,
        task_heads: Mapping[str, Mapping[str, Any]] | None = None,
        loss_weights: nn.Module | Mapping[str, float] | None = None,
        optimizer: Mapping[str, Any] | None = None,
        lr_scheduler: Mapping[str, Any] | None = None,
        postprocessing: Mapping[str, Mapping[str, Callable[..., Tensor]]] | None = None,
        inference: Mapping[str, Any] | None = None,
    ) -> None:
        """Make the model of a configuration's `model` node.

        Args:
            x_key: Batch key of the source image.
            backbone: B C (Z) Y X -> B n (Z) Y X.
            task_heads: {name: {head, loss, metrics}}; the name is the batch key of the task's target.
            loss_weights: {name: weight}, 1 for others, or a module that learns them (`cyto_dl.model.weighting`).
            optimizer: {"generator": partial of a torch optimizer}.
            lr_scheduler: {"generator": partial of a scheduler, or {scheduler: partial, interval, monitor, ...}}.
                ReduceLROnPlateau watches valid/loss unless a monitor is given.
            postprocessing: {"input": {key: function}, "prediction": {task: function}}. An input without one is
                drawn by `rescale`, a head by `default_prediction`.
            inference: Arguments of SlidingWindow. None: the whole image in one window.

        Raises:
            ConfigError: What is missing or does not fit, all problems at once, by configuration key.
        """
        super().__init__()
        arguments = {"x_key": x_key or None, "backbone": backbone, "task_heads": task_heads}
        problems = [f"model.{key} is missing" for key, value in arguments.items() if value is None]
        if backbone is not None and not isinstance(backbone, nn.Module):
            problems.append(f"model.backbone is a {type(backbone).__name__}; it must be a torch.nn.Module")
        problems += optimizer_problems(self.roles, optimizer, lr_scheduler)
        if problems or not (x_key and backbone is not None and task_heads is not None and optimizer and lr_scheduler):
            raise ConfigError("the model cannot be built:\n" + list_problems(problems))
        self.x_key = x_key
        self.tasks = build_tasks(task_heads)
        self.network = TaskNetwork(backbone, {name: task.head for name, task in self.tasks.items()})
        # registered so that they follow the model to its device; metrics keep nothing in a checkpoint
        self.losses = nn.ModuleDict({name: task.loss for name, task in self.tasks.items()})
        self.weighting = build_weighting(loss_weights, self.tasks)
        self.metrics = nn.ModuleDict({name: nn.ModuleDict(task.metrics) for name, task in self.tasks.items()})
        self.means = nn.ModuleDict()
        self._add_means(("train", "valid", "test"), ["loss", *(f"{name}/loss" for name in self.tasks)])
        self.window = _window(inference)
        self.postprocessing = self._postprocessing(postprocessing or {})
        self._loader_encodes = False
        self._made_in_validation: frozenset[str] = frozenset()
        self._without_targets: dict[str, frozenset[str]] = {}
        self._optimizer, self._lr_scheduler = optimizer, lr_scheduler

    def forward(self, source_BCZYX: Tensor) -> dict[str, Tensor]:
        """Logits per task for images that the network takes as they are, such as patches."""
        try:
            return self.network(source_BCZYX)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or not any(text in str(error) for text in SHAPE_ERRORS):
                raise
            raise ConfigError(
                f"model.backbone cannot take an image of shape {tuple(source_BCZYX.shape)} (batch, channel, space): "
                f"{error}. Choose sides that its strides divide (data.patch_shape in training, "
                "model.inference.roi_size in validation) and the channels of the source (raw_im_channels)."
            ) from error

    def setup(self, stage: str) -> None:
        """Have the loader's workers encode the targets of training patches, and see which splits have which targets."""
        datamodule = getattr(self.trainer, "datamodule", None)
        self._loader_encodes = hasattr(datamodule, "encoders")
        if datamodule is not None and self._loader_encodes:
            datamodule.encoders = {name: task.encoder for name, task in self.tasks.items() if task.encoder}
            datamodule.labels = self.labels
        self._made_in_validation = getattr(datamodule, "made_in_validation", frozenset())
        for split in SPLITS_OF_STAGE.get(stage, ()):
            self._without_targets[split] = frozenset(name for name in self.tasks if not self._may_have(split, [name]))

    @property
    def labels(self) -> frozenset[str]:
        """The targets whose pixels are the numbers of objects or classes: no fractions, nothing below 0."""
        return frozenset(name for name, task in self.tasks.items() if task.has_labels)

    def images_with(self, name: str, batch: Batch) -> Tensor:
        """The positions in the batch of the images that have a target; `batch[name]` holds the targets of these.

        Raises:
            ConfigError: The batch knows no such target.
        """
        present = batch.get(PRESENT, {})
        if name in present:
            there: Tensor = present[name]
            return there
        if name in batch:
            return torch.arange(len(batch[self.x_key]), device=batch[self.x_key].device)
        raise ConfigError(
            f"model.task_heads.{name}: the batch has no target '{name}' (it has {', '.join(batch)}). "
            f"Map it to a column of the manifest: data.columns.{name}."
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted sum of the heads' losses on a batch of patches."""
        logits = self(batch[self.x_key])
        return self._log_losses("train", logits, batch, batch_idx)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, dict[str, Tensor]]:
        """Losses and metrics on whole images; the logits, for previews."""
        return self._evaluation_step("valid", batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, dict[str, Tensor]]:
        """As validation_step, on the test split."""
        return self._evaluation_step("test", batch, batch_idx)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer of all trainable parameters and its schedule."""
        return make_optimizer("generator", self._optimizer, self._lr_scheduler, self.parameters())

    def _evaluation_step(self, split: str, batch: Batch, batch_idx: int) -> dict[str, dict[str, Tensor]]:
        logits = self.window(batch[self.x_key], self.forward)
        self._log_losses(split, logits, batch, batch_idx)
        unmeasured = self._without_targets.get(split, frozenset())
        if split == "valid":
            unmeasured |= self._made_in_validation  # hidden pixels alone are known, of which no metric is defined
        for name, task in self.tasks.items():
            if name in unmeasured:
                continue
            there = self.images_with(name, batch)
            if len(there):
                task.update_metrics(logits[name][there], batch[name], draw=self.postprocessing["prediction"][name])
            for metric_name, metric in task.metrics.items():
                self.log(f"{split}/{name}/{metric_name}", metric, on_step=False, on_epoch=True)
        return {"prediction": logits}

    def _log_losses(self, split: str, logits: Mapping[str, Tensor], batch: Batch, batch_idx: int) -> Tensor:
        zero = torch.zeros((), device=self.device)
        losses, unused = {}, zero
        for name, task in self.tasks.items():
            there = self.images_with(name, batch)
            if not len(there):  # a gradient of zero: DDP waits for one of every parameter
                unused = unused + 0 * logits[name].sum()
                if name not in self._without_targets.get(split, ()):
                    self._log_mean(split, f"{name}/loss", zero, num_images=0)
                continue
            target = batch[name]
            if split != "train" or not self._loader_encodes:
                target = self._encoded(task, batch, there.tolist())
            if split != "train" or batch_idx == 0:
                task.check_target(logits[name], target)
            losses[name] = task.compute_loss(logits[name][there], target)
            self._check_finite(f"{split}/{name}/loss", losses[name], batch, batch_idx)
            self._log_mean(split, f"{name}/loss", losses[name].detach(), num_images=len(there))
        total = self.weighting(losses) + unused
        self._check_finite(f"{split}/loss", total, batch, batch_idx)
        self._log_mean(split, "loss", total.detach(), num_images=len(batch[self.x_key]))
        return total

    def _encoded(self, task: Task, batch: Batch, images: Sequence[int]) -> Tensor:
        """What the loss compares, of the images that have the task's target: numbers in the batch."""
        source, target = batch[self.x_key], batch[task.name]
        spacing_um = batch.get("spacing_um") or [None] * len(source)
        paths = batch.get("path") or ["(no path)"] * len(source)
        scale = scale_of(tuple(source.shape[2:]), tuple(target.shape[2:]))
        spacings_um = [target_spacing(spacing_um[index], scale) for index in images]
        return task.encode(target, spacings_um, paths=[paths[index] for index in images])

    def _check_finite(self, name: str, loss: Tensor, batch: Batch, batch_idx: int) -> None:
        if not torch.isfinite(loss):
            role = "discriminator" if "discriminator" in name else "generator"
            clip = "trainer.gradient_clip_val" if self.automatic_optimization else f"model.gradient_clip_val.{role}"
            precision = self.trainer.precision
            rounded = "" if precision == "32-true" else f", or trainer.precision=32-true instead of {precision}"
            raise TrainingError(
                f"{name} is {loss.item()} at epoch {self.current_epoch}, batch {batch_idx}, of the images "
                f"{', '.join(batch.get('path', ['(no paths)']))}. Look at these images, lower "
                f"model.optimizer.{role}.lr, or set {clip}{rounded}."
            )

    def _may_have(self, split: str, targets: Collection[str]) -> bool:
        """Whether an image of a split may have all of these targets, as far as the data module knows."""
        may_have = getattr(getattr(self.trainer, "datamodule", None), "may_have", None)
        return may_have is None or bool(may_have(split, targets))

    def _add_means(self, splits: Sequence[str], names: Sequence[str]) -> None:
        self.means.update({f"{split}/{name}": MeanMetric() for split in splits for name in names})

    def _log_mean(self, split: str, name: str, value: Tensor, *, num_images: int) -> None:
        """Log the mean of a loss over the images of an epoch, on all ranks.

        Every rank counts the same names in the same order in every step, with no images where it has none: at the end
        of an epoch the ranks are averaged name by name in this order. The ranks may have different numbers of images,
        and Lightning's own mean rounds their average to a whole number; torchmetrics' does not.
        """
        mean = self.means[f"{split}/{name}"]
        assert isinstance(mean, MeanMetric)
        if not mean.update_called:  # Lightning needs to hear of it once an epoch, and takes 1 ms to hear
            self.log(f"{split}/{name}", mean, on_step=False, on_epoch=True, prog_bar=name == "loss")
        mean.update(value, num_images)

    def _postprocessing(
        self, chosen: Mapping[str, Mapping[str, Callable[..., Tensor]]]
    ) -> dict[str, dict[str, Callable[..., Tensor]]]:
        """The functions of the configuration, and the defaults for what it does not name."""
        defaults: dict[str, dict[str, Callable[..., Tensor]]] = {
            "input": dict.fromkeys([self.x_key, *self.tasks], rescale),
            "prediction": {name: default_prediction(task.kind, task.activation) for name, task in self.tasks.items()},
        }
        unknown = [part for part in chosen if part not in defaults]
        problems = [f"model.postprocessing.{part}: unknown, choose input or prediction" for part in unknown]
        for part, known in defaults.items():
            for key, function in (chosen.get(part) or {}).items():
                if key not in known:
                    problems.append(f"model.postprocessing.{part}.{key}: unknown, choose one of {', '.join(known)}")
                elif not callable(function):
                    problems.append(f"model.postprocessing.{part}.{key} is no function; add _partial_: true to it")
        if problems:
            raise ConfigError("model.postprocessing cannot be used:\n" + list_problems(problems))
        return {part: {**known, **(chosen.get(part) or {})} for part, known in defaults.items()}


def _window(inference: Mapping[str, Any] | None) -> SlidingWindow:
    settings = dict(inference or {})
    known = SlidingWindow.__dataclass_fields__
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ConfigError(f"model.inference.{unknown[0]}: unknown, choose one of {', '.join(known)}.")
    # four or eight times the work in every epoch; the evaluation of the checkpoint does it once
    return replace(SlidingWindow(**settings), augment=None)
