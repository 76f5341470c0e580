"""What preprocessing does to an image's geometry is undone on what is predicted."""

import numpy as np
import pytest
import torch

from cyto_dl.bundle.build import build_predictor, document_from_config
from cyto_dl.data.image import Image
from cyto_dl.data.transforms import as_meta_tensor
from cyto_dl.errors import ConfigError
from cyto_dl.inference.geometry import check_geometry
from tests.bundle.tiny import SHAPE, experiment, predictor_of

ALL = ["raw", "seg", "dist"]
SPACING_UM = {2: (0.25, 0.2), 3: (0.5, 0.25, 0.2)}


def transform(name, **arguments):
    return {"_target_": f"monai.transforms.{name}", "keys": ALL, **arguments}


def resampling(spatial_dims):
    return {
        "Spacingd": [transform("Spacingd", pixdim=[0.5, 0.4, 0.3][-spatial_dims:])],
        "Zoomd": [transform("Zoomd", zoom=0.5, keep_size=False)],
        "Resized": [transform("Resized", spatial_size=[9, 20, 31][-spatial_dims:])],
        "CropForegroundd": [transform("CropForegroundd", source_key="raw")],
        "SpatialPadd": [transform("SpatialPadd", spatial_size=[16, 60, 70][-spatial_dims:])],
        "Transposed": [transform("Transposed", indices=[0, *range(spatial_dims, 0, -1)])],
        "several": [
            transform("EnsureTyped"),
            transform("ToTensord"),
            transform("Flipd", spatial_axis=-1),
            transform("CropForegroundd", source_key="raw"),
            transform("Spacingd", pixdim=[0.5, 0.4, 0.3][-spatial_dims:]),
            transform("DivisiblePadd", k=4),
        ],
    }


def passing_through(spatial_dims, preprocess):
    """A model whose head `dist` gives what it sees."""
    config = experiment("m.csv", spatial_dims, preprocess=preprocess)
    config["data"]["transforms"]["preprocess"] = preprocess
    config["model"]["backbone"] = {"_target_": "torch.nn.Identity"}
    for head in config["model"]["task_heads"].values():
        head["head"] = {"_target_": "cyto_dl.model.heads.IdentityHead"}
    return predictor_of(config)


def ramp(spatial_dims):
    """An image in which every pixel tells its place, linearly; its border is zero."""
    places = np.stack(np.meshgrid(*(np.arange(size) for size in SHAPE[spatial_dims]), indexing="ij"))
    weights = np.array([5.0, 2.0, 1.0][-spatial_dims:]).reshape(-1, *[1] * spatial_dims)
    pixels = 50 + (weights * places).sum(axis=0)
    pixels[~interior(spatial_dims, margin=1)] = 0
    return Image(pixels[None].astype(np.float32), SPACING_UM[spatial_dims], "x")


def interior(spatial_dims, margin):
    mask = np.zeros(SHAPE[spatial_dims], bool)
    mask[(slice(margin, -margin),) * spatial_dims] = True
    return mask


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("name", list(resampling(2)))
def test_a_prediction_lies_where_its_image_lies(name, spatial_dims):
    predictor = passing_through(spatial_dims, resampling(spatial_dims)[name])
    image = ramp(spatial_dims)
    prediction = predictor.predict(image)["dist"]
    assert prediction.shape == image.array.shape
    inside = interior(spatial_dims, margin=4)  # half-size pixels mix with the zeros of the border
    # A ramp survives linear interpolation; whole-pixel sizes after resampling stretch it by less than half a pixel.
    difference = np.abs(prediction - image.array)[0, inside]
    assert difference.max() < {"CropForegroundd": 1e-3, "SpatialPadd": 1e-3, "Transposed": 1e-3}.get(name, 2.5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_outside_a_crop_the_nearest_prediction_continues(spatial_dims):
    pixels = np.zeros((1, *SHAPE[spatial_dims]), np.float32)
    pixels[(0, *[slice(3, 8)] * spatial_dims)] = 5
    predictor = passing_through(spatial_dims, resampling(spatial_dims)["CropForegroundd"])
    prediction = predictor.activations(pixels)
    assert float(prediction["dist"].min()) == 5  # zeros would be what MONAI pads with
    assert prediction["seg"].min() > 0.99


def test_no_change_of_geometry_costs_nothing():
    predictor = passing_through(2, [])
    image = ramp(2)
    # the window's weights sum to 1 within the precision of a float
    np.testing.assert_allclose(predictor.predict(image)["dist"], image.array, rtol=1e-6)


def test_a_head_that_projects_is_put_back_on_the_planes_of_its_image():
    config = experiment("m.csv", 3, preprocess=[transform("Spacingd", pixdim=[0.5, 0.5, 0.5])])
    config["model"]["inference"]["roi_size"] = [16, 16, 16]
    config["model"]["task_heads"]["seg"]["head"] = {
        "_target_": "cyto_dl.model.heads.ProjectionHead",
        "in_channels": 4,
        "out_channels": 1,
    }
    image = ramp(3)
    predictions = predictor_of(config).predict(image)
    assert predictions["seg"].shape == (1, *image.array.shape[2:])
    assert predictions["dist"].shape == image.array.shape


def test_a_head_that_enlarges_cannot_be_combined_with_resampling():
    config = experiment("m.csv", preprocess=[transform("Zoomd", zoom=0.5, keep_size=False)])
    config["model"]["task_heads"]["seg"]["head"] = {"_target_": "torch.nn.ConvTranspose2d", "in_channels": 4}
    config["model"]["task_heads"]["seg"]["head"] |= {"out_channels": 1, "kernel_size": 2, "stride": 2}
    with torch.random.fork_rng():
        predictor = build_predictor(document_from_config(config))
    with pytest.raises(ConfigError, match=r"preprocess changes the images' geometry, and a head turns"):
        predictor.predict(ramp(2))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_what_cannot_be_undone_is_found_by_name(spatial_dims):
    image = as_meta_tensor(ramp(spatial_dims))
    for preprocess in resampling(spatial_dims).values():
        check_geometry(passing_through(spatial_dims, preprocess).preprocess, image, key="raw")
    patches = [*resampling(spatial_dims)["Zoomd"], transform("GridPatchd", patch_size=[4] * spatial_dims)]
    with pytest.raises(ConfigError, match=r"GridPatchd turns .* pixels into .* cannot invert"):
        check_geometry(passing_through(spatial_dims, patches).preprocess, image, key="raw")
