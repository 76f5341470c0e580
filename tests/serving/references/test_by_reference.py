"""A request that names a file gets what the file itself would get."""

import io

import numpy as np
import pytest

from cyto_dl.data.image import read_image, write_image
from cyto_dl.data.ome_zarr import write_ome_zarr
from serving.limits import Limits
from serving.model import BundleModel
from serving.references.addresses import Addresses
from serving.server import BundleServer
from tests.serving.conftest import ask, make_predictor
from tests.serving.wire import npy

SPACING = (0.5, 0.25, 0.25)


@pytest.fixture
def folder(tmp_path):
    """A folder with `in`, which may be read, and `out`, which may be written."""
    (tmp_path / "in").mkdir()
    return tmp_path


@pytest.fixture
def referring(models, executor, folder):
    """A server that reads and writes there."""
    addresses = Addresses((str(folder / "in"),), (str(folder / "out"),))
    server = BundleServer(executor, load=None, addresses=addresses)
    for model in models.values():
        server.register_model(model)
    return server


@pytest.fixture(params=[2, 3])
def dims(request):
    return request.param


def predict(server, dims, **document):
    return ask(server, "POST", f"/v1/models/cells_{dims}:predict", json=document)


@pytest.mark.parametrize("suffix", [".ome.tif", ".npy"])
def test_a_file_at_an_address_is_predicted_as_if_it_had_been_sent(referring, folder, image, dims, suffix):
    path = folder / "in" / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, image(dims))
    else:
        write_image(path, image(dims), spacing_um=SPACING[-dims:])
    outputs = {"outputs": ["distance"], "parameters": {"overlap": 0.5}}
    by_reference = predict(referring, dims, image_uri=str(path), **outputs)
    sent = ask(
        referring, "POST", f"/v1/models/cells_{dims}:predict", content=path.read_bytes(),
        headers={"X-Outputs": "distance"}, params={"overlap": "0.5"},
    )  # fmt: skip
    assert by_reference.status_code == sent.status_code == 200, by_reference.text
    assert by_reference.content == sent.content
    assert by_reference.headers["content-type"] == sent.headers["content-type"]
    assert by_reference.headers["x-windows"] == sent.headers["x-windows"]


def test_results_are_written_with_the_pixel_size_and_described(referring, models, folder, image, dims):
    write_image(folder / "in/a.ome.tif", image(dims), spacing_um=SPACING[-dims:])
    answer = predict(referring, dims, image_uri=f"{folder}/in/a.ome.tif", output_uri=f"file://{folder}/out/a")
    assert answer.status_code == 200, answer.text
    wanted = models[dims].predictor.predict(image(dims))
    described = {each["name"]: each for each in answer.json()["outputs"]}
    assert described.keys() == wanted.keys()
    for head, array in wanted.items():
        written = read_image(described[head]["uri"], spatial_dims=dims)
        np.testing.assert_array_equal(written.array, array)
        assert written.spacing_um == pytest.approx(SPACING[-dims:])
        assert described[head]["shape"] == list(array.shape)
        assert described[head]["datatype"] == str(array.dtype)
    assert sorted(path.name for path in (folder / "out/a").iterdir()) == ["distance.ome.tif", "seg.ome.tif"]


def test_an_ome_zarr_is_predicted_into_an_ome_zarr(referring, models, folder, image, dims):
    write_ome_zarr(folder / "in/a.ome.zarr", image(dims), spacing_um=SPACING[-dims:])
    document = {"image_uri": f"{folder}/in/a.ome.zarr", "outputs": ["distance"]}
    answer = predict(referring, dims, **document, output_uri=f"{folder}/out", format="ome.zarr")
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    assert output["uri"] == f"{folder}/out/distance.ome.zarr"
    written = read_image(output["uri"], spatial_dims=dims)
    wanted = models[dims].predictor.predict(image(dims))["distance"]
    np.testing.assert_array_equal(written.array, wanted)
    assert written.spacing_um == pytest.approx(SPACING[-dims:])
    sent = predict(referring, dims, **document)
    np.testing.assert_array_equal(np.load(io.BytesIO(sent.content)), wanted)


def test_an_ome_zarr_is_refused_by_its_metadata_before_its_chunks_are_read(executor, folder):
    model = BundleModel("cells_2", make_predictor(2), executor, limits=Limits(voxels=1000))
    server = BundleServer(executor, load=None, addresses=Addresses((str(folder),)))
    server.register_model(model)
    write_ome_zarr(folder / "a.ome.zarr", np.ones((1, 40, 40), np.uint8), spacing_um=None)
    (folder / "a.ome.zarr/0/0/0/0").write_bytes(b"damaged")
    answer = predict(server, 2, image_uri=f"{folder}/a.ome.zarr")
    assert answer.status_code == 413, answer.text


