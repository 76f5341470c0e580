"""What an evaluation leaves behind for programs."""

import json

import pytest

from cyto_dl.eval import evaluate_checkpoint
from tests.test_train import run


@pytest.mark.parametrize("num_images", [1, 2])
def test_the_intervals_are_written_by_the_names_of_the_metrics_and_there_are_none_for_one_image(
    manifest_folder, tmp_path, num_images
):
    run(manifest_folder(test=num_images), tmp_path / "run", "test=false")
    metrics = evaluate_checkpoint(tmp_path / "run", output_dir=tmp_path / "test")

    written = json.loads((tmp_path / "test" / "metrics.json").read_text())
    intervals = json.loads((tmp_path / "test" / "intervals.json").read_text())
    assert written == metrics
    assert set(intervals) == (set(metrics) if num_images > 1 else set())
    assert all(low <= metrics[name] <= high for name, (low, high) in intervals.items())
