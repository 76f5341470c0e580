"""A predictor takes images as acquired and gives predictions on their own pixel grid."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cyto_dl.data.image import Image, write_image
from cyto_dl.errors import ConfigError, ImageError
from tests.bundle.tiny import SHAPE, experiment, predictor_of, unet


@pytest.fixture(params=[2, 3], ids=["2d", "3d"])
def predictor(request):
    return predictor_of(experiment("m.csv", request.param))


def pixels(spatial_dims, dtype=np.uint16, channels=1):
    return np.random.default_rng(0).integers(0, 200, (channels, *SHAPE[spatial_dims])).astype(dtype)


def test_every_head_gives_one_image_of_the_size_of_its_input(predictor):
    image = pixels(predictor.input.spatial_dims)
    predictions = predictor.predict(image)
    assert {head: (array.shape, array.dtype) for head, array in predictions.items()} == {
        "seg": (image.shape, np.dtype(np.uint8)),
        "dist": (image.shape, np.dtype(np.float32)),
    }


@pytest.mark.parametrize(
    ("spatial_dims", "load", "stored", "says"),
    [
        (2, {}, (1, 5, 9, 8), r"the file has 5 planes; the model takes 2-D images \(C Y X\) with 1 channel\. Save one"),
        (3, {}, (1, 9, 8), r"a 2-D image; the model takes stacks \(C Z Y X\) with 1 channel\. Give it stacks"),
        (2, {"channels": 1}, (1, 9, 8), r"only channel 0; .* of a file channel 1, counted from 0\. Give it"),
        (2, {"z": 7}, (1, 5, 9, 8), r"of the planes the file has 0 to 4; .* of a file plane 7, counted from 0"),
        (2, {}, (3, 9, 8), r"the image has 3 channels, .*with 1 channel\."),
    ],
)
def test_a_file_of_another_kind_is_refused_in_words_of_files(tmp_path, spatial_dims, load, stored, says):
    config = experiment("m.csv", spatial_dims)
    config["data"]["transforms"]["load"][0] |= load
    write_image(tmp_path / "image.ome.tif", np.zeros(stored, np.uint16))
    with pytest.raises(ImageError, match=rf"^{tmp_path}/image.ome.tif: .*{says}") as refusal:
        predictor_of(config).read(tmp_path / "image.ome.tif")
    for key in ("spatial_dims", "`z`", "`channels`", "data.transforms"):  # which the user of a bundle does not have
        assert key not in str(refusal.value)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64", ">u2", "bool"])
def test_the_type_of_the_file_does_not_matter(predictor, dtype):
    image = pixels(predictor.input.spatial_dims) % 2
    expected = predictor.predict(image.astype(np.float32))
    for head, array in predictor.predict(image.astype(dtype)).items():
        np.testing.assert_array_equal(array, expected[head])


def test_a_single_channel_may_be_left_out(predictor):
    image = pixels(predictor.input.spatial_dims)
    np.testing.assert_array_equal(predictor.predict(image[0])["dist"], predictor.predict(image)["dist"])


def test_predictions_are_the_same_each_time_and_need_no_gradient(predictor):
    image = pixels(predictor.input.spatial_dims)
    first, second = predictor.predict_with_activations(image), predictor.predict_with_activations(image)
    for head in predictor.outputs:
        assert first.images[head].tobytes() == second.images[head].tobytes()
        assert not first.activations[head].requires_grad


def test_images_and_activations_come_from_one_forward_pass(predictor):
    image = pixels(predictor.input.spatial_dims)
    calls = []
    predictor.network.backbone.register_forward_hook(lambda *_: calls.append(1))
    predictor.predict(image)
    num_once = len(calls)
    prediction = predictor.predict_with_activations(image)
    assert len(calls) == 2 * num_once
    activations = predictor.activations(image)
    for head, array in prediction.images.items():
        np.testing.assert_array_equal(array, predictor.predict(image)[head])
        assert torch.equal(prediction.activations[head], activations[head])
    assert 0 <= activations["seg"].min() <= activations["seg"].max() <= 1
    np.testing.assert_array_equal(prediction.images["seg"], (activations["seg"] * 255).round().numpy())


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_objects_are_decoded_once_and_are_what_metrics_see(spatial_dims):
    config = experiment("m.csv", spatial_dims)
    head = {"_target_": "cyto_dl.model.heads.InstanceHead", "in_channels": 4, "spatial_dims": spatial_dims}
    config["model"]["task_heads"]["seg"] = {"head": head, "loss": {"_target_": "cyto_dl.model.losses.InstanceLoss"}}
    del config["model"]["postprocessing"]
    predictor = predictor_of(config)
    decoded = []
    decode = predictor.postprocess["seg"]
    predictor = replace(
        predictor, postprocess={**predictor.postprocess, "seg": lambda each: decoded.append(1) or decode(each)}
    )
    image = pixels(spatial_dims)
    prediction = predictor.predict_with_activations(image)
    assert len(decoded) == 1
    labels, seen = prediction.images["seg"], prediction.activations["seg"]
    assert (labels.shape, labels.dtype, seen.dtype) == (image.shape, np.dtype(np.uint32), torch.int32)
    assert labels.max() >= 1
    np.testing.assert_array_equal(seen.numpy(), labels)
    np.testing.assert_array_equal(predictor.activations(image, heads=["seg"])["seg"].numpy(), labels)
    assert predictor.outputs["seg"] == {"kind": "instances", "activation": "sigmoid", "values": "labels"}


def test_only_the_heads_that_are_asked_for_are_computed(predictor):
    image = pixels(predictor.input.spatial_dims)
    expected = predictor.predict(image)["dist"]
    calls = []
    predictor.network.heads["seg"].register_forward_hook(lambda *_: calls.append(1))
    predictions = predictor.predict(image, heads=["dist"])
    assert list(predictions) == ["dist"]
    assert not calls
    np.testing.assert_array_equal(predictions["dist"], expected)
    with pytest.raises(ConfigError, match=r"no head 'nuclei'. Choose among seg, dist"):
        predictor.predict(image, heads=["nuclei"])
    with pytest.raises(ConfigError, match="Choose among seg, dist"):
        predictor.predict(image, heads=[])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image[None], "axes"),
        (lambda image: image[0, 0], "axes"),
        (lambda image: np.concatenate([image, image]), r"2 channels, .* with 1 channel\..* trained on"),
        (lambda image: image[:, :0], "empty"),
        (lambda image: np.where(image > 100, np.nan, image), "not finite"),
        (lambda image: np.where(image > 100, np.inf, image), "not finite"),
        (lambda image: image.astype(np.complex64), "complex64"),
        (lambda image: image.astype(object), "object"),
    ],
    ids=["axis too many", "axis too few", "channels", "empty", "nan", "inf", "complex", "objects"],
)
def test_an_image_that_does_not_fit_is_refused_with_what_is_expected(predictor, change, message):
    with pytest.raises(ImageError, match=message) as caught:
        predictor.predict(change(pixels(predictor.input.spatial_dims)))
    if "finite" not in message:
        assert f"({' '.join(predictor.input.axes)}) with 1 channel" in str(caught.value)


def test_the_file_is_named_when_there_is_one(predictor):
    with pytest.raises(ImageError, match=r"^plate/A1.tif: the image has 2 channel"):
        predictor.predict(Image(pixels(predictor.input.spatial_dims, channels=2), None, "plate/A1.tif"))


def test_a_network_that_overflows_is_an_error_of_the_image(predictor):
    with torch.no_grad():
        predictor.network.backbone.weight.fill_(3e38)
    with pytest.raises(ImageError, match="output is not finite for this image"):
        predictor.predict(pixels(predictor.input.spatial_dims))


def test_preprocessing_that_fails_names_the_image():
    crop = {
        "_target_": "monai.transforms.SpatialCropd",
        "keys": ["raw", "seg", "dist"],
        "roi_center": [4],
        "roi_size": [2],
    }
    broken = {"_target_": "monai.transforms.Rotate90d", "keys": ["raw", "seg", "dist"], "spatial_axes": [0, 5]}
    predictor = predictor_of(experiment("m.csv", preprocess=[crop, broken]))
    with pytest.raises(ImageError, match=r"^raw: .*Rotate90d"):
        predictor.predict(pixels(2))


def test_an_image_without_pixel_size_has_that_of_the_training_data():
    spacing = {"_target_": "monai.transforms.Spacingd", "keys": ["raw", "seg", "dist"], "pixdim": [0.4, 0.4]}
    predictor = predictor_of(experiment("m.csv", preprocess=[spacing]))
    half = predictor.preprocessed(Image(pixels(2), (0.2, 0.2), "x")).shape
    assert predictor.preprocessed(pixels(2)).shape[1] > SHAPE[2][0]  # 1 µm unless the model knows better
    knowing = replace(predictor, input=replace(predictor.input, spacing_um=(0.2, 0.2)))
    assert knowing.preprocessed(pixels(2)).shape == half
    assert half[1] < SHAPE[2][0]


UNET = predictor_of({**experiment("m.csv"), "model": {**experiment("m.csv")["model"], "backbone": unet(2)}})


@given(st.integers(1, 70), st.integers(1, 70))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_images_of_any_size_are_predicted(height, width):
    image = np.random.default_rng(0).integers(0, 255, (1, height, width)).astype(np.uint8)
    prediction = UNET.predict(image)["dist"]
    assert prediction.shape == image.shape
    assert math.isfinite(float(prediction.sum()))
