"""The network that training fits, a bundle stores and a server runs: one backbone, one head per task."""

from collections.abc import Mapping

from torch import Tensor, nn


class TaskNetwork(nn.Module):
    """A backbone whose features every head turns into the logits of its task."""

    def __init__(self, backbone: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        """Join a backbone and its heads.

        Args:
            backbone: B C (Z) Y X -> B n (Z) Y X.
            heads: Task name -> module from features to logits.
        """
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(dict(heads))

    def forward(self, source_BCZYX: Tensor) -> dict[str, Tensor]:
        """Logits per task, before any activation."""
        features = self.backbone(source_BCZYX)
        return {name: head(features) for name, head in self.heads.items()}
