"""Arguments of the data module that cannot be: said when it is built, all at once, by their keys."""

import pytest

from cyto_dl.data import DataframeDatamodule, ReadImaged
from cyto_dl.errors import ConfigError


def datamodule(**changed):
    usual = {"columns": {"raw": "raw", "seg": "seg"}, "transforms": [ReadImaged(["raw", "seg"], 2)]}
    return DataframeDatamodule(path="nothing is read yet.csv", **(usual | changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"columns": {"path": "raw", "raw": "raw"}, "source_key": "raw"},
            r"data\.columns has the key path, which is not free",
        ),
        ({"source_key": "row"}, r"data\.source_key is 'row', but data\.columns has raw, seg"),
        ({"columns": {}}, r"data\.columns has nothing"),
        ({"foreground_key": "cells"}, r"data\.foreground_key is 'cells'"),
        ({"foreground_fraction": 0.5}, r"data\.foreground_fraction is given without"),
        ({"foreground_key": "seg", "foreground_fraction": 50}, r"data\.foreground_fraction is 50"),
        ({"patches_per_image": 0}, r"data\.patches_per_image is 0"),
        ({"batch_size": 0}, r"data\.batch_size is 0"),
        ({"patch_shape": [0, 8]}, r"data\.patch_shape is \(0, 8\)"),
        ({"shuffle": True}, r"data\.shuffle cannot be given"),
        ({"scales": {"seg": 1.5}}, r"scale \(data\.scales\.seg\) is 1\.5; give a whole number from 1 on, or one per"),
        ({"scales": {"seg": 0}}, r"data\.scales\.seg\) is 0;"),
        ({"scales": {"seg": "2"}}, r"data\.scales\.seg\) is '2';"),
        ({"scales": {"seg": [2, 0]}}, r"data\.scales\.seg\) is \[2, 0\];"),
        ({"scales": {"mask": 2}}, r"data\.scales has the key 'mask', but data\.columns has raw, seg"),
        ({"num_worker": 2}, r"data\.num_worker is neither an argument of the data module nor of torch's DataLoader"),
    ],
)
def test_an_argument_that_cannot_be_is_named(changed, message):
    with pytest.raises(ConfigError, match=message):
        datamodule(**changed)


def test_all_of_them_are_said_at_once():
    with pytest.raises(ConfigError) as caught:
        datamodule(batch_size=0, source_key="row", scales={"seg": -1}, sampler=None)
    assert str(caught.value).count("\n  - ") == 4


@pytest.mark.parametrize("scale", [1, 2, [1, 2], (2, 2)])
def test_a_scale_is_a_whole_number_or_one_per_axis(scale):
    assert datamodule(scales={"seg": scale}).scales == {"seg": scale}
