import numpy as np
import pytest
from kserve.errors import InvalidInput

from cyto_dl.data.fingerprint import PERCENTILES
from cyto_dl.data.image import Image
from serving.telemetry.drift import Training, describe, refuse_unusual


def document_of(images, *, spacing_um=None):
    """What a bundle says of training images, measured as `cyto_dl.data.fingerprint` does."""
    values = np.concatenate([image.ravel() for image in images])
    intensity = dict(zip((f"p{each:g}" for each in PERCENTILES), np.percentile(values, PERCENTILES), strict=True))
    sizes = np.array([image.shape[1:] for image in images])
    size = {"min": sizes.min(0).tolist(), "median": np.median(sizes, 0).tolist(), "max": sizes.max(0).tolist()}
    spacing = dict.fromkeys(("min", "median", "max"), spacing_um) if spacing_um else None
    return {"fingerprint": {"columns": {"raw": {"intensity": intensity, "size": size, "spacing_um": spacing}}}}


def field(dims, *, seed=0, factor=1.0):
    """A field of view with bright spots on a background of 400, 16 bits."""
    rng = np.random.default_rng(seed)
    image = rng.normal(400, 20, (1, *(16, 64, 64)[-dims:]))
    image[rng.random(image.shape) < 0.1] += 2000
    return (image * factor).astype(np.uint16)


def scores(training, image, spacing_um=None):
    return {finding.quantity: finding.score for finding in training.compare(image, spacing_um)}


@pytest.fixture(params=[2, 3])
def dims(request):
    return request.param


@pytest.fixture
def training(dims):
    images = [field(dims, seed=seed) for seed in range(4)]
    return Training.of(document_of(images, spacing_um=[0.5] * dims), "raw")


@pytest.mark.parametrize("factor", [0.5, 1, 2])  # exposure, staining: what augmentation and normalisation are for
def test_images_of_the_same_kind_are_accepted(training, dims, factor):
    assert max(scores(training, field(dims, seed=9, factor=factor), [0.5] * dims).values()) < 1


def test_other_units_an_empty_field_and_another_objective_are_unusual(training, dims):
    picture = field(dims, seed=9)
    assert scores(training, (picture / 256).astype(np.uint8))["intensity"] > 1
    assert scores(training, picture / 65535)["intensity"] > 1
    assert scores(training, np.full_like(picture, 400))["intensity"] == 99
    assert scores(training, picture, [1.0] * dims)["spacing"] > 1
    assert scores(training, picture, [0.2] * dims)["spacing"] > 1
    assert scores(training, picture[..., :4])["size"] > 1
    assert scores(training, np.tile(picture, 4))["size"] < 1  # a window at a time


def test_without_a_pixel_size_none_is_compared(training, dims):
    assert set(scores(training, field(dims))) == {"intensity", "size"}


def test_the_farthest_of_several_images_counts(training, dims):
    arrays = [field(dims), np.full_like(field(dims), 400), field(dims)]
    worst = training.compare_all([Image(array, None, "raw") for array in arrays])
    assert {finding.quantity: finding.score for finding in worst}["intensity"] == 99


@pytest.mark.parametrize("axis", [1, 2])
def test_the_sample_does_not_follow_the_rows(axis):
    image = np.zeros((1, 1024, 1024), np.uint16)
    np.moveaxis(image, axis, -1)[..., ::2] = 1000
    training = Training.of(document_of([image]), "raw")
    assert scores(training, image)["intensity"] < 0.1


@pytest.mark.parametrize(
    "document", [{}, {"fingerprint": {}}, {"fingerprint": {"columns": {}}}, {"fingerprint": {"columns": {"raw": {}}}}]
)
def test_a_bundle_that_says_nothing_is_not_compared(document):
    assert Training.of(document, "raw") is None


def test_what_is_unusual_is_described_and_refused(training, dims):
    usual, blank = training.compare(field(dims)), training.compare(np.full_like(field(dims), 400))
    assert describe(usual) == "none"
    refuse_unusual(usual)
    assert describe(blank) == "intensity=99.00"
    with pytest.raises(InvalidInput, match="1st, 50th and 99th percentiles are 400, 400 and 400"):
        refuse_unusual(blank)
