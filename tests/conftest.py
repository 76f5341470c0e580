"""Fixtures that tests of several rooms share: images of blobs with known masks, manifests that list them."""

import sys
from collections.abc import Callable
from pathlib import Path

import absl.logging
import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import settings

# How long an example takes depends on who else uses the machine; and a test that passed passes again.
settings.register_profile("untimed", deadline=None, derandomize=True)
settings.load_profile("untimed")

# absl (openvino and tensorboard import it) holds on to the stderr of its import, and closes it when Hydra sets logging
# up: inside a test that is pytest's own capture, without which every later test fails. The real stderr it leaves alone.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__

PIXELS = {2: (64, 64), 3: (16, 32, 32)}  # as small as a U-Net with two halvings and a patch of half the size allow


@pytest.fixture(autouse=True)
def environment_without_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own MLflow and S3 settings must neither help nor break a test."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def blobs() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Makes an image of bright balls in noise, (Z)YX uint16, and its labels, (Z)YX uint16 (0 is background)."""

    def make(spatial_dims: int = 2, *, seed: int = 0, num_blobs: int = 4) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        shape = PIXELS[spatial_dims]
        grid = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"))
        labels = np.zeros(shape, np.uint16)
        for label in range(1, num_blobs + 1):
            center = np.array([rng.integers(size // 4, 3 * size // 4 + 1) for size in shape])
            radius = rng.integers(min(shape) // 6, min(shape) // 4 + 1)
            distance = np.linalg.norm(grid - center.reshape(-1, *[1] * spatial_dims), axis=0)
            labels[(distance <= radius) & (labels == 0)] = label
        raw = rng.normal(200, 20, shape) + 600 * (labels > 0)
        return raw.astype(np.uint16), labels

    return make


@pytest.fixture
def manifest_folder(tmp_path: Path, blobs: Callable[..., tuple[np.ndarray, np.ndarray]]) -> Callable[..., Path]:
    """Writes images of blobs and `manifest.csv` (columns raw, seg, split); returns the folder that holds them.

    `scale`: pixels of seg per pixel of raw along each axis. `project_targets`: seg is one plane, the maximum along Z.
    """

    def make(
        spatial_dims: int = 2,
        *,
        train: int = 2,
        valid: int = 1,
        test: int = 1,
        scale: int = 1,
        project_targets: bool = False,
    ) -> Path:
        folder = tmp_path / f"blobs_{spatial_dims}d"
        folder.mkdir()
        rows = []
        for index, split in enumerate(["train"] * train + ["valid"] * valid + ["test"] * test):
            raw, labels = blobs(spatial_dims, seed=index)
            labels = np.kron(labels, np.ones((scale,) * spatial_dims, labels.dtype))
            labels = labels.max(axis=0) if project_targets else labels
            for name, image in {"raw": raw, "seg": labels}.items():
                tifffile.imwrite(folder / f"{name}_{index}.tif", image, metadata={"axes": "ZYX"[-image.ndim :]})
            rows.append({"raw": f"raw_{index}.tif", "seg": f"seg_{index}.tif", "split": split})
        pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
        return folder

    return make
