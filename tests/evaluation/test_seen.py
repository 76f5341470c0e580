"""What evaluated images are like is said as the fingerprint of prepared data says it."""

import json

import numpy as np
import pandas as pd
import pytest

from cyto_dl.data.image import read_image
from cyto_dl.data.prepare import prepare_data
from cyto_dl.evaluation.seen import describe_seen, look_at
from tests.bundle.tiny import write_images


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_images_are_described_as_their_fingerprint_describes_them(tmp_path, spatial_dims):
    manifest = write_images(tmp_path, spatial_dims, splits=("train", "train", "valid", "test"))
    settings = {"source_col": "raw", "target_cols": ["seg"], "spatial_dims": spatial_dims}
    fingerprint = prepare_data(manifest, tmp_path / "prepared", **settings)["columns"]["raw"]
    seen = describe_seen([look_at(read_image(path, spatial_dims=spatial_dims)) for path in _paths(manifest, "train")])
    for key in ("num_images", "dtypes", "num_channels", "size"):
        assert seen[key] == fingerprint[key]
    assert seen["spacing_um"]["median"] == pytest.approx(fingerprint["spacing_um"]["median"])
    for name in ("mean", "std", "p1", "p50", "p99"):
        assert seen["intensity"][name] == pytest.approx(fingerprint["intensity"][name], rel=0.05)  # of some pixels
    json.dumps(seen, allow_nan=False)


def test_images_without_a_pixel_size_have_none_and_large_ones_are_sampled(tmp_path):
    large = tmp_path / "large.npy"
    np.save(large, np.arange(1 << 20, dtype=np.float32).reshape(1, 1024, 1024))
    image = look_at(read_image(large, spatial_dims=2))
    assert len(image.values) <= 4096 + 1
    assert describe_seen([image])["spacing_um"] is None
    assert describe_seen([image])["intensity"]["p50"] == pytest.approx(1 << 19, rel=0.01)  # evenly spread


def _paths(manifest, split):
    table = pd.read_csv(manifest)
    return [manifest.parent / name for name in table.loc[table["split"] == split, "raw"]]
