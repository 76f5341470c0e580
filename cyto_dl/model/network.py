"""The network that training fits, a bundle stores and a server runs: one backbone, one head per task."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

# With the channels of a pixel side by side in memory, a step of training costs 17 % less on a CPU in single precision
# and 13 to 28 % less in bfloat16, 2-D and 3-D (docs/lab-notebook.md, 2026-11-22); tensor cores want it, too.
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
# Instance normalisation goes through memory channel by channel: there it costs 7 to 60 % more, in all these cases.
_WANTS_CHANNELS_FIRST = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


class TaskNetwork(nn.Module):
    """A backbone whose features every head turns into the logits of its task."""

    def __init__(self, backbone: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        """Join a backbone and its heads.

        Args:
            backbone: B C (Z) Y X -> B n (Z) Y X.
            heads: Task name -> module from features to logits; from (features, source) if it `sees_source`.
        """
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(dict(heads))
        if any(isinstance(part, _WANTS_CHANNELS_FIRST) or _breaks_channels_last(part) for part in self.modules()):
            return
        for parameter in self.parameters():
            if parameter.ndim in _CHANNELS_LAST:
                parameter.data = parameter.data.contiguous(memory_format=_CHANNELS_LAST[parameter.ndim])

    def forward(self, source_BCZYX: Tensor) -> dict[str, Tensor]:
        """Logits per task, before any activation."""
        features = self.backbone(source_BCZYX)
        return {
            name: head(features, source_BCZYX) if getattr(head, "sees_source", False) else head(features)
            for name, head in self.heads.items()
        }

    def only(self, heads: Sequence[str]) -> "TaskNetwork":
        """The same network with these heads; the others are not computed."""
        return TaskNetwork(self.backbone, {name: self.heads[name] for name in heads})


def _breaks_channels_last(part: nn.Module) -> bool:
    """Whether a backward pass with channels last may write beyond its memory and end the process.

    torch 2.13 on a CPU does so for strided convolutions of one pixel with 2 to 15 channels, such as the shortcuts of
    narrow residual networks (docs/lab-notebook.md, 2026-11-22).
    """
    if not isinstance(part, nn.Conv2d | nn.Conv3d):
        return False
    return max(part.kernel_size) == 1 and max(part.stride) > 1 and part.in_channels < 16


class Ensemble(nn.Module):
    """Several trainings of one network as one: the mean of their logits.

    Of logits and not of probabilities, so that what reads a head's output reads that of an ensemble as well.
    """

    def __init__(self, members: Iterable[TaskNetwork]) -> None:
        """Join networks that have the same heads."""
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def heads(self) -> Iterable[str]:
        """The names of the heads."""
        return self._member(0).heads

    def only(self, heads: Sequence[str]) -> "Ensemble":
        """The same networks with these heads; the others are not computed."""
        return Ensemble(self._member(index).only(heads) for index in range(len(self.members)))

    def forward(self, source_BCZYX: Tensor) -> dict[str, Tensor]:
        """Mean logits per task, before any activation."""
        outputs = [member(source_BCZYX) for member in self.members]
        return {name: torch.stack([output[name] for output in outputs]).mean(dim=0) for name in self.heads}

    def _member(self, index: int) -> TaskNetwork:
        member = self.members[index]
        assert isinstance(member, TaskNetwork)
        return member
