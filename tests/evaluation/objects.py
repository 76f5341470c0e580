"""An experiment of kind "instances" whose network reads the objects off the image, so that its scores are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cyto_dl.data.image import write_image
from cyto_dl.inference.predictor import Predictor
from cyto_dl.model.instances import encode_instances
from tests.bundle.tiny import experiment, predictor_of

SHAPE = {2: (48, 64), 3: (8, 48, 64)}
BRIGHTNESS = 1000


def write_cells(folder: Path, spatial_dims: int = 2, *, changes: tuple[str, ...] = ("", "miss", "split")) -> Path:
    """Writes images of touching boxes, brighter towards their middle, and their labels; returns the manifest.

    Args:
        folder: Where.
        spatial_dims: 2 or 3.
        changes: One per image: what is wrong in the image, so that the network finds something else than is true.
            "miss": the first object is dark; "split": a dark line cuts the second; "empty": there is no object at all.
    """
    rows = []
    for number, change in enumerate(changes):
        labels = np.zeros(SHAPE[spatial_dims], np.uint16)
        for label, (y, x) in enumerate([(4, 4), (4, 18), (4, 32), (22, 4), (22, 18), (22, 40)], start=1):
            labels[..., y : y + 16, x : x + 14] = label
        seen = labels.copy()
        if change == "miss":
            seen[labels == 1] = 0
        elif change == "split":
            seen[labels == 2] = 7
            seen[..., 4:12, 18:32][labels[..., 4:12, 18:32] == 2] = 8
        elif change == "empty":
            seen[:] = labels[:] = 0
        raw = BRIGHTNESS * encode_instances(seen).sum(axis=0, keepdims=True) / 2
        write_image(folder / f"raw_{number}.ome.tif", raw.astype(np.uint16), spacing_um=None)
        write_image(folder / f"cells_{number}.ome.tif", labels[None], spacing_um=None)
        rows.append({"raw": f"raw_{number}.ome.tif", "cells": f"cells_{number}.ome.tif", "split": "test"})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def of_cells(manifest: Path | str, spatial_dims: int = 2) -> tuple[dict[str, Any], Predictor]:
    """The experiment and its predictor: half of the brightness is the foreground, the other half the distance."""
    config = experiment(manifest, spatial_dims)
    config["data"]["columns"] = {"raw": "raw", "cells": "cells"}
    reader = {"_target_": "cyto_dl.data.ReadImaged", "keys": ["raw", "cells"], "spatial_dims": spatial_dims}
    config["data"]["transforms"] = {
        "load": [reader],
        "preprocess": [
            {
                "_target_": "monai.transforms.ScaleIntensityRanged",
                "keys": "raw",
                **{"a_min": 0, "a_max": BRIGHTNESS, "b_min": 0, "b_max": 1},
            }
        ],
        "augment": [],
    }
    model = config["model"]
    model["backbone"] = {"_target_": "torch.nn.Identity"}
    head = {"_target_": "cyto_dl.model.heads.InstanceHead", "in_channels": 1, "spatial_dims": spatial_dims}
    model["task_heads"] = {"cells": {"head": head, "loss": {"_target_": "cyto_dl.model.losses.InstanceLoss"}}}
    decode = {"_target_": "cyto_dl.model.utils.postprocessing.instances", "_partial_": True}
    model["postprocessing"] = {"prediction": {"cells": decode}}
    predictor = predictor_of(config)
    convolution = predictor.network.heads["cells"].convolution
    with torch.no_grad():
        for channel, threshold in enumerate([0.25, 0.8]):
            convolution.weight[channel].fill_(100)
            convolution.bias[channel].fill_(-100 * threshold)
    return config, predictor
