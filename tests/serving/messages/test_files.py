"""A V1 body that is a file gives what the predictor gives for the file on the disk, in the format asked for."""

import dataclasses
import io
import zipfile

import numpy as np
import pytest
import tifffile
import torch
from monai.transforms import Spacingd
from PIL import Image as Picture

from cyto_dl.data.image import read_image, write_image
from cyto_dl.inference.batch import predict_file
from cyto_dl.model.utils.postprocessing import argmax, identity, sigmoid_threshold
from serving.executor import Executor
from serving.limits import Limits
from serving.model import BundleModel
from serving.server import BundleServer
from tests.serving.conftest import ask, make_predictor
from tests.serving.wire import binary_request, npy, read_tensors

ROUTE = "/v1/models/cells:predict"


def ome(array, spacing_um=None):
    file = io.BytesIO()
    write_image(file, array, spacing_um=spacing_um)
    return file.getvalue()


def png(array):
    file = io.BytesIO()
    Picture.fromarray(array).save(file, "png")
    return file.getvalue()


@pytest.fixture
def served():
    """Makes a server with one model `cells`; changes are of the predictor. Returns it and the predictor."""

    def serve(dims=2, *, limits=Limits(), load=None, **changes):  # noqa: B008  # it is frozen
        predictor = dataclasses.replace(make_predictor(dims), **changes)
        predictor = dataclasses.replace(
            predictor, input=dataclasses.replace(predictor.input, load=load or {"spatial_dims": dims})
        )
        executor = Executor(max_running=1)
        server = BundleServer(executor, load=None, limits=limits)
        server.register_model(BundleModel("cells", predictor, executor, limits=limits))
        return server, predictor

    return serve


RGB = np.random.default_rng(0).integers(0, 255, (21, 18, 3), np.uint8)
FILES = {
    "grey.png": lambda image: png(image(2)[0]),
    "plane.ome.tif": lambda image: ome(image(2), (0.2, 0.1)),
    "stack.ome.tif": lambda image: ome(image(3), (0.5, 0.2, 0.1)),
    "array.npy": lambda image: npy(image(2)),
    "stack.npy": lambda image: npy(image(3)[0]),
}


@pytest.mark.parametrize("name", FILES)
def test_the_answer_is_what_is_predicted_for_the_file_on_the_disk(served, image, tmp_path, name):
    dims = 3 if name.startswith("stack") else 2
    server, predictor = served(dims, preprocess=[Spacingd("raw", pixdim=(0.4,) * dims)] if "ome" in name else [])
    (tmp_path / name).write_bytes(FILES[name](image))
    response = ask(server, "POST", ROUTE, content=(tmp_path / name).read_bytes())
    assert response.headers["content-type"] == "application/x-npz"
    wanted = predictor.predict(predictor.read(tmp_path / name))
    with np.load(io.BytesIO(response.content), allow_pickle=False) as archive:
        assert set(archive) == set(wanted)
        for head, array in wanted.items():
            assert archive[head].dtype == array.dtype
            np.testing.assert_array_equal(archive[head], array)


@pytest.mark.parametrize("kind", ["png", "tiff", "npy"])
def test_the_bundles_own_channel_is_picked(served, kind):
    server, predictor = served(load={"spatial_dims": 2, "channels": [1]})
    planes = np.moveaxis(RGB, -1, 0)
    body = {"png": png(RGB), "tiff": ome(planes), "npy": npy(planes)}[kind]
    response = ask(server, "POST", ROUTE, content=body, headers={"X-Outputs": "seg"})
    got = np.load(io.BytesIO(response.content), allow_pickle=False)
    np.testing.assert_array_equal(got, predictor.predict(planes[1:2])["seg"])


@pytest.mark.parametrize("dims", [2, 3])
def test_an_ome_tiff_is_asked_for_and_is_the_file_that_batch_prediction_writes(served, image, tmp_path, dims):
    server, predictor = served(dims)
    spacing_um = (0.5, 0.2, 0.1)[-dims:]
    (tmp_path / "a.ome.tif").write_bytes(ome(image(dims), spacing_um))
    headers = {"X-Outputs": "distance", "Accept": "image/tiff"}
    response = ask(server, "POST", ROUTE, content=(tmp_path / "a.ome.tif").read_bytes(), headers=headers)
    assert response.headers["content-type"] == "image/tiff"
    row = predict_file(predictor, str(tmp_path / "a.ome.tif"), tmp_path / "out", "a")
    (tmp_path / "got.ome.tif").write_bytes(response.content)
    got, wanted = (read_image(path, spatial_dims=dims) for path in (tmp_path / "got.ome.tif", row["distance"]))
    np.testing.assert_array_equal(got.array, wanted.array)
    assert got.spacing_um == wanted.spacing_um == spacing_um


