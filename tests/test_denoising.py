"""Denoising as a user does it: with and without clean images, down to predictions in the camera's grey values."""

import json

import numpy as np
import pandas as pd
import pytest
import tifffile

from cyto_dl.bundle import export_bundle, load_bundle
from cyto_dl.data.image import read_image
from cyto_dl.evaluation import NoTargetsError, evaluate
from cyto_dl.steps import evaluate_step, export_step, prepare_step, train_step
from cyto_dl.train import train
from tests.test_train import compose_experiment, overrides_for

SHAPES = {2: (64, 64), 3: (16, 32, 32)}


@pytest.fixture
def noisy_folder(tmp_path):
    """Writes noisy images of bright boxes, and clean images of those rows that `clean` names."""

    def make(spatial_dims, *, clean=()):
        folder, rng, rows = tmp_path / "noisy", np.random.default_rng(0), []
        folder.mkdir()
        for index, split in enumerate(["train", "train", "valid", "test", "test"]):
            signal = np.full(SHAPES[spatial_dims], 100.0)
            signal[(slice(4 + index, -5),) * spatial_dims] = 500
            images = {"noisy": rng.poisson(signal)} | ({"clean": signal} if index in clean else {})
            row = {"split": split} | {name: f"{name}_{index}.tif" for name in images}
            for name, image in images.items():
                axes = {"axes": "ZYX"[-spatial_dims:]}
                tifffile.imwrite(folder / row[name], image.astype(np.uint16), metadata=axes)
            rows.append(row)
        pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
        return folder

    return make


def run(folder, output_dir, *extra, experiment="im2im/denoise_blind_spot", spatial_dims=2):
    columns = ["source_col=noisy", "target_col=clean", "intensity_offset=100", "intensity_scale=400"]
    overrides = overrides_for(folder, experiment=experiment, spatial_dims=spatial_dims)
    return train(compose_experiment([*overrides, *columns, *extra], output_dir=output_dir))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_noisy_images_are_enough_to_train_and_to_choose_a_checkpoint(noisy_folder, tmp_path, caplog, spatial_dims):
    folder = noisy_folder(spatial_dims)
    metrics = run(folder, tmp_path / "run", spatial_dims=spatial_dims)

    assert np.isfinite([metrics["train/clean/loss"], metrics["valid/clean/loss"]]).all()
    assert not any(name.startswith("test/") for name in metrics)
    assert {name for name in metrics if name.startswith("valid/")} == {"valid/loss", "valid/clean/loss"}
    assert "no image has the split 'test' and a target" in caplog.text
    bundle = load_bundle(export_bundle(tmp_path / "run", tmp_path / "bundle"))
    overrides = [*overrides_for(folder, experiment="im2im/denoise_blind_spot"), "source_col=noisy"]
    config = compose_experiment(overrides, output_dir=tmp_path)
    with pytest.raises(NoTargetsError, match=r"no image of the split 'test' has a target \(clean\)"):
        evaluate(bundle, config, manifest=folder / "manifest.csv")


def test_a_pipeline_goes_on_where_there_is_nothing_to_measure(noisy_folder, tmp_path, caplog):
    folder = noisy_folder(2)
    dataset, model, bundle, report, measured = (
        str(tmp_path / name) for name in ("data", "model", "bundle", "page", "m")
    )
    described = {"source_col": "noisy", "target_cols": [], "spatial_dims": 2, "num_channels": 1}
    tiny = overrides_for(folder, experiment="im2im/denoise_blind_spot")
    of_the_step = ("experiment=", "data.path=", "data.cache_dir=", "source_col=")
    overrides = [word for word in tiny if not word.startswith(of_the_step)]
    prepare_step(str(folder / "manifest.csv"), dataset, **described)
    train_step(
        dataset, "im2im/denoise_blind_spot", overrides, model_dir=model, metrics_path=str(tmp_path / "t"), **described
    )

    written = {"report_path": report, "metrics_path": measured, "images_path": str(tmp_path / "images")}
    written["confusion_path"] = str(tmp_path / "confusion")
    assert evaluate_step(dataset, model, "test", **written) == ({}, None)
    assert (tmp_path / "images").read_text() == "path\n"
    assert "the model is not measured" in caplog.text
    assert "no image of the split &#39;test&#39; has a target" in (tmp_path / "page").read_text()
    export_step(dataset, model, measured, bundle)
    assert load_bundle(bundle).metadata["metrics"] == {}


def test_clean_images_of_some_test_images_are_what_is_measured(noisy_folder, tmp_path):
    metrics = run(noisy_folder(2, clean=[4]), tmp_path / "run")

    assert "test/clean/psnr" in metrics
    measured = pd.read_csv(tmp_path / "run" / "test" / "images.csv")
    assert [path.rpartition("/")[2] for path in measured["path"]] == ["noisy_4.tif"]


def test_pairs_train_and_are_measured(noisy_folder, tmp_path):
    metrics = run(noisy_folder(2, clean=range(5)), tmp_path / "run", experiment="im2im/denoise")
    assert metrics["test/clean/psnr"] == json.loads((tmp_path / "run/test/metrics.json").read_text())["test/clean/psnr"]


def test_predictions_are_in_the_grey_values_of_the_images(noisy_folder, tmp_path):
    folder = noisy_folder(2, clean=range(5))
    run(folder, tmp_path / "run", "test=false", experiment="im2im/denoise")
    bundle = load_bundle(export_bundle(tmp_path / "run", tmp_path / "bundle"))

    noisy = read_image(folder / "noisy_3.tif", spatial_dims=2)
    normalised = bundle.activations(noisy)["clean"].numpy()
    np.testing.assert_allclose(bundle.predict(noisy)["clean"], normalised * 400 + 100, rtol=1e-6)  # of float32 numbers
    np.testing.assert_allclose(bundle.preprocessed(noisy).numpy(), (noisy.array.astype(float) - 100) / 400, rtol=1e-6)
