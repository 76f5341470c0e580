"""A tiny experiment with its checkpoint, as training would leave it, made in milliseconds."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cyto_dl.bundle.build import build_predictor, document_from_config
from cyto_dl.data.image import write_image
from cyto_dl.inference.predictor import Predictor

ROI = {2: [32, 32], 3: [8, 16, 16]}
SHAPE = {2: (40, 56), 3: (10, 24, 28)}
SPACING_UM = {2: (0.2, 0.2), 3: (0.5, 0.2, 0.2)}
POSTPROCESSING = "cyto_dl.model.utils.postprocessing"


def write_images(folder: Path, spatial_dims: int = 2, *, splits: tuple[str, ...] = ("train", "valid", "test")) -> Path:
    """Writes images of a bright box in noise with their masks; returns the manifest."""
    rng = np.random.default_rng(0)
    rows = []
    for number, split in enumerate(splits):
        raw = rng.normal(200, 20, (1, *SHAPE[spatial_dims]))
        raw[..., 8 : 16 + number, 6:18] += 500
        spacing_um = SPACING_UM[spatial_dims]
        write_image(folder / f"raw_{number}.ome.tif", raw.astype(np.uint16), spacing_um=spacing_um)
        write_image(folder / f"seg_{number}.ome.tif", (raw > 450).astype(np.uint8), spacing_um=spacing_um)
        rows.append({"raw": f"raw_{number}.ome.tif", "seg": f"seg_{number}.ome.tif", "split": split})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def experiment(
    manifest: Path | str, spatial_dims: int = 2, *, preprocess: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """A segmentation head and a regression head on one convolution; `preprocess` comes before normalisation."""
    head = {"_target_": "cyto_dl.model.heads.ConvolutionHead", "in_channels": 4, "out_channels": 1}
    return {
        "experiment_name": "tiny",
        "run_name": "tiny",
        "seed": 1,
        "spatial_dims": spatial_dims,
        "raw_im_channels": 1,
        "data": {
            "_target_": "cyto_dl.data.DataframeDatamodule",
            "path": str(manifest),
            "split_column": "split",
            "columns": {"raw": "raw", "seg": "seg", "dist": "raw"},
            "transforms": {
                "load": [
                    {
                        "_target_": "cyto_dl.data.ReadImaged",
                        "keys": ["raw", "seg", "dist"],
                        "spatial_dims": spatial_dims,
                    }
                ],
                "preprocess": [
                    *(preprocess or []),
                    {"_target_": "monai.transforms.NormalizeIntensityd", "keys": ["raw", "dist"]},
                    {"_target_": "monai.transforms.AsDiscreted", "keys": "seg", "threshold": 0.5},
                ],
                "augment": [{"_target_": "monai.transforms.RandFlipd", "keys": ["raw", "seg", "dist"], "prob": 0.5}],
            },
        },
        "model": {
            "_target_": "cyto_dl.model.MultiTaskIm2Im",
            "x_key": "raw",
            "backbone": {
                "_target_": f"torch.nn.Conv{spatial_dims}d",
                "in_channels": 1,
                "out_channels": 4,
                "kernel_size": 3,
                "padding": 1,
            },
            "task_heads": {
                "seg": {
                    "head": {**head, "spatial_dims": spatial_dims},
                    "loss": {"_target_": "monai.losses.DiceCELoss", "sigmoid": True},
                },
                "dist": {"head": {**head, "spatial_dims": spatial_dims}, "loss": {"_target_": "torch.nn.MSELoss"}},
            },
            "postprocessing": {
                "prediction": {"seg": {"_target_": f"{POSTPROCESSING}.sigmoid_rescale", "_partial_": True}}
            },
            "inference": {"roi_size": ROI[spatial_dims]},
        },
    }


def unet(spatial_dims: int) -> dict[str, Any]:
    """A backbone like those of the shipped experiments, as small as it can be."""
    return {
        "_target_": "monai.networks.nets.DynUNet",
        "spatial_dims": spatial_dims,
        "in_channels": 1,
        "out_channels": 4,
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [4, 4, 8],
    }


def predictor_of(config: dict[str, Any], *, seed: int = 0) -> Predictor:
    """The predictor of an experiment, with weights that are random and the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_predictor(document_from_config(config))


def checkpoint_of(config: dict[str, Any], path: Path, *, seed: int = 0) -> Path:
    """Writes the checkpoint of an experiment."""
    weights = predictor_of(config, seed=seed).network.state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"state_dict": {f"network.{name}": value for name, value in weights.items()}, "config": config}
    torch.save({**content, "epoch": 3, "global_step": 12}, path)
    return path
