"""Batches of items, of which some lack a target."""

import pytest
import torch

from cyto_dl.data.collate import collate
from cyto_dl.errors import ConfigError


def item(number, *keys):
    images = {key: torch.full((1, 4, 4), float(number)) for key in ("raw", *keys)}
    return {**images, "path": f"{number}.tif", "spacing_um": None}


def test_items_that_have_everything_are_stacked():
    batch = collate([item(0, "seg"), item(1, "seg")])
    assert batch.keys() == {"raw", "seg", "path", "spacing_um"}
    assert batch["seg"][:, 0, 0, 0].tolist() == [0, 1]
    assert batch["path"] == ["0.tif", "1.tif"]


def test_a_batch_says_which_of_its_items_have_a_target():
    batch = collate([item(0, "seg"), item(1, "edge"), item(2, "edge", "seg")], optional=["seg", "edge", "spots"])
    assert batch["seg"][:, 0, 0, 0].tolist() == [0, 2]
    assert batch["edge"][:, 0, 0, 0].tolist() == [1, 2]
    assert {key: numbers.tolist() for key, numbers in batch["present"].items()} == {
        "seg": [0, 2],
        "edge": [1, 2],
        "spots": [],
    }
    assert "spots" not in batch
    assert batch["present"]["spots"].dtype == torch.long
    assert len(batch["raw"]) == len(batch["path"]) == 3


def test_several_items_that_were_made_of_one_are_counted_one_by_one():
    batch = collate([[item(0), item(0)], [item(1, "seg"), item(1, "seg")]], optional=["seg"])
    assert batch["present"]["seg"].tolist() == [2, 3]


def test_images_of_different_sizes_are_named():
    small = item(0) | {"raw": torch.zeros(1, 2, 2)}
    with pytest.raises(ConfigError, match=r"sizes of 'raw': 0\.tif \(1, 2, 2\), 1\.tif \(1, 4, 4\)"):
        collate([small, item(1)])
