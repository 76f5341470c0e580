"""From `model.optimizer` and `model.lr_scheduler` to what Lightning takes, one pair a role.

A role is whose weights are stepped: the generator, which every model has, and a GAN's discriminator.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cyto_dl.errors import ConfigError

Settings = Mapping[str, Any]


def optimizer_problems(roles: Sequence[str], optimizer: Settings | None, lr_scheduler: Settings | None) -> list[str]:
    """What is missing or cannot make an optimizer or a scheduler, by configuration key."""
    chosen = {"optimizer": optimizer, "lr_scheduler": lr_scheduler}
    return [problem for key, value in chosen.items() for role in roles for problem in _problems(key, role, value)]


def make_optimizer(
    role: str, optimizer: Settings, lr_scheduler: Settings, parameters: Iterable[nn.Parameter]
) -> OptimizerLRSchedulerConfig:
    """A role's optimizer of the trainable ones among `parameters`, and its schedule.

    ReduceLROnPlateau watches valid/loss unless its settings name another monitor.

    Raises:
        ConfigError: The optimizer or the scheduler does not take its arguments.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    made = _make(f"optimizer.{role}", optimizer[role], trainable)
    chosen = lr_scheduler[role]
    settings = dict(chosen) if isinstance(chosen, Mapping) else {"scheduler": chosen}
    scheduler = _make(f"lr_scheduler.{role}", settings["scheduler"], made)
    if isinstance(scheduler, ReduceLROnPlateau):
        settings.setdefault("monitor", "valid/loss")
    # what else the settings hold, the configuration says and Lightning checks
    return {"optimizer": made, "lr_scheduler": {**settings, "scheduler": scheduler}}  # type: ignore[typeddict-item]


def _problems(key: str, role: str, value: Settings | None) -> list[str]:
    maker = value.get(role) if isinstance(value, Mapping) else None
    if maker is None:
        return [f"model.{key}.{role} is missing"]
    if isinstance(maker, Mapping):
        maker = maker.get("scheduler") if key == "lr_scheduler" else None
    return [] if callable(maker) else [f"model.{key}.{role} makes no {key}; add _partial_: true to it"]


def _make(key: str, maker: Callable[..., Any], what: Any) -> Any:
    try:
        return maker(what)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.{key}: {error}. Correct its arguments.") from error
