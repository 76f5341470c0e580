"""Super-resolution as a user does it: from two channels, imaged coarse and fine, to predictions in grey values."""

import numpy as np
import pandas as pd
import pytest

from cyto_dl.bundle import export_bundle, load_bundle
from cyto_dl.config import compose_experiment
from cyto_dl.data.image import read_image, write_image
from cyto_dl.train import train
from tests.test_train import overrides_for

FINE = {2: (128, 96), 3: (32, 64, 64)}
CHANNELS = ["raw_im_channels=2", "intensity_offset=100", "intensity_scale=200"]


@pytest.fixture
def twice_imaged(tmp_path):
    """Writes two-channel images of bright boxes, and the means of 2 pixels along each axis as their coarse images."""

    def make(spatial_dims):
        rng, rows = np.random.default_rng(0), []
        for index, split in enumerate(["train", "train", "valid", "test"]):
            fine = rng.normal(100, 10, (2, *FINE[spatial_dims]))
            fine[(0, *(slice(5 + index, -9),) * spatial_dims)] += 400
            fine[(1, *(slice(9, -5 - index),) * spatial_dims)] += 600
            halves = [part for size in FINE[spatial_dims] for part in (size // 2, 2)]
            coarse = fine.reshape(2, *halves).mean(axis=tuple(range(2, 2 + 2 * spatial_dims, 2)))
            row = {"split": split} | {name: f"{name}_{index}.ome.tif" for name in ("coarse", "fine")}
            for name, image, spacing in (("coarse", coarse, 0.2), ("fine", fine, 0.1)):
                pixels = image.clip(0).round().astype(np.uint16)
                write_image(tmp_path / row[name], pixels, spacing_um=(spacing,) * spatial_dims)
            rows.append(row)
        pd.DataFrame(rows).to_csv(tmp_path / "manifest.csv", index=False)
        return tmp_path

    return make


@pytest.mark.parametrize("experiment", ["im2im/superres", "im2im/gan_superres"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_predictions_of_every_channel_come_in_the_grey_values_of_the_finer_images(
    twice_imaged, tmp_path, experiment, spatial_dims
):
    folder = twice_imaged(spatial_dims)
    given = [*overrides_for(folder, experiment=experiment, spatial_dims=spatial_dims), *CHANNELS]
    columns = ["source_col=coarse", "target_col=fine"]
    metrics = train(compose_experiment([*given, *columns], output_dir=tmp_path / "run"))
    assert np.isfinite(metrics["test/fine/ssim"])

    bundle = load_bundle(export_bundle(tmp_path / "run", tmp_path / "bundle"))
    prediction = bundle.predict(read_image(folder / "coarse_3.ome.tif", spatial_dims=spatial_dims))["fine"]
    fine = read_image(folder / "fine_3.ome.tif", spatial_dims=spatial_dims).array.astype(float)
    assert prediction.shape == fine.shape
    # Two steps leave the network near interpolation, which is off at the boxes' borders and in the noise alone.
    assert np.abs(prediction - fine).mean() < 40
