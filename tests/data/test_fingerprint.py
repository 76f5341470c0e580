"""The fingerprint says what the images are like, in plain numbers."""

import json

import numpy as np
import pytest
import tifffile

from cyto_dl.data.check import describe_rows
from cyto_dl.data.fingerprint import fingerprint
from cyto_dl.data.image import write_image


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_intensities_sizes_and_pixel_sizes_are_those_of_the_images(tmp_path, spatial_dims):
    rng = np.random.default_rng(0)
    rows = []
    arrays = [rng.normal(1000, 100, (2, *[20 + 2 * number] * spatial_dims)).astype(np.float32) for number in range(3)]
    for number, array in enumerate(arrays):
        path = tmp_path / f"{number}.ome.tif"
        write_image(path, array, spacing_um=[0.1 * (number + 1)] * spatial_dims)
        rows.append({"raw": str(path), "row": f"m.csv:{number}"})
    reads = {"raw": {"spatial_dims": spatial_dims, "num_channels": 2}}
    found, problems = fingerprint(describe_rows(rows, reads)[0], reads)
    assert problems == []
    raw = found["columns"]["raw"]
    pixels = np.concatenate([array.ravel() for array in arrays])
    assert found["num_images"] == 3
    assert raw["dtypes"] == {"float32": 3}
    assert raw["num_channels"] == [2]
    assert raw["size"]["min"] == [20] * spatial_dims
    assert raw["size"]["median"] == [22] * spatial_dims
    assert raw["spacing_um"]["max"] == pytest.approx([0.3] * spatial_dims)
    assert raw["intensity"]["mean"] == pytest.approx(pixels.mean(), rel=1e-5)  # all pixels: the images are small
    assert raw["intensity"]["p99.9"] == pytest.approx(np.percentile(pixels, 99.9), rel=1e-5)
    assert json.loads(json.dumps(found)) == found


def test_images_that_hold_nan_or_infinity_are_all_named(tmp_path):
    rows = []
    for number, bad in enumerate([np.nan, 1.0, np.inf]):
        array = np.ones((1, 8, 8), np.float32)
        array[0, 0, 0] = bad
        np.save(tmp_path / f"{number}.npy", array)
        rows.append({"raw": str(tmp_path / f"{number}.npy"), "row": f"m.csv:{number}"})
    reads = {"raw": {"spatial_dims": 2}}
    problems = fingerprint(describe_rows(rows, reads)[0], reads)[1]
    assert len(problems) == 2
    assert problems[0].startswith("m.csv:0: ")
    assert "2.npy: 1 of 64 pixels of 'raw' are NaN or infinite" in problems[1]


def test_images_whose_pixels_cannot_be_decoded_are_named_though_their_header_is_fine(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(3):
        path = tmp_path / f"{number}.tif"
        tifffile.imwrite(path, rng.integers(0, 255, (32, 32), np.uint8), compression="zlib")
        rows.append({"raw": str(path), "row": f"m.csv:{number + 2}"})
    content = bytearray((tmp_path / "1.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "1.tif") as tif:
        start = tif.pages[0].dataoffsets[0]
    content[start : start + 64] = bytes(64)
    (tmp_path / "1.tif").write_bytes(content)
    reads = {"raw": {"spatial_dims": 2}}
    described, unreadable = describe_rows(rows, reads)
    assert unreadable == []
    found, problems = fingerprint(described, reads)
    assert len(problems) == 1
    assert problems[0].startswith(f"m.csv:3: {tmp_path / '1.tif'}")
    assert found["columns"]["raw"]["num_images"] == 3


def test_an_image_without_a_pixel_size_has_none_in_the_fingerprint(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((1, 8, 8), np.float32))
    reads = {"raw": {"spatial_dims": 2}}
    found = fingerprint(describe_rows([{"raw": str(tmp_path / "a.npy"), "row": "1"}], reads)[0], reads)[0]
    assert found["columns"]["raw"]["spacing_um"] is None
