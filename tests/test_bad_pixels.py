"""Images whose pixels are wrong, or only unusual: an error that names the file, or a correct empty result."""

import math

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

from cyto_dl.bundle.build import build_predictor, document_from_config
from cyto_dl.config import compose_experiment, experiments
from cyto_dl.errors import CytoDLError, ManifestError
from cyto_dl.inference.batch import predict_images
from cyto_dl.train import train
from tests.test_train import STACKS_ONLY, overrides_for

HEADS = {"im2im/segmentation": "seg", "im2im/labelfree": "stain", "im2im/instance_seg": "objects"}
BY_LOSS = ["optimized_metric=valid/loss", "optimized_mode=min"]  # which images without any object define too
every_experiment = pytest.mark.parametrize("experiment", HEADS)


@pytest.fixture
def folder(manifest_folder):
    """Good images with a manifest, which a test spoils; all float32, which can hold what is not finite."""
    made = manifest_folder(2, train=2, valid=1, test=1)
    for path in made.glob("*.tif"):
        change(path, lambda pixels: pixels)
    return made


def change(path, spoil):
    tifffile.imwrite(path, spoil(tifffile.imread(path).astype(np.float32)), metadata={"axes": "YX"})


def with_pixel(value):
    def spoil(pixels):
        pixels[5, 7] = value
        return pixels

    return spoil


def config_of(experiment, folder, output_dir, *extra):
    usual = [*overrides_for(folder, experiment=experiment), "data.cache_dir=null", *extra]
    return compose_experiment(usual, output_dir=output_dir)


# what is wrong: the file, how it is spoilt, what the message must say beside the file's name
PIXELS = {
    "NaN in an image": ("raw_1.tif", with_pixel(np.nan), "NaN"),
    "infinity in an image": ("raw_1.tif", with_pixel(np.inf), "infinite"),
    "NaN in an image of the validation": ("raw_2.tif", with_pixel(np.nan), "NaN"),
    "NaN in an image of the test": ("raw_3.tif", with_pixel(np.nan), "NaN"),
    "NaN in a target": ("seg_1.tif", with_pixel(np.nan), "NaN"),
    "infinity in a target": ("seg_1.tif", with_pixel(-np.inf), "infinite"),
    "NaN in a target of the test": ("seg_3.tif", with_pixel(np.nan), "NaN"),
}
LABELS = {
    "a label that is no whole number": ("seg_1.tif", with_pixel(0.3), "e.g. 0.3"),
    "a negative label": ("seg_1.tif", with_pixel(-7), "e.g. -7"),
    "such a label in the validation": ("seg_2.tif", lambda labels: labels * 0.3, "e.g. "),
    "such a label in the test": ("seg_3.tif", with_pixel(-1), "1 of its pixels"),
}
OF_LABELS = {"im2im/instance_seg": [], "im2im/segmentation_classes": ["num_classes=5"]}  # blobs 1 to 4, and background
REFUSED = [(each, wrong) for each in HEADS for wrong in PIXELS]


@pytest.mark.parametrize(("experiment", "wrong"), REFUSED)
def test_training_refuses_values_that_nothing_can_be_learnt_from_and_names_the_file(
    folder, tmp_path, experiment, wrong
):
    file, spoil, says = PIXELS[wrong]
    change(folder / file, spoil)
    with pytest.raises(CytoDLError) as error:
        train(config_of(experiment, folder, tmp_path / "run"))
    source = file.replace("seg", "raw")  # while training, an image goes by the name of its source
    assert file in str(error.value) or source in str(error.value), error.value
    assert says in str(error.value), error.value
    assert error.value.exit_code == 2


@pytest.mark.parametrize("experiment", OF_LABELS)
@pytest.mark.parametrize("wrong", LABELS)
def test_training_refuses_wrong_labels_of_all_splits_before_its_first_step(folder, tmp_path, experiment, wrong):
    file, spoil, says = LABELS[wrong]
    change(folder / file, spoil)
    with pytest.raises(ManifestError) as error:
        train(config_of(experiment, folder, tmp_path / "run", *OF_LABELS[experiment]))
    assert all(words in str(error.value) for words in [file, "is a label image", says]), error.value
    assert not list(tmp_path.glob("run/*"))


# experiments whose targets are intensities, or masks above a threshold
@pytest.mark.parametrize("experiment", ["im2im/labelfree", "im2im/denoise", "im2im/segmentation"])
def test_other_targets_may_be_negative_and_fractions(folder, tmp_path, experiment):
    for path in folder.glob("seg_*.tif"):
        change(path, lambda pixels: 0.7 * pixels - 0.1)
    metrics = train(config_of(experiment, folder, tmp_path / "run", *BY_LOSS))
    assert math.isfinite(metrics["valid/loss"])


EMPTY = {
    "no object in any image": lambda folder: [change(path, np.zeros_like) for path in folder.glob("seg_*.tif")],
    "no object in one image": lambda folder: change(folder / "seg_1.tif", np.zeros_like),
    "no object in the image of the test": lambda folder: change(folder / "seg_3.tif", np.zeros_like),
    "a constant image": lambda folder: change(folder / "raw_1.tif", np.ones_like),
    "a constant image in the test": lambda folder: change(folder / "raw_3.tif", np.ones_like),
}


