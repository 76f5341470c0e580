"""A generator that a discriminator teaches what real images look like.

source -> backbone -> heads -> images --+-> losses of the heads ---------------------------+-> generator
                                        +-> discriminator(source, image) -> adversarial, --+
target ---------------------------------+                                   features
                                                                         -> real or not? ----> discriminator

Validation, test, prediction and the bundle know the generator only: they are those of MultiTaskIm2Im.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from typing import Any, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cyto_dl.errors import ConfigError
from cyto_dl.model.adversary import Adversary, Pairs
from cyto_dl.model.multitask import Batch, MultiTaskIm2Im
from cyto_dl.model.optimizers import make_optimizer
from cyto_dl.model.tasks import activate


class GAN(MultiTaskIm2Im):
    """Train a network for image-to-image tasks, with a discriminator for those that predict intensities.

    The discriminator judges the targets of all regression heads together, beside their source. Heads for masks and
    objects train by their own losses.
    """

    roles = ("generator", "discriminator")

    def __init__(
        self,
        *,
        discriminator: nn.Module | None = None,
        adversarial: Mapping[str, Any] | None = None,
        gradient_clip_val: Mapping[str, float | None] | None = None,
        **generator: Any,
    ) -> None:
        """Make the model of a configuration's `model` node.

        Args:
            discriminator: (source, image) -> per scale the features of each layer and last the scores, as
                cyto_dl.model.discriminators.MultiScalePatchDiscriminator gives them.
            adversarial: Arguments of Adversary.
            gradient_clip_val: {"generator": ..., "discriminator": ...}: largest norm of the gradients of each; none
                are clipped where it is null. It stands for trainer.gradient_clip_val, which knows one optimizer only.
            **generator: As of MultiTaskIm2Im; `optimizer` and `lr_scheduler` have a second entry `discriminator`.

        Raises:
            ConfigError: What is missing or does not fit, by configuration key.
        """
        super().__init__(**generator)
        if not isinstance(discriminator, nn.Module):
            what = "is missing" if discriminator is None else f"is a {type(discriminator).__name__}, no torch.nn.Module"
            raise ConfigError(f"model.discriminator {what}. Name one, e.g. {_EXAMPLE}.")
        self.judged = [name for name, task in self.tasks.items() if task.kind == "regression" and not task.encoder]
        if not self.judged:
            raise ConfigError(
                "model.task_heads has no head that predicts intensities, so there is nothing for model.discriminator "
                "to judge. Use cyto_dl.model.MultiTaskIm2Im, or add such a head."
            )
        self.automatic_optimization = False
        self.discriminator = discriminator
        self.adversary = Adversary(**_known("adversarial", adversarial, [each.name for each in fields(Adversary)]))
        self.gradient_clip_val = _known("gradient_clip_val", gradient_clip_val, self.roles)
        self._reported = (*self.adversary.reported, "generator/loss")
        self._add_means(["train"], self._reported)

    def setup(self, stage: str) -> None:
        """As of MultiTaskIm2Im, and see that there is something to judge.

        Raises:
            ConfigError: No training image has all targets that the discriminator judges together.
        """
        super().setup(stage)
        if stage == "fit" and not self._may_have("train", self.judged):
            raise ConfigError(
                f"no training image has all of the targets {', '.join(self.judged)}, which model.discriminator judges "
                "together. Fill in some rows of the manifest, or leave heads out of model.task_heads."
            )

    def configure_callbacks(self) -> list[Any]:
        """None of its own; this is where Lightning asks before it refuses the trainer's settings in its own words.

        Raises:
            ConfigError: trainer.gradient_clip_val, trainer.accumulate_grad_batches or a checkpoint's
                train_time_interval is set.
        """
        if self.trainer.gradient_clip_val:
            raise ConfigError(
                "trainer.gradient_clip_val clips one optimizer, and a GAN has two. Set "
                "model.gradient_clip_val.generator and model.gradient_clip_val.discriminator instead."
            )
        if self.trainer.accumulate_grad_batches != 1:
            raise ConfigError(
                "trainer.accumulate_grad_batches is not possible with the two optimizers of a GAN. "
                "Set data.batch_size instead."
            )
        checkpoints = self.trainer.checkpoint_callbacks
        if any(getattr(each, "_train_time_interval", None) is not None for each in checkpoints):
            raise ConfigError(
                "callbacks: with the two optimizers of a GAN, Lightning writes no checkpoint by train_time_interval. "
                "Set every_n_train_steps instead, e.g. callbacks.last.every_n_train_steps=500."
            )
        return []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step of the generator and one of the discriminator on a batch of patches; the generator's loss."""
        logits = self(batch[self.x_key])
        generator = self._log_losses("train", logits, batch, batch_idx)
        pairs = self._pairs(logits, batch)
        discriminator, values = None, dict.fromkeys(self._reported, torch.zeros((), device=self.device))
        if len(pairs.real):
            noise_std = self.adversary.noise_at(self.current_epoch + batch_idx / self.trainer.num_training_batches)
            verdict = self.adversary.judge(self.discriminator, pairs, noise_std=noise_std)
            generator, discriminator = generator + verdict.generator, verdict.discriminator
            self._check_finite("train/discriminator/loss", discriminator, batch, batch_idx)
            self._check_finite("train/generator/loss", generator, batch, batch_idx)
            values |= {**verdict.values, "generator/loss": generator.detach()}
        for name, value in values.items():
            self._log_mean("train", name, value, num_images=len(pairs.real))
        # The gradient goes to the named role alone. The generator steps before the discriminator's backward pass, so
        # that the loss scale of mixed precision, which the first step may change, is the second's from start to end.
        self._step("generator", generator, retain_graph=discriminator is not None)
        self._step("discriminator", discriminator)
        self._step_schedulers("step", self.global_step)
        return generator.detach()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradients, here, where mixed precision has taken its scale off them."""
        for role, each in zip(self.roles, self.trainer.optimizers, strict=True):
            limit = self.gradient_clip_val.get(role)
            if each is optimizer and limit is not None:
                nn.utils.clip_grad_norm_(self._parameters_of(role), limit)

    def on_train_epoch_end(self) -> None:
        """Step the schedules that count epochs or watch a metric of training, which is known now.

        Raises:
            ConfigError: The model does not report what a schedule watches.
        """
        self._step_schedulers("epoch", self.current_epoch + 1)
        self._step_plateaus(of_training=True)

    def on_validation_end(self) -> None:
        """Step the schedules that watch a metric of validation, which is known now.

        Raises:
            ConfigError: The model does not report what a schedule watches.
        """
        if not self.trainer.sanity_checking and self.trainer.state.fn == "fit":
            self._step_plateaus(of_training=False)

    def _step_plateaus(self, *, of_training: bool) -> None:
        for role, config in zip(self.roles, self.trainer.lr_scheduler_configs, strict=True):
            monitor = self._monitors[role]
            if isinstance(config.scheduler, ReduceLROnPlateau) and monitor.startswith("train/") == of_training:
                metrics = self.trainer.callback_metrics
                if monitor not in metrics:
                    raise ConfigError(
                        f"model.lr_scheduler.{role} watches '{monitor}', which the model does not report. "
                        f"Choose one of {', '.join(sorted(metrics))} as its monitor."
                    )
                config.scheduler.step(metrics[monitor])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """An optimizer and its schedule for the generator, and the same for the discriminator."""
        made, self._monitors = [], {}
        for role in self.roles:
            made.append(make_optimizer(role, self._optimizer, self._lr_scheduler, self._parameters_of(role)))
            settings = cast(dict[str, Any], made[-1]["lr_scheduler"])
            self._monitors[role] = settings.pop("monitor", None)  # Lightning does not watch it: on_validation_end does
        return made

    def _parameters_of(self, role: str) -> list[nn.Parameter]:
        chosen = role == "discriminator"
        return [
            parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and name.startswith("discriminator.") == chosen
        ]

    def _pairs(self, logits: Mapping[str, Tensor], batch: Batch) -> Pairs:
        """The images of a batch that have all targets that are judged."""
        positions = {name: self.images_with(name, batch) for name in self.judged}
        common = positions[self.judged[0]]
        for there in positions.values():
            common = common[torch.isin(common, there)]
        if not len(common):
            return Pairs(batch[self.x_key][:0], batch[self.x_key][:0], batch[self.x_key][:0])
        real = [batch[name][torch.isin(there, common)].float() for name, there in positions.items()]
        fake = [activate(logits[name][common], self.tasks[name].activation) for name in self.judged]
        sizes = {tuple(image.shape[2:]) for image in real}
        if len(sizes) > 1:
            raise ConfigError(
                f"the targets {', '.join(self.judged)} have the sizes {', '.join(map(str, sizes))}; the discriminator "
                "judges them together. Give them one size, or train the others in a model of their own."
            )
        source = _on_grid(batch[self.x_key][common].float(), tuple(real[0].shape[2:]))
        return Pairs(source, torch.cat(real, dim=1), torch.cat(fake, dim=1))

    def _step(self, role: str, loss: Tensor | None, *, retain_graph: bool = False) -> None:
        """One step of a role's optimizer along the gradient of a loss; none where no process has a loss."""
        parameters = self._parameters_of(role)
        index = self.roles.index(role)
        optimizer = self.trainer.optimizers[index]
        optimizer.zero_grad()
        if self._nobody_has(loss):
            return
        if loss is not None:
            with self._without_ddp():
                self.manual_backward(loss, inputs=parameters, retain_graph=retain_graph)
        self._average_gradients(parameters)
        if role == "generator":
            cast(list[LightningOptimizer], self.optimizers())[index].step()
        else:  # past Lightning's counter: one batch is one global step, as for every other model
            self.trainer.strategy.optimizer_step(optimizer, lambda: None)

    def _nobody_has(self, loss: Tensor | None) -> bool:
        """Whether no process has the loss; with gradients of zero an optimizer would still decay its weights."""
        if self.trainer.world_size == 1:
            return loss is None
        num_losses = torch.tensor(float(loss is not None), device=self.device)
        return not self.trainer.strategy.reduce(num_losses, reduce_op="sum")

    def _without_ddp(self) -> AbstractContextManager[None]:
        """DDP waits in every backward pass for the gradients of all parameters; here each has those of one role."""
        model = self.trainer.model
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    def _average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """The mean of the gradients over the processes; zero where one had nothing for the discriminator to judge."""
        if self.trainer.world_size == 1:
            return
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        flat = self.trainer.strategy.reduce(nn.utils.parameters_to_vector(gradients), reduce_op="mean")
        nn.utils.vector_to_parameters(flat, gradients)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient

    def _step_schedulers(self, interval: str, count: int) -> None:
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                continue
            if config.interval == interval and count % config.frequency == 0:
                config.scheduler.step()


def _on_grid(source: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The source on the target's pixels: the mean over Z beside a plane, interpolated where the sizes differ."""
    if source.ndim - 2 > len(shape):
        source = source.mean(dim=2)
    if source.shape[2:] == shape:
        return source
    finer = any(new > old for new, old in zip(shape, source.shape[2:], strict=True))
    linear = "bilinear" if len(shape) == 2 else "trilinear"
    return interpolate(source, size=shape, mode=linear if finer else "area")


def _known(key: str, given: Mapping[str, Any] | None, known: Sequence[str]) -> dict[str, Any]:
    unknown = sorted(set(given or {}) - set(known))
    if unknown:
        raise ConfigError(f"model.{key}.{unknown[0]}: unknown, choose one of {', '.join(known)}.")
    return dict(given or {})


_EXAMPLE = "{_target_: cyto_dl.model.discriminators.MultiScalePatchDiscriminator, ...}"
