"""What an evaluation leaves behind for programs."""

import json
import logging
import sys

import pytest
import yaml

from cyto_dl.bundle import export, export_bundle
from cyto_dl.eval import evaluate_checkpoint, main
from tests.bundle.tiny import checkpoint_of, experiment, write_images
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


@pytest.fixture
def evaluate_bundle(tmp_path, monkeypatch):
    """Runs `cyto-dl eval` on a bundle with overrides; returns the configuration in its report."""
    root, handlers, level = logging.getLogger(), logging.getLogger().handlers[:], logging.getLogger().level
    monkeypatch.setattr(export, "export_onnx", lambda *_: {"error": "left out by a test"})
    config = experiment(write_images(tmp_path))
    checkpoint_of(config, tmp_path / "run/checkpoints/best.ckpt")
    bundle = export_bundle(tmp_path / "run", tmp_path / "bundle", settings={"model.inference.overlap": 0.5})
    (tmp_path / "configs/experiment").mkdir(parents=True)
    written = yaml.safe_dump({key: config[key] for key in ("data", "model", "raw_im_channels")})
    (tmp_path / "configs/experiment/tiny.yaml").write_text(f"# @package _global_\n{written}")

    def evaluate(*overrides, folder="eval"):
        given = [f"ckpt_path={bundle}", f"hydra.run.dir={tmp_path / folder}", "trainer=cpu", *overrides]
        monkeypatch.setattr(
            sys, "argv", ["eval.py", "--config-dir", str(tmp_path / "configs"), "experiment=tiny", *given]
        )
        main()
        return (tmp_path / folder / "report.html").read_text()

    yield evaluate
    root.handlers[:], root.level = handlers, level  # hydra sets them up anew


def test_what_the_command_line_says_of_inference_wins_over_the_bundle_and_nothing_else_does(evaluate_bundle):
    report = evaluate_bundle()
    assert "overlap: 0.5" in report and "roi_size" in report
    report = evaluate_bundle("+model.inference.augment=flips", "model.inference={roi_size:[24,24]}", folder="flips")
    assert "overlap: 0.5" in report and "augment: flips" in report and "- 24" in report


def test_an_evaluation_may_be_repeated_but_not_overwritten_by_another(evaluate_bundle, tmp_path, capsys):
    evaluate_bundle()
    evaluate_bundle("+data.num_workers=0")
    before = (tmp_path / "eval/metrics.json").stat().st_mtime_ns
    with pytest.raises(SystemExit) as end:
        evaluate_bundle("+model.inference.augment=flips")
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert "model.inference.augment: None there, 'flips' now" in message and "run_name=second" in message
    assert (tmp_path / "eval/metrics.json").stat().st_mtime_ns == before
    evaluate_bundle("+model.inference.augment=flips", folder="flips")


def test_predictions_may_lie_beside_the_evaluation(evaluate_bundle, tmp_path):
    evaluate_bundle()
    evaluate_bundle("test=false", "split=test")
    assert (tmp_path / "eval/metrics.json").is_file() and (tmp_path / "eval/predictions.csv").is_file()


def test_an_evaluation_that_is_refused_leaves_nothing(evaluate_bundle, tmp_path):
    with pytest.raises(SystemExit):
        evaluate_bundle("split=nowhere")
    assert not (tmp_path / "eval").exists()


def test_a_setting_that_is_deleted_on_the_command_line_is_refused(evaluate_bundle, capsys):
    with pytest.raises(SystemExit) as end:
        evaluate_bundle("~model.inference.roi_size")
    assert end.value.code == 2
    assert "~model.inference.roi_size: a key cannot be deleted here" in capsys.readouterr().err
