"""A small model with dropout, and trainers that run it."""

from functools import partial

import lightning
import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss
from torch import nn
from torch.utils.data import DataLoader

from cyto_dl.model import MultiTaskIm2Im
from cyto_dl.model.heads import ConvolutionHead
from cyto_dl.model.utils import postprocessing


@pytest.fixture
def make_model():
    """Makes a model of two tasks, seg and dna, with dropout."""

    def make(spatial_dims=2, **arguments):
        convolution, dropout = (nn.Conv2d, nn.Dropout2d) if spatial_dims == 2 else (nn.Conv3d, nn.Dropout3d)
        heads = {
            "seg": {"head": ConvolutionHead(4, 1, spatial_dims=spatial_dims), "loss": DiceCELoss(sigmoid=True)},
            "dna": {"head": ConvolutionHead(4, 1, spatial_dims=spatial_dims), "loss": nn.MSELoss()},
        }
        settings = {
            "x_key": "raw",
            "backbone": nn.Sequential(convolution(1, 4, 3, padding=1), dropout(0.5)),
            "task_heads": heads,
            "optimizer": {"generator": partial(torch.optim.AdamW, lr=0.01)},
            "lr_scheduler": {"generator": partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=4)},
            "postprocessing": {"prediction": {"seg": partial(postprocessing.connected_components, min_size=4)}},
            "inference": {"roi_size": [16] * spatial_dims},
        }
        return MultiTaskIm2Im(**{**settings, **arguments})

    return make


@pytest.fixture
def loader(blobs):
    """Makes a loader of images of blobs: raw, seg (a mask) and dna (the image in other units)."""

    def make(spatial_dims=2, *, num_images=4, folder="data", patch=None, spacing_um=None, batch_size=1):
        samples = []
        for seed in range(num_images):
            raw, labels = (array.astype(np.float32)[None] for array in blobs(spatial_dims, seed=seed))
            sample = {"raw": raw / 1000, "seg": np.float32(labels > 0), "dna": raw / 500 - 1}
            if patch:
                sample = {key: array[(slice(None), *[slice(0, patch)] * spatial_dims)] for key, array in sample.items()}
            samples.append({**sample, "path": f"/{folder}/{seed}/cell.ome.tif", "spacing_um": spacing_um})
        return DataLoader(samples, batch_size=batch_size, collate_fn=_collate)

    return make


@pytest.fixture
def make_trainer(tmp_path):
    def make(*callbacks, **arguments):
        settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        settings |= {"max_epochs": 1, "num_sanity_val_steps": 0, "default_root_dir": tmp_path}
        settings |= {"enable_checkpointing": any("Checkpoint" in type(callback).__name__ for callback in callbacks)}
        return lightning.Trainer(**{**settings, **arguments}, callbacks=list(callbacks))

    return make


def _collate(samples):
    arrays = {key: torch.from_numpy(np.stack([sample[key] for sample in samples])) for key in ("raw", "seg", "dna")}
    return arrays | {key: [sample[key] for sample in samples] for key in ("path", "spacing_um")}
