"""The benchmark of denoising, small: noise that a seed repeats, a filter that is chosen, figures of both trainings."""

import json

import numpy as np
import pandas as pd
import pytest
import tifffile

from benchmarks.accuracy import denoise_nuclei


@pytest.fixture
def clean_folder(tmp_path):
    """Images of 64 x 64 pixels with a bright square."""
    rows = []
    for index, split in enumerate(["train", "valid", "test", "test"]):
        image = np.full((64, 64), 10, np.uint8)
        image[16 : 40 + index, 16:40] = 100 + 20 * index
        tifffile.imwrite(tmp_path / f"{index}.tif", image)
        rows.append({"raw": f"{index}.tif", "split": split})
    pd.DataFrame(rows).to_csv(tmp_path / "manifest.csv", index=False)
    return tmp_path


def test_the_benchmark_measures_both_trainings_beside_the_filter(clean_folder, tmp_path):
    words = [str(clean_folder), "--runs", str(tmp_path / "runs"), "--epochs", "1"]
    denoise_nuclei.main([*words, "--result", str(tmp_path / "denoise_nuclei.json")])
    result = json.loads((tmp_path / "denoise_nuclei.json").read_text())

    filtered = result["gaussian_filter"]
    assert filtered["psnr"] > result["noisy"]["psnr"]
    for name in denoise_nuclei.EXPERIMENTS:
        figures = result[name]
        assert figures["gain"] == pytest.approx(figures["psnr"] - filtered["psnr"], abs=1e-6)  # of double precision
        assert figures["gain_interval"][0] <= figures["gain"] <= figures["gain_interval"][1]
    assert {"git_commit", "device", "versions"} <= result.keys()


def test_the_noise_is_the_same_in_every_run_and_of_the_strength_that_is_written(clean_folder, tmp_path):
    (_, images), (_, again) = (
        denoise_nuclei.add_noise(clean_folder / "manifest.csv", tmp_path / folder) for folder in ("one", "two")
    )
    noisy, clean = images["train"][0]
    np.testing.assert_array_equal(noisy, again["train"][0][0])
    dark = (noisy - clean)[clean == 10]
    # 10 grey values are 5 photons: their variance of 5 is 20 in squared grey values, and 16 of reading
    assert dark.var() == pytest.approx(36, rel=0.1)  # 3500 pixels: a standard deviation of 2.5 %
