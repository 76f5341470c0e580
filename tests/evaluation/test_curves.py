"""The learning curves of a run show what each epoch reached, and which one was evaluated."""

import re

import numpy as np
import pandas as pd
import pytest

from cyto_dl.evaluation.curves import duration, learning_curves, read_curves


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "epoch": [1, 2, 3],
            "step": [10, 20, 30],
            "seconds": [60.0, 60.0, 120.0],
            "device": ["cpu", "cpu", "NVIDIA H200"],
            "train/loss": [3.0, 2.0, 1.0],
            "valid/loss": [3.5, np.nan, 1.5],
            "valid/seg/dice": [0.5, np.nan, 0.8],
            "valid/seg/iou": [0.4, np.nan, 0.7],
            "valid/seg/never": [np.nan] * 3,
        }
    )


def test_the_loss_and_the_heads_first_metrics_come_first(table):
    curves = learning_curves(table, headlines=["seg/dice", "other/dice"], step=20)
    assert [chart.title for chart in curves.main] == ["loss", "seg/dice"]
    assert [chart.title for chart in curves.more] == ["seg/iou"]
    loss = str(curves.main[0].drawing)
    assert loss.count("<polyline") == 2 and "training" in loss and "validation" in loss
    assert str(curves.main[1].drawing).count("<polyline") == 1


def test_how_long_it_took_and_where_is_said(table):
    story = learning_curves(table, headlines=[], step=20).story
    assert "3 epochs, 30 steps, 4 min on cpu, then NVIDIA H200." in story
    assert "evaluated checkpoint, of epoch 2" in story
    assert "evaluated" not in learning_curves(table, headlines=[], step=None).story
    assert "evaluated" not in learning_curves(table, headlines=[], step=25).story  # in the middle of an epoch


def test_the_evaluated_epoch_has_its_line(table):
    with_line, without = (str(learning_curves(table, headlines=[], step=step).main[0].drawing) for step in (20, None))
    assert len(re.findall("<line", with_line)) == len(re.findall("<line", without)) + 1


def test_a_folder_without_a_table_has_no_curves(tmp_path, table):
    assert read_curves(tmp_path) is None
    table.to_csv(tmp_path / "learning_curves.csv", index=False)
    pd.testing.assert_frame_equal(read_curves(tmp_path), table)


@pytest.mark.parametrize(("seconds", "said"), [(0.5, "0.5 s"), (119, "119 s"), (600, "10 min"), (9000, "2 h 30 min")])
def test_durations_are_said_as_people_do(seconds, said):
    assert duration(seconds) == said
