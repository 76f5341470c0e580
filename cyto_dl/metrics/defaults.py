"""The metrics that a task gets without asking."""

from cyto_dl.metrics.intensity import PSNR, R2, Pearson
from cyto_dl.metrics.overlap import Dice, IoU
from cyto_dl.metrics.per_image import PerImageMetric
from cyto_dl.metrics.similarity import SSIM


def default_metrics(kind: str, activation: str) -> dict[str, PerImageMetric]:
    """New metrics for a task, by the name they are logged under.

    Args:
        kind: "segmentation" (Dice, IoU) or "regression" (Pearson, SSIM, PSNR, R2).
        activation: The task's activation, which says how a segmentation becomes masks.
    """
    if kind == "segmentation":
        return {"dice": Dice(activation=activation), "iou": IoU(activation=activation)}
    return {"pearson": Pearson(), "ssim": SSIM(), "psnr": PSNR(), "r2": R2()}
