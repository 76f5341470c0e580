"""The sample is a telling piece of an image, and a replay notices what it must."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cyto_dl.bundle.sample import EXACT, crop_for_sample, make_sample, read_sample, replay, write_sample
from cyto_dl.data.image import Image
from cyto_dl.errors import BundleError
from tests.bundle.tiny import SHAPE, experiment, predictor_of


@pytest.fixture(params=[2, 3])
def predictor(request):
    return predictor_of(experiment("m.csv", request.param))


@pytest.fixture
def sample(predictor):
    pixels = np.random.default_rng(0).integers(0, 999, (1, *SHAPE[predictor.input.spatial_dims]))
    return make_sample(predictor, Image(pixels.astype(np.uint16), (0.1,) * predictor.input.spatial_dims, "x"))


def altered(sample, head, change):
    """The sample with other recorded activations and images of one head."""
    images = {**sample.images, head: change(sample.images[head])}
    return replace(sample, images=images)


def test_a_sample_survives_its_file(sample, tmp_path):
    write_sample(tmp_path / "sample.npz", sample)
    again = read_sample(tmp_path / "sample.npz")
    assert again.image.spacing_um == sample.image.spacing_um
    np.testing.assert_array_equal(again.image.array, sample.image.array)
    assert set(again.images) == set(again.activations) == {"seg", "dist"}
    for head in sample.images:
        np.testing.assert_array_equal(again.images[head], sample.images[head])


def test_the_same_model_repeats_its_sample_bit_for_bit(predictor, sample):
    replay(predictor, sample, tolerance=EXACT)


def test_a_float_may_differ_by_rounding_but_not_by_more(predictor, sample):
    replay(predictor, altered(sample, "dist", lambda array: array + np.float32(5e-5)))
    with pytest.raises(BundleError, match=r"dist: values differ by up to 0\.01"):
        replay(predictor, altered(sample, "dist", lambda array: array + np.float32(1e-2)))
    with pytest.raises(BundleError, match="dist: not the same bit for bit"):
        replay(predictor, altered(sample, "dist", lambda array: array + np.float32(5e-5)), tolerance=EXACT)


def test_grey_values_may_be_rounded_to_a_neighbour(predictor, sample):
    replay(predictor, altered(sample, "seg", lambda array: array + np.uint8(1)))
    with pytest.raises(BundleError, match="seg: values differ by up to 2"):
        replay(predictor, altered(sample, "seg", lambda array: array + np.uint8(2)))


def test_one_label_in_ten_thousand_may_differ(predictor, sample):
    outputs = {**predictor.outputs, "seg": {**predictor.outputs["seg"], "values": "labels"}}
    labelling = replace(predictor, outputs=outputs)

    def flip(count):
        def change(array):
            flat = array.copy().ravel()
            flat[:count] += 1
            return flat.reshape(array.shape)

        return change

    allowed = sample.images["seg"].size // 10_000
    replay(labelling, altered(sample, "seg", flip(allowed)))
    with pytest.raises(BundleError, match="have another label"):
        replay(labelling, altered(sample, "seg", flip(allowed + 1)))


def test_objects_may_have_other_numbers_but_not_other_pixels(predictor, sample):
    outputs = {**predictor.outputs, "seg": {**predictor.outputs["seg"], "values": "labels", "kind": "instances"}}
    counting = replace(predictor, outputs=outputs)
    counting.postprocess["seg"] = lambda logits: torch.from_numpy(objects).clone()
    objects = np.zeros(sample.images["seg"].shape, np.uint32)
    objects[..., 2:8, 2:8], objects[..., 2:8, 9:15] = 1, 2
    sample = altered(sample, "seg", lambda _: objects)
    del sample.activations["seg"]
    renumbered = altered(sample, "seg", lambda array: np.array([0, 7, 3], np.uint32)[array])
    replay(counting, renumbered)
    with pytest.raises(BundleError, match="not the same bit for bit"):
        replay(counting, renumbered, tolerance=EXACT)
    for merge_or_split in (np.array([0, 1, 1], np.uint32)[objects], np.where(objects == 2, objects + 1, objects)):
        merge_or_split[..., 2:8, 12:15] *= 2
        with pytest.raises(BundleError, match="belong to another object"):
            replay(counting, altered(sample, "seg", lambda _, changed=merge_or_split: changed.astype(np.uint32)))


def test_an_output_of_another_shape_or_type_is_named(predictor, sample):
    with pytest.raises(BundleError, match=r"seg: uint8 .* recorded was uint16"):
        replay(predictor, altered(sample, "seg", lambda array: array.astype(np.uint16)))
    with pytest.raises(BundleError, match="seg: no output was recorded"):
        replay(predictor, replace(sample, images={"dist": sample.images["dist"]}))


@pytest.mark.parametrize(("shape", "roi"), [((1, 90, 120), (32, 32)), ((2, 20, 60, 60), (8, 16, 16))])
def test_the_crop_covers_two_windows_where_there_is_most_to_see(shape, roi):
    pixels = np.zeros(shape, np.uint8)
    pixels[0, ..., -8:, -8:] = np.random.default_rng(0).integers(0, 255, (8, 8))
    crop = crop_for_sample(Image(pixels, None, "x"), roi)
    assert crop.array.shape == (shape[0], *roi[:-1], roi[-1] * 3 // 2)
    assert crop.array[0].std() > 0


def test_a_small_image_is_taken_whole():
    image = Image(np.ones((1, 10, 12), np.uint8), None, "x")
    assert crop_for_sample(image, (32, 32)).array.shape == (1, 10, 12)
    assert crop_for_sample(image, None).array.shape == (1, 10, 12)
