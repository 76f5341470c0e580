"""The metrics that a task gets without asking."""

from copy import deepcopy

from torchmetrics import Metric

from cyto_dl.metrics.instances import InstanceAP, InstanceF1, InstancePQ
from cyto_dl.metrics.intensity import NRMSE, PSNR, R2, AffinePSNR, Pearson
from cyto_dl.metrics.overlap import Dice, IoU
from cyto_dl.metrics.pooled import CountMetric, PooledMetric
from cyto_dl.metrics.similarity import SSIM


def default_metrics(kind: str, activation: str) -> dict[str, Metric]:
    """New metrics for a task, by the name they are logged under, the most telling first.

    Those of counts come twice: <name> is the mean over images, <name>_pooled is computed from the sum over images.

    Args:
        kind: "segmentation" (Dice, IoU), "instances" (AP at IoU 0.5, 0.75, 0.9 and mean of 0.5 to 0.95; F1 and
            panoptic quality at 0.5) or "regression" (Pearson, R2, PSNR, PSNR after an affine fit, SSIM, NRMSE).
        activation: The task's activation, which says how a segmentation becomes masks.
    """
    if kind == "segmentation":
        return _with_pooled({"dice": Dice(activation=activation), "iou": IoU(activation=activation)})
    if kind == "instances":
        return _with_pooled(
            {
                "ap50": InstanceAP(thresholds=[0.5]),
                "ap75": InstanceAP(thresholds=[0.75]),
                "ap90": InstanceAP(thresholds=[0.9]),
                "ap": InstanceAP(),
                "f1": InstanceF1(),
                "pq": InstancePQ(),
            }
        )
    return {
        "pearson": Pearson(),
        "r2": R2(),
        "psnr": PSNR(),
        "psnr_affine": AffinePSNR(),
        "ssim": SSIM(),
        "nrmse": NRMSE(),
    }


def _with_pooled(metrics: dict[str, CountMetric]) -> dict[str, Metric]:
    both: dict[str, Metric] = {}
    for name, metric in metrics.items():
        both |= {name: metric, f"{name}_pooled": PooledMetric(deepcopy(metric))}
    return both
