"""One task: what a head predicts, what its loss compares, and how its output is read.

model.task_heads.<name> -> head (features -> logits), loss(logits, target), metrics(activated logits, target)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from cyto_dl.errors import ConfigError, list_problems
from cyto_dl.metrics import default_metrics

Activation = Literal["identity", "sigmoid", "softmax"]
Kind = Literal["segmentation", "regression", "instances"]
Encoder = Callable[[Tensor, Sequence[float] | None], Tensor]  # target C (Z) Y X, pixel size -> what the loss compares

ACTIVATIONS = ("identity", "sigmoid", "softmax")
KINDS = ("segmentation", "regression", "instances")


@dataclass(frozen=True)
class Task:
    """What one head predicts, and how it is trained and judged."""

    name: str
    head: nn.Module
    loss: nn.Module
    metrics: dict[str, Metric]
    activation: Activation

    @property
    def kind(self) -> Kind:
        """What the head says of itself; else segmentation for a probability, regression for an intensity."""
        kind: Kind | None = getattr(self.head, "kind", None)
        if kind is not None:
            return kind
        return "regression" if self.activation == "identity" else "segmentation"

    @property
    def has_labels(self) -> bool:
        """Whether every pixel of a target of one channel is the number of an object or of a class."""
        return self.kind == "instances" or (self.kind == "segmentation" and self.activation == "softmax")

    @property
    def encoder(self) -> Encoder | None:
        """The head's `encode`, where what is learnt is not the target itself."""
        return getattr(self.head, "encode", None)

    def encode(self, target: Tensor, spacing_um: Sequence[Sequence[float] | None], *, paths: Sequence[str]) -> Tensor:
        """A batch of targets as the loss compares them.

        Args:
            target: B C (Z) Y X, as the manifest names it.
            spacing_um: The pixel size of each target.
            paths: The source of each image, for messages.

        Raises:
            ConfigError: The head cannot learn such a target.
        """
        if self.encoder is None:
            return target
        encoded = []
        for one, size, path in zip(target, spacing_um, paths, strict=True):
            try:
                encoded.append(self.encoder(one.cpu(), size))
            except ValueError as error:
                raise ConfigError(
                    f"{path}: the target '{self.name}' of this image does not suit its {type(self.head).__name__}: "
                    f"{error}. Look at the column that data.columns.{self.name} names and at "
                    "data.transforms.preprocess, which must keep labels as they are."
                ) from error
        return torch.stack(encoded).to(target.device)

    def compute_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            logits: B C (Z) Y X, the head's output before its activation.
            target: Like logits, or with one channel of class indices where the loss is over classes.

        Raises:
            ConfigError: The head's output and its target do not fit together.
        """
        if self._compares_pixels and not self._fits(logits, target):
            raise self._mismatch(logits, target)
        logits = logits.float()  # half precision is for the network; sums over pixels need single
        if isinstance(self.loss, nn.CrossEntropyLoss) and target.shape[1] == 1:
            target = target[:, 0].long()  # torch takes class indices without a channel axis
        try:
            return self.loss(logits, target)
        except (ValueError, AssertionError, RuntimeError) as error:
            if logits.shape == target.shape:
                raise
            raise self._mismatch(logits, target) from error

    def update_metrics(self, logits: Tensor, target: Tensor, *, draw: Callable[[Tensor], Tensor]) -> None:
        """Add one batch to the metrics, which see the output in the target's own units.

        Args:
            logits: B C (Z) Y X.
            target: B C (Z) Y X, as the manifest names it.
            draw: The task's postprocessing, which makes the labels that instances are compared by.
        """
        if self.kind == "instances":
            output = torch.stack([draw(one).long() for one in logits]).to(target.device)
        else:
            output = activate(logits, self.activation)
        for metric in self.metrics.values():
            metric.update(output, target)

    def check_target(self, logits: Tensor, target: Tensor) -> None:
        """Refuse a target that a loss over probabilities would silently misread.

        Raises:
            ConfigError: The target is not within 0..1 for a sigmoid, or not within the classes for a softmax.
        """
        if self.kind == "regression" or target.numel() == 0:
            return
        indices = self.activation == "softmax" and target.shape[1] == 1
        highest = logits.shape[1] - 1 if indices else 1
        low, high = target.min().item(), target.max().item()
        if low < 0 or high > highest:
            raise ConfigError(
                f"model.task_heads.{self.name}: the target '{self.name}' has values from {low:g} to {high:g}, "
                f"but its {self.activation} predicts 0..{highest}. Make the target a mask or classes in "
                f"data.transforms.preprocess (for example monai.transforms.AsDiscreted(keys={self.name}, "
                "threshold=0.5)), give the head more channels, or use a loss for intensities such as torch.nn.MSELoss."
            )

    @property
    def _compares_pixels(self) -> bool:
        """Whether the loss compares output and target pixel by pixel; a user's need not, nor that of a head's codes."""
        family = type(self.loss).__module__.split(".")[0]
        return family in ("torch", "monai") or (family == "cyto_dl" and self.encoder is None)

    def _fits(self, logits: Tensor, target: Tensor) -> bool:
        same_size = logits.shape[0] == target.shape[0] and logits.shape[2:] == target.shape[2:]
        classes = self.activation == "softmax" and target.ndim == logits.ndim and target.shape[1] == 1
        return same_size and (logits.shape[1] == target.shape[1] or classes)

    def _mismatch(self, logits: Tensor, target: Tensor) -> ConfigError:
        return ConfigError(
            f"model.task_heads.{self.name}: the head's output has shape {tuple(logits.shape)} and its target "
            f"'{self.name}' has shape {tuple(target.shape)} (batch, channel, space), which {type(self.loss).__name__} "
            "cannot compare. Change the channels of the backbone or of "
            f"model.task_heads.{self.name}.head (out_channels), the head's scale, "
            f"or the target that data.columns.{self.name} names. A target of class indices needs a loss over classes "
            f"(model.task_heads.{self.name}.loss: softmax and to_onehot_y true)."
        )


def build_tasks(task_heads: Mapping[str, Mapping[str, Any]]) -> dict[str, Task]:
    """Tasks from `model.task_heads`: {name: {head, loss, metrics}} with instantiated modules.

    The activation is the head's own if it has one, else it is read off the loss (see `activation_of_loss`).
    Without `metrics`, a task gets those of its kind (`cyto_dl.metrics.default_metrics`).

    Raises:
        ConfigError: No task, a name that cannot be used, a head or a loss that is missing; all problems at once.
    """
    if not task_heads:
        raise ConfigError("model.task_heads is empty. Name at least one task: {seg: {head: ..., loss: ...}}.")
    problems: list[str] = []
    for name, task in task_heads.items():
        problems += _problems(name, task)
    if problems:
        raise ConfigError("model.task_heads cannot be used:\n" + list_problems(problems))
    return {name: _build_task(name, task) for name, task in task_heads.items()}


def activate(logits: Tensor, activation: str) -> Tensor:
    """The head's output in the target's own units, float32: probabilities or intensities.

    Args:
        logits: B C (Z) Y X.
        activation: "identity", "sigmoid", or "softmax" (over channels).
    """
    logits = logits.float()
    if activation == "sigmoid":
        return torch.sigmoid(logits)
    if activation == "softmax":
        return torch.softmax(logits, dim=1)
    return logits


def activation_of_loss(loss: nn.Module) -> Activation | None:
    """The activation that a loss applies to logits; None where it has the option and it is switched off.

    MONAI's losses say it by `sigmoid` and `softmax` (at any depth: DiceCELoss holds a DiceLoss), FocalLoss by
    `use_softmax`; torch's BCEWithLogitsLoss and CrossEntropyLoss by what they are. Every other loss: identity.
    """
    parts = list(loss.modules())
    activation: Activation
    for activation in ("sigmoid", "softmax"):
        if any(getattr(part, activation, False) is True for part in parts):
            return activation
    if any(hasattr(part, "sigmoid") and hasattr(part, "softmax") for part in parts):
        return None
    for part in parts:
        if hasattr(part, "use_softmax"):
            return "softmax" if part.use_softmax else "sigmoid"
        if isinstance(part, nn.CrossEntropyLoss):
            return "softmax"
        if isinstance(part, nn.BCEWithLogitsLoss):
            return "sigmoid"
    return "identity"


def _build_task(name: str, task: Mapping[str, Any]) -> Task:
    head, loss = task["head"], task["loss"]
    activation: Activation = getattr(head, "activation", None) or activation_of_loss(loss) or "identity"
    task_without_metrics = Task(name, head, loss, {}, activation)
    metrics = task.get("metrics")
    if metrics is None:
        metrics = default_metrics(task_without_metrics.kind, activation)
    return replace(task_without_metrics, metrics=dict(metrics))


def _problems(name: str, task: Mapping[str, Any]) -> list[str]:
    key = f"model.task_heads.{name}"
    if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
        return [f"{key}: '{name}' cannot name a task; use letters, digits and _ and no word of torch's modules"]
    if not isinstance(task, Mapping):
        return [f"{key} is a {type(task).__name__}; it must be a mapping with head and loss"]
    problems = [f"{key}.{unknown}: unknown, choose head, loss or metrics" for unknown in set(task) - _TASK_KEYS]
    for part in ("head", "loss"):
        if task.get(part) is None:
            problems.append(f"{key}.{part} is missing")
        elif not isinstance(task[part], nn.Module):
            problems.append(f"{key}.{part} is a {type(task[part]).__name__}; it must be a torch.nn.Module")
    kind = getattr(task.get("head"), "kind", None)
    if kind is not None and kind not in KINDS:
        problems.append(f"{key}.head.kind is {kind!r}; choose one of {', '.join(KINDS)}")
    metrics = task.get("metrics") or {}
    problems += [
        f"{key}.metrics.{metric} is a {type(value).__name__}; it must be a torchmetrics.Metric"
        for metric, value in metrics.items()
        if not isinstance(value, Metric)
    ]
    return problems or _activation_problems(key, task["head"], task["loss"])


def _activation_problems(key: str, head: nn.Module, loss: nn.Module) -> list[str]:
    activation = getattr(head, "activation", None)
    if activation is not None and activation not in ACTIVATIONS:
        return [f"{key}.head.activation is {activation!r}; choose one of {', '.join(ACTIVATIONS)}"]
    if activation is None and activation_of_loss(loss) is None:
        return [
            f"{key}.loss: {type(loss).__name__} has sigmoid and softmax both false, so it is not known how to read "
            f"the head's output. Set {key}.loss.sigmoid or .softmax to true, or {key}.head.activation"
        ]
    return []


_TASK_KEYS = {"head", "loss", "metrics"}