@pytest.mark.parametrize(
    ("document", "status", "named"),
    [
        ({"image_uri": "{}/in/none.tif"}, 400, "image_uri"),
        ({"image_uri": "{}/in"}, 400, "image_uri"),
        ({"image_uri": "{}/in/a.tif", "instances": []}, 400, "instances"),
        ({"image_uri": "{}/in/a.tif", "outputs": ["no"]}, 400, "outputs"),
        ({"image_uri": "{}/in/a.tif", "parameters": {"overlap": 7}}, 400, "overlap"),
        ({"image_uri": "{}/in/damaged.tif"}, 400, "image_uri"),
        ({"image_uri": "{}/in/linked.zarr"}, 400, "image_uri: the OME-Zarr has links inside"),
        ({"image_uri": "{}/in/notes.tif"}, 400, "image_uri: the file is no image"),
        ({"image_uri": "{}/in/a.tif", "output_uri": 3}, 400, "output_uri"),
        ({"image_uri": "{}/in/a.tif", "format": "jpg"}, 400, "format"),
        ({"image_uri": "{}/in/a.tif", "format": "ome.zarr"}, 400, "format"),
        ({"image_uri": "{}/in/no.zarr"}, 400, "image_uri"),
        ({"image_uri": "{}/in/empty.zarr"}, 400, "image_uri"),
        ({"image_uri": "{}/out/a.tif"}, 403, "image_uri"),
        ({"image_uri": "{}/in/../secret.tif"}, 403, "image_uri"),
        ({"image_uri": "{}/in/a.tif", "output_uri": "{}/in"}, 403, "output_uri"),
    ],
)
def test_a_wrong_reference_is_answered_with_its_key_and_no_path(referring, folder, image, document, status, named):
    write_image(folder / "in/a.tif", image(2))
    (folder / "in/empty.zarr").mkdir()
    (folder / "in/linked.zarr").mkdir()
    (folder / "in/linked.zarr/0").symlink_to(folder)
    (folder / "in/notes.tif").write_text("no pixels")
    (folder / "in/damaged.tif").write_bytes((folder / "in/a.tif").read_bytes()[:300])
    document = {key: each.format(folder) if isinstance(each, str) else each for key, each in document.items()}
    answer = predict(referring, 2, **document)
    assert answer.status_code == status, answer.text
    assert named in answer.json()["error"]
    assert str(folder) not in answer.text


def test_nothing_is_read_by_default(send, tmp_path, image):
    write_image(tmp_path / "a.tif", image(2))
    answer = send("POST", "/v1/models/cells_2:predict", json={"image_uri": f"{tmp_path}/a.tif"})
    assert answer.status_code == 403
    assert "the operator has not allowed it" in answer.json()["error"]


@pytest.mark.parametrize("what", ["file", "voxels"])
def test_a_file_that_is_too_large_is_refused_before_its_pixels_are_read(executor, folder, what):
    model = BundleModel("cells_2", make_predictor(2), executor, limits=Limits(voxels=10_000))
    server = BundleServer(executor, load=None, addresses=Addresses((str(folder),)))
    server.register_model(model)
    path = folder / "a.tif"
    if what == "file":
        with path.open("wb") as file:
            file.truncate(10**10)  # a hole: nothing could be read of it in this time
    else:
        write_image(path, np.zeros((1, 4000, 4000), np.uint8))  # a few thousand bytes
    answer = predict(server, 2, image_uri=str(path))
    assert answer.status_code == 413, answer.text
    assert "image_uri" in answer.json()["error"]


def test_a_failed_write_is_the_servers_fault_and_leaves_nothing(referring, folder, image):
    write_image(folder / "in/a.tif", image(2))
    (folder / "out").write_text("a file where the folder should be")
    answer = predict(referring, 2, image_uri=f"{folder}/in/a.tif", output_uri=f"{folder}/out/a")
    assert answer.status_code == 500
    assert str(folder) not in answer.text


def test_a_body_may_still_be_pixels(referring, image):
    answer = ask(referring, "POST", "/v1/models/cells_2:predict", content=npy(image(2)), headers={"X-Outputs": "seg"})
    assert np.load(io.BytesIO(answer.content)).shape == image(2).shape
