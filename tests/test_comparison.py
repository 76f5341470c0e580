"""A model is better when the images say so, not when chance may have."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cyto_dl.bundle import export, export_bundle
from cyto_dl.comparison import compare_values, compare_with_bundle, read_images
from cyto_dl.errors import ConfigError, ManifestError
from cyto_dl.eval import evaluate_checkpoint
from tests.bundle.tiny import checkpoint_of, experiment, write_images

ROOT = Path(__file__).parents[1]


@pytest.fixture
def hard_and_easy():
    """Values of 40 images, of which some are hard for every model."""
    return np.random.default_rng(0).uniform(0.2, 0.9, 40)


def test_a_small_gain_on_every_image_is_better_although_images_differ_much(hard_and_easy):
    comparison = compare_values(hard_and_easy + 0.01, hard_and_easy, higher_is_better=True)
    assert comparison.better
    assert comparison.gain == pytest.approx(0.01)
    assert comparison.interval == pytest.approx((0.01, 0.01))
    # unpaired, the means' own uncertainty is twenty times the gain
    assert np.std(hard_and_easy) / np.sqrt(40) > 0.03


def test_a_gain_that_chance_may_have_made_is_not_better(hard_and_easy):
    noise = np.random.default_rng(1).normal(0.01, 0.2, 40)
    comparison = compare_values(hard_and_easy + noise, hard_and_easy, higher_is_better=True)
    low, high = comparison.interval
    assert low < 0 < high
    assert not comparison.better
    # of a normal distribution: twice 1.96 standard errors; 2000 resamplings of 40 images are within a few per cent
    assert high - low == pytest.approx(2 * 1.96 * noise.std() / np.sqrt(40), rel=0.1)


def test_the_same_model_again_is_not_better(hard_and_easy):
    assert not compare_values(hard_and_easy, hard_and_easy, higher_is_better=True).better


def test_where_less_is_better_a_gain_is_a_loss_of_the_metric(hard_and_easy):
    lower = compare_values(hard_and_easy - 0.1, hard_and_easy, higher_is_better=False)
    assert lower.better and lower.gain == pytest.approx(0.1)
    assert not compare_values(hard_and_easy + 0.1, hard_and_easy, higher_is_better=False).better


def test_a_gain_has_to_pass_the_minimal_one(hard_and_easy):
    better = hard_and_easy + 0.02
    assert compare_values(better, hard_and_easy, higher_is_better=True, minimal_gain=0.019).better
    assert not compare_values(better, hard_and_easy, higher_is_better=True, minimal_gain=0.021).better


def test_images_that_one_model_does_not_define_are_left_out_and_counted():
    candidate = np.array([0.9, 0.9, np.nan, np.inf, np.nan])
    champion = np.array([0.5, 0.6, 0.7, 0.8, np.nan])
    comparison = compare_values(candidate, champion, higher_is_better=True)
    assert (comparison.num_images, comparison.num_undefined) == (2, 2)
    assert (comparison.candidate, comparison.champion) == pytest.approx((0.9, 0.55))
    assert "2 left out" in str(comparison)


@pytest.mark.parametrize("num_images", [2, 3, 5, 20])
def test_chance_lets_an_equal_model_pass_as_seldom_as_the_interval_says(num_images):
    """One case of 40, one of 30 with two images (docs/how-to/mlflow.md). Of 1000 draws that varies by 0.6 %."""
    rng = np.random.default_rng(0)
    zero = np.zeros(num_images)
    passed = [compare_values(rng.normal(size=num_images), zero, higher_is_better=True).better for _ in range(1000)]
    assert 0.01 < np.mean(passed) < 0.05


@pytest.mark.parametrize("num_images", [0, 1])
def test_one_image_says_nothing(num_images):
    comparison = compare_values(np.ones(num_images), np.zeros(num_images), higher_is_better=True)
    assert not comparison.better
    assert "it takes two" in str(comparison)


def test_values_that_are_no_pairs_are_refused():
    with pytest.raises(ValueError, match="no pairs"):
        compare_values(np.ones(3), np.ones(2), higher_is_better=True)


def test_comparing_values_needs_no_torch():
    code = (
        "import numpy, sys\nfrom cyto_dl.comparison import compare_values\n"
        "compare_values(numpy.ones(3), numpy.zeros(3), higher_is_better=True)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.fixture(params=[2, 3], ids=["2d", "3d"])
def champion(request, tmp_path, monkeypatch):
    """The experiment and bundle of a model of random weights, and a table of its images."""
    monkeypatch.setattr(export, "export_onnx", lambda *_: {"error": "left out by a test"})
    config = experiment(write_images(tmp_path, request.param, splits=("train", "test", "test", "test")), request.param)
    config["trainer"] = {"accelerator": "cpu"}
    checkpoint_of(config, tmp_path / "run/checkpoints/best.ckpt")
    bundle = export_bundle(tmp_path / "run", tmp_path / "bundle")
    evaluate_checkpoint(tmp_path / "run", output_dir=tmp_path / "test")
    return config, bundle, read_images(tmp_path / "test" / "images.csv")


def compare(champion, images, **changes):
    config, bundle, _ = champion
    how = {"manifest": config["data"]["path"], "split": "test", "metric": "test/seg/dice", **changes}
    return compare_with_bundle(images, bundle, config, **how)


def test_a_bundle_is_measured_on_the_images_of_the_candidate(champion):
    _, _, images = champion
    same = compare(champion, images)
    # a bundle predicts what its checkpoint predicts, bit for bit
    assert (same.gain, same.interval, same.num_images, same.better) == (0, (0, 0), 3, False)
    assert compare(champion, images.assign(**{"seg/dice": images["seg/dice"] + 0.1})).better


def test_the_direction_is_that_of_the_metric(champion):
    _, _, images = champion
    fewer_errors = images.assign(**{"dist/nrmse": images["dist/nrmse"] - 0.1})
    assert compare(champion, fewer_errors, metric="test/dist/nrmse").better


def test_the_first_metric_is_compared_where_none_is_named(champion):
    _, _, images = champion
    first = next(column for column in images if "/" in column)
    assert compare(champion, images.assign(**{first: images[first] + 0.1}), metric="").better


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("test/seg/dise", "Choose one of test/seg/dice"),
        ("valid/seg/dice", "Choose one of test/seg/dice"),
        ("test/seg/dice_pooled", "of single images"),
        ("test/seg/otsu_dice", "is not known"),
    ],
)
def test_a_metric_that_cannot_be_compared_is_named_with_the_choices(champion, metric, message):
    with pytest.raises(ConfigError, match=message):
        compare(champion, champion[2], metric=metric)


def test_a_champion_of_another_kind_is_refused(champion):
    config, bundle, images = champion
    renamed = images.rename(columns={"seg/dice": "cells/dice"})
    with pytest.raises(ConfigError, match="no head 'cells'"):
        compare((config, bundle, images), renamed, metric="test/cells/dice")


def test_a_manifest_that_changed_since_the_candidate_was_measured_is_refused(champion):
    config, _, images = champion
    table = pd.read_csv(config["data"]["path"])
    table[1:].to_csv(config["data"]["path"], index=False)
    with pytest.raises(ManifestError, match="other images"):
        compare(champion, images.iloc[:2])


def test_weights_of_another_seed_give_other_values(champion, tmp_path):
    config, _, _ = champion
    checkpoint_of(config, tmp_path / "other/checkpoints/best.ckpt", seed=5)
    evaluate_checkpoint(tmp_path / "other", output_dir=tmp_path / "other_test")
    comparison = compare(champion, read_images(tmp_path / "other_test" / "images.csv"))
    assert comparison.candidate != comparison.champion
    assert torch.isfinite(torch.tensor(comparison.gain))
