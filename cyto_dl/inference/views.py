"""Test-time augmentation: the mean of what a network says of a window seen from several sides.

    windows -> mirrored, turned -> network -> turned back, mirrored back -> mean of the logits

Logits, because whatever reads a head's output (activation, blending, undoing of geometry, decoding) takes logits: what
they go on with is of the same kind with and without augmentation. Their mean is the geometric mean of the odds, so
that one view that is certain weighs more than one that does not know.

Views are made of the windows, whose sides the network's strides divide. Mirroring the whole image instead would shift
the output of a head that halves an image of odd size by half a pixel.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from cyto_dl.errors import ConfigError

Network = Callable[[Tensor], Mapping[str, Tensor]]

AUGMENTATIONS = ("flips", "rotations")


@dataclass(frozen=True)
class _View:
    """A window mirrored along some of its last two axes, and then, or not, with these two exchanged.

    Every flip and right-angle rotation in the plane is one of the eight. Z is left as it is: it has a direction in a
    microscope, from the objective into the sample.
    """

    mirrored: tuple[int, ...]
    exchanged: bool

    def of(self, windows: Tensor) -> Tensor:
        seen = windows.flip(self.mirrored)
        return seen.transpose(-1, -2).contiguous() if self.exchanged else seen

    def undone(self, logits: Tensor) -> Tensor:
        return (logits.transpose(-1, -2) if self.exchanged else logits).flip(self.mirrored)


_FLIPS = tuple(_View(mirrored, exchanged=False) for mirrored in ((), (-1,), (-2,), (-2, -1)))
_VIEWS = {
    "flips": _FLIPS,  # 4 views
    "rotations": (*_FLIPS, *(_View(flip.mirrored, exchanged=True) for flip in _FLIPS)),  # 8 views
}


def num_views(augment: str | None) -> int:
    """How often a network is run for each window."""
    return len(_VIEWS[augment]) if augment else 1


def averaged_over_views(network: Network, augment: str) -> Network:
    """A network that gives the mean of a network's logits over several views of each window.

    Args:
        network: From windows B C (Z) Y X to {head: logits}; a head may have another scale than its window, or no Z.
        augment: "flips" along Y and X (4 views), or "rotations": these and their right-angle rotations (8 views). A
            window of height 32 and width 48 is then also seen with height 48 and width 32.

    Raises:
        ConfigError: By the network that is returned: a head scales Y and X differently, so that it cannot be turned.
    """

    def averaged(windows: Tensor) -> dict[str, Tensor]:
        views = _VIEWS[augment]
        mean: dict[str, Tensor] = {}
        for view in views:
            for head, logits in network(view.of(windows)).items():
                part = view.undone(logits).float() / len(views)
                if head in mean and part.shape != mean[head].shape:
                    raise ConfigError(
                        f"model.inference.augment is rotations, but the output of model.task_heads.{head} has another "
                        f"shape when its window is turned: {tuple(part.shape[2:])} px, {tuple(mean[head].shape[2:])} "
                        "px otherwise. Use flips."
                    )
                mean[head] = mean[head] + part if head in mean else part
        return mean

    return averaged