@every_experiment
@pytest.mark.parametrize("unusual", EMPTY)
def test_training_takes_empty_images(folder, tmp_path, experiment, unusual):
    EMPTY[unusual](folder)
    metrics = train(config_of(experiment, folder, tmp_path / "run", *BY_LOSS))
    head = HEADS[experiment]
    losses = [value for name, value in metrics.items() if name.endswith("loss")]
    assert losses and all(map(math.isfinite, losses)), metrics
    table = pd.read_csv(tmp_path / "run" / "test" / "images.csv")
    assert len(table) == 1
    assert any(column.startswith(f"{head}/") for column in table)


@pytest.mark.parametrize("experiment", [name for name in experiments() if name not in HEADS])
def test_every_other_experiment_takes_constant_images_and_targets_without_anything_in_them(
    manifest_folder, tmp_path, experiment
):
    needs_stacks = experiment == STACKS_ONLY
    how = {"experiment": experiment, "spatial_dims": 3 if needs_stacks else 2}
    config = compose_experiment(overrides_for(tmp_path, **how), output_dir=tmp_path / "run")
    folder = manifest_folder(how["spatial_dims"], scale=config.get("scale", 1), project_targets=needs_stacks)
    for name in ("raw_1", "seg_1", "raw_3"):
        pixels = tifffile.imread(folder / f"{name}.tif")
        tifffile.imwrite(folder / f"{name}.tif", np.zeros_like(pixels), metadata={"axes": "ZYX"[-pixels.ndim :]})
    metrics = train(compose_experiment([*overrides_for(folder, **how), *BY_LOSS], output_dir=tmp_path / "run"))
    losses = [value for name, value in metrics.items() if name.endswith("loss")]
    assert losses and all(map(math.isfinite, losses)), metrics
    assert len(pd.read_csv(tmp_path / "run" / "test" / "images.csv")) == 1


def predictor_of(experiment, folder, *extra):
    """A model that finds nothing anywhere: every logit is -10."""
    predictor = build_predictor(document_from_config(config_of(experiment, folder, folder / "run", *extra)))
    parameters = list(predictor.network.named_parameters())
    with torch.no_grad():
        for _, parameter in parameters:
            parameter.zero_()
        next(parameter for name, parameter in reversed(parameters) if name.endswith("bias")).fill_(-10)
    return predictor


NOTHING = {"im2im/segmentation": 0, "im2im/labelfree": -10, "im2im/instance_seg": 0}


@every_experiment
@pytest.mark.parametrize("spoil", [np.zeros_like, np.ones_like, lambda pixels: pixels], ids=["zeros", "ones", "noise"])
def test_an_image_without_anything_in_it_is_predicted_as_empty(folder, experiment, spoil):
    change(folder / "raw_0.tif", spoil)
    table = predict_images(predictor_of(experiment, folder), [folder / "raw_0.tif"], folder / "out", progress=False)
    assert table["status"].tolist() == ["ok"]
    predicted = tifffile.imread(table[HEADS[experiment]][0])
    np.testing.assert_allclose(predicted, NOTHING[experiment], rtol=1e-5)  # windows are blended in float32


def write(path, array, axes):
    tifffile.imwrite(path, array.astype(np.float32), metadata={"axes": axes})


# what is wrong: the image, overrides of the experiment, what the message must say
PREDICTED = {
    "NaN": (lambda path: change(path, with_pixel(np.nan)), [], ["not finite"]),
    "infinity": (lambda path: change(path, with_pixel(np.inf)), [], ["not finite"]),
    "one channel for three": (lambda path: None, ["raw_im_channels=3"], ["1 channel", "3 channel"]),
    "three channels for one": (lambda path: write(path, np.zeros((3, 64, 64)), "CYX"), [], ["3 channel", "1 channel"]),
    "a plane for a volume": (lambda path: None, ["spatial_dims=3", "data.patch_shape=[8,16,16]"], ["a 2-D image"]),
    "a volume for a plane": (lambda path: write(path, np.zeros((5, 64, 64)), "ZYX"), [], ["5 planes"]),
}


@every_experiment
@pytest.mark.parametrize("wrong", PREDICTED)
def test_prediction_refuses_an_image_that_does_not_fit_and_names_it(folder, experiment, wrong):
    spoil, extra, says = PREDICTED[wrong]
    predictor = predictor_of(experiment, folder, *extra)
    spoil(folder / "raw_0.tif")
    table = predict_images(predictor, [folder / "raw_0.tif"], folder / "out", progress=False)
    assert table["status"].tolist() == ["failed"]
    assert all(words in table["error"][0] for words in ["raw_0.tif", *says]), table["error"][0]


@every_experiment
@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["raw_im_channels=3"], ["raw_0.tif", "1 channel", "raw_im_channels"]),
        (["spatial_dims=3", "data.patch_shape=[8,16,16]"], ["raw_0.tif", "spatial_dims is 3", "2-D image"]),
    ],
    ids=["one channel for three", "planes for volumes"],
)
def test_training_refuses_images_of_other_axes_than_configured(folder, tmp_path, experiment, extra, says):
    with pytest.raises(CytoDLError) as error:
        train(config_of(experiment, folder, tmp_path / "run", *extra))
    assert all(words in str(error.value) for words in says), error.value
    assert not list(tmp_path.glob("run/*"))
