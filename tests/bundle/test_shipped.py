"""The bundle that comes with the repository is small, loads, and finds nuclei."""

from pathlib import Path

import pandas as pd
import pytest

from cyto_dl.bundle import load_bundle
from cyto_dl.data.image import read_image
from cyto_dl.metrics import match_objects

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "examples" / "bundles" / "nuclei"
MAX_BYTES = 10_000_000  # a clone should not be heavy


@pytest.fixture(scope="module")
def nuclei():
    return load_bundle(BUNDLE)  # replays its sample


def test_it_is_small_enough_for_a_repository():
    assert sum(file.stat().st_size for file in BUNDLE.rglob("*") if file.is_file()) <= MAX_BYTES


def test_it_finds_the_nuclei_of_real_images(nuclei):
    table = pd.read_csv(ROOT / "examples" / "nuclei" / "manifest.csv")
    rows = table[table["split"] == "test"].head(2).to_dict("records")
    for row in rows:
        image = read_image(ROOT / "examples" / "nuclei" / row["raw"], **nuclei.input.load)
        truth = read_image(ROOT / "examples" / "nuclei" / row["nuclei"], spatial_dims=2).array[0]
        labels = nuclei.predict(image)["objects"][0]
        # far below what it reaches (docs/lab-notebook.md), far above what an untrained network would
        assert match_objects(truth, labels, thresholds=[0.5]).ap[0] > 0.5


def test_its_card_says_what_it_was_measured_on():
    card = (BUNDLE / "README.md").read_text()
    assert "ap50_pooled" in card