def test_the_pixel_size_may_be_asked_for_where_the_file_has_none(served, image):
    server, _ = served(preprocess=[Spacingd("raw", pixdim=(0.4, 0.4))])
    headers = {"X-Outputs": "distance", "Accept": "image/tiff"}
    path = f"{ROUTE}?spacing_um=0.2,0.1"
    response = ask(server, "POST", path, content=npy(image(2)), headers=headers)
    with_size = ask(server, "POST", ROUTE, content=ome(image(2), (0.2, 0.1)), headers=headers)
    np.testing.assert_array_equal(*(tifffile.imread(io.BytesIO(each.content)) for each in (response, with_size)))
    without = ask(server, "POST", ROUTE, content=npy(image(2)), headers=headers)
    assert not np.array_equal(*(tifffile.imread(io.BytesIO(each.content)) for each in (response, without)))


def large(image):
    """An image of labels that is worth packing."""
    return np.tile(image(2), (1, 16, 16))


def test_labels_are_compressed_and_floats_are_not(served, image):
    server, _ = served(postprocess={"seg": sigmoid_threshold, "distance": identity})
    with zipfile.ZipFile(io.BytesIO(ask(server, "POST", ROUTE, content=npy(image(2))).content)) as archive:
        methods = {each.filename: each.compress_type for each in archive.infolist()}
    assert methods == {"seg.npy": zipfile.ZIP_DEFLATED, "distance.npy": zipfile.ZIP_STORED}
    headers = {"X-Outputs": "seg", "Accept": "image/tiff"}
    with tifffile.TiffFile(
        io.BytesIO(ask(server, "POST", ROUTE, content=npy(image(2)), headers=headers).content)
    ) as tif:
        assert tif.pages[0].compression.name == "ADOBE_DEFLATE"


@pytest.mark.parametrize("head", ["seg", "distance"])
@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_large_labels_come_as_gzip_to_clients_that_take_it(served, image, head, encoding):
    server, predictor = served(postprocess={"seg": sigmoid_threshold, "distance": identity})
    accept = {"Accept-Encoding": encoding}
    response = ask(server, "POST", ROUTE, content=npy(large(image)), headers=accept | {"X-Outputs": head})
    is_packed = head == "seg" and encoding == "gzip"
    assert response.headers.get("content-encoding") == ("gzip" if is_packed else None)
    got = np.load(io.BytesIO(response.content), allow_pickle=False)
    np.testing.assert_array_equal(got, predictor.predict(large(image))[head])
    body, headers = binary_request(large(image)[None], outputs=[head])
    response = ask(server, "POST", "/v2/models/cells/infer", content=body, headers=headers | accept)
    assert response.headers.get("content-encoding") == ("gzip" if is_packed else None)
    np.testing.assert_array_equal(read_tensors(response)[head][0], got)


WISHES = {
    "": "application/x-npy",
    "*/*": "application/x-npy",
    "image/*": "image/tiff",
    "image/png": "image/png",
    "application/x-npz": "application/x-npz",
    "application/json": "application/json",
    "image/gif, image/png;q=0.5, image/tiff;q=0.9": "image/tiff",
    "image/tiff;q=0, image/*;q=0.2": "image/tiff",
    "text/html, */*;q=0.1": "application/x-npy",
    "IMAGE/PNG": "image/png",
}


@pytest.mark.parametrize(("accept", "media_type"), WISHES.items())
def test_the_answer_comes_in_the_format_that_is_liked_best(served, image, accept, media_type):
    server, predictor = served()
    headers = {"X-Outputs": "seg", "Accept": accept}
    response = ask(server, "POST", ROUTE, content=npy(image(2)), headers=headers)
    assert response.headers["content-type"] == media_type
    wanted = predictor.predict(image(2))["seg"]
    readers = {
        "application/x-npy": lambda content: np.load(io.BytesIO(content), allow_pickle=False),
        "application/x-npz": lambda content: np.load(io.BytesIO(content), allow_pickle=False)["seg"],
        "image/tiff": lambda content: tifffile.imread(io.BytesIO(content))[None],
        "image/png": lambda content: np.asarray(Picture.open(io.BytesIO(content)))[None],
        "application/json": lambda content: np.array(response.json()["predictions"][0]["seg"], np.uint8),
    }
    got = readers[media_type](response.content)
    assert got.dtype == wanted.dtype
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("accept", "outputs"),
    [("text/html", "seg"), ("image/png", "distance"), ("image/tiff", "seg,distance"), ("image/png;q=x", "seg")],
)
def test_a_format_that_there_is_not_is_not_acceptable_before_anything_is_computed(served, image, accept, outputs):
    server, _ = served(postprocess={})  # with which nothing can be computed
    headers = {"X-Outputs": outputs, "Accept": accept}
    response = ask(server, "POST", ROUTE, content=npy(image(2)), headers=headers)
    assert response.status_code == 406
    assert "application/x-npz, " in response.json()["error"]
    assert accept in response.json()["error"]


@pytest.mark.parametrize(("largest", "status"), [(65535, 200), (65536, 406)])
def test_objects_are_a_png_of_16_bits_unless_they_are_too_many(served, image, largest, status):
    def draw(logits):
        return torch.full(logits.shape, largest).to(torch.uint32)

    output = {"kind": "instances", "activation": "none", "axes": "CYX", "channels": 1, "dtype": "uint32"}
    server, _ = served(postprocess={"seg": draw, "distance": identity}, outputs={"seg": output})
    response = ask(server, "POST", ROUTE, content=npy(image(2)), headers={"Accept": "image/png"})
    assert response.status_code == status
    if status == 200:
        assert (np.asarray(Picture.open(io.BytesIO(response.content))) == largest).all()
    else:
        assert "image/tiff" in response.json()["error"]


def test_a_small_file_that_unfolds_to_more_voxels_than_are_taken_is_too_large(served):
    server, _ = served(limits=Limits(voxels=10_000))
    for body in (
        png(np.zeros((200, 200), np.uint8)),
        ome(np.zeros((1, 200, 200), np.uint8)),
        npy(np.zeros((1, 200, 200))),
    ):
        response = ask(server, "POST", ROUTE, content=body)
        assert response.status_code == 413
        assert "10000" in response.json()["error"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: png(RGB), ["the body", "3 channels", "1 channel"]),
        (lambda: ome(np.zeros((1, 5, 6, 7), np.uint8)), ["the body", "5 planes", "Save one"]),
        (lambda: ome(np.full((1, 6, 7), np.nan, np.float32)), ["the body", "not finite"]),
        (lambda: png(RGB[..., 0])[:60], ["the body", "damaged"]),
        (lambda: ome(np.zeros((1, 64, 64), np.uint8))[:-200], ["the body"]),
    ],
)
def test_a_file_of_another_image_than_the_model_takes_is_refused(served, make, words):
    server, _ = served()
    response = ask(server, "POST", ROUTE, content=make())
    assert response.status_code == 400
    assert [word for word in words if word not in response.json()["error"]] == []
    assert "/tmp" not in response.text


def test_axes_of_a_file_that_names_them_are_not_asked_for(served):
    server, _ = served()
    response = ask(server, "POST", f"{ROUTE}?axes=YX", content=png(RGB[..., 0]))
    assert response.status_code == 400
    assert "axes" in response.json()["error"]


def test_classes_of_several_channels_are_one_grey_picture(served, image):
    output = {"kind": "segmentation", "activation": "softmax", "axes": "CYX", "channels": 1, "dtype": "uint8"}
    server, predictor = served(
        postprocess={"seg": lambda logits: argmax(logits.repeat(2, 1, 1)), "distance": identity},
        outputs={"seg": output},
    )
    response = ask(server, "POST", ROUTE, content=npy(image(2)), headers={"Accept": "image/png"})
    got = np.asarray(Picture.open(io.BytesIO(response.content)))
    np.testing.assert_array_equal(got, predictor.predict(image(2))["seg"][0])
