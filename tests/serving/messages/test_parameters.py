"""Parameters of a request reach the prediction, over every protocol, and are refused by name out of their bounds."""

import asyncio
import dataclasses
import functools
import io

import numpy as np
import pytest

from cyto_dl.inference.parameters import with_parameters
from cyto_dl.model.utils.postprocessing import connected_components, identity
from serving.model import BundleModel
from tests.serving.conftest import client_of
from tests.serving.wire import binary_request, npy, read_tensors, tensor

INFER, PREDICT = "/v2/models/blobs/infer", "/v1/models/blobs:predict"
VALUES = {"threshold": 0.52, "min_size": 3, "overlap": 0.5, "augment": "flips"}


@pytest.fixture
def predictor(server, models, executor):
    """Of the model `blobs`, which the server serves meanwhile; its heads are seg (labels) and distance."""
    draw = functools.partial(connected_components, threshold=0.5)
    made = dataclasses.replace(
        models[2].predictor,
        postprocess={"seg": draw, "distance": identity},
        outputs=models[2].predictor.outputs | {"seg": models[2].predictor.outputs["seg"] | {"dtype": "uint32"}},
    )
    server.register_model(BundleModel("blobs", made, executor))
    yield made
    server.models.get_models().pop("blobs")


@pytest.fixture
def wanted(predictor, image):
    found = with_parameters(predictor, VALUES).predict(image(2))
    assert not np.array_equal(found["seg"], predictor.predict(image(2))["seg"])
    return found


def texts(values):
    return {name: str(value) for name, value in values.items()}


@pytest.mark.parametrize("form", [dict, texts])
def test_a_tensor_request_brings_its_parameters(send, wanted, image, form):
    body = {"inputs": [tensor(image(2)[None])], "parameters": form(VALUES), "outputs": [{"name": "distance"}]}
    np.testing.assert_array_equal(read_tensors(send("POST", INFER, json=body))["distance"][0], wanted["distance"])


def test_a_file_brings_them_in_its_address(send, wanted, image):
    response = send("POST", PREDICT, params=VALUES, content=npy(image(2)))
    with np.load(io.BytesIO(response.content), allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["seg"], wanted["seg"])
        np.testing.assert_array_equal(archive["distance"], wanted["distance"])


def test_v1_json_brings_them_beside_its_images(send, wanted, image):
    response = send("POST", PREDICT, json={"instances": [image(2).tolist()], "parameters": VALUES})
    np.testing.assert_array_equal(np.array(response.json()["predictions"][0]["seg"]), wanted["seg"])


def test_requests_with_different_parameters_at_once_each_get_their_own(server, predictor, image):
    choices = [{"threshold": 0.5}, {"threshold": 0.53}, {"augment": "flips"}, {"overlap": 0.5}]
    expected = [with_parameters(predictor, values).predict(image(2))["distance"] for values in choices]

    async def talk():
        async with client_of(server, timeout=60) as http:
            asked = [
                http.post(PREDICT, params=values, content=npy(image(2)), headers={"X-Outputs": "distance"})
                for values in choices
            ]
            return await asyncio.gather(*asked)

    for answer, found in zip(asyncio.run(talk()), expected, strict=True):
        # windows of several requests in a batch take another algorithm of oneDNN: last bits of float32
        np.testing.assert_allclose(np.load(io.BytesIO(answer.content)), found, rtol=1e-5, atol=1e-3)


WRONG = {
    "unknown": ({"treshold": 0.5}, ["'treshold'", "threshold", "min_size", "timeout_s"]),
    "too high": ({"threshold": 1}, ["threshold", "between 0 and 1"]),
    "not a number": ({"threshold": "high"}, ["threshold", "'high'", "a number"]),
    "boolean": ({"min_size": True}, ["min_size", "True", "whole number"]),
    "negative": ({"min_size": -3}, ["min_size", "-3"]),
    "overlap of 1": ({"overlap": 1.0}, ["overlap", "0 to 0.75"]),
    "unknown choice": ({"augment": "mirror"}, ["augment", "'mirror'", "flips"]),
    "no time": ({"timeout_s": 0}, ["timeout_s", "0.01"]),
    "more time than there is": ({"timeout_s": 301}, ["timeout_s", "300"]),
    "one pixel size for two axes": ({"spacing_um": 0.2}, ["spacing_um", "2 numbers"]),
    "pixels of no size": ({"spacing_um": [0, 0.2]}, ["spacing_um"]),
    "axes a number": ({"axes": 3}, ["axes", "a text"]),
    "null": ({"threshold": None}, ["threshold", "None"]),
    "nested": ({"threshold": {"seg": 0.5}}, ["threshold", "a number"]),
}


@pytest.mark.parametrize(("values", "words"), WRONG.values(), ids=WRONG)
@pytest.mark.usefixtures("predictor")
def test_a_wrong_parameter_is_refused_with_its_name_and_what_is_accepted(send, image, values, words):
    bodies = [
        (INFER, {"inputs": [tensor(image(2)[None])], "parameters": values}),
        (PREDICT, {"instances": [image(2).tolist()], "parameters": values}),
    ]
    for path, body in bodies:
        response = send("POST", path, json=body)
        assert response.status_code == 400
        message = response.json()["error"]
        assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("query", ["treshold=0.5", "threshold=", "threshold=1e999", "min_size=1.5", "overlap=nan"])
@pytest.mark.usefixtures("predictor")
def test_a_wrong_parameter_in_an_address_is_refused(send, image, query):
    response = send("POST", f"{PREDICT}?{query}", content=npy(image(2)))
    assert response.status_code == 400
    assert query.partition("=")[0] in response.json()["error"]


@pytest.mark.parametrize("values", [[], "overlap=0.5", 3, True])
@pytest.mark.usefixtures("predictor")
def test_parameters_that_are_no_object_are_refused(send, image, values):
    response = send("POST", PREDICT, json={"instances": [image(2).tolist()], "parameters": values})
    assert response.status_code == 400
    assert "parameters" in response.json()["error"]


@pytest.mark.usefixtures("predictor")
def test_the_address_of_a_json_body_is_no_place_for_them(send, image):
    body, headers = binary_request(image(2)[None])
    for response in (
        send("POST", f"{INFER}?overlap=0.5", content=body, headers=headers),
        send("POST", f"{PREDICT}?overlap=0.5", json={"instances": [image(2).tolist()]}),
    ):
        assert response.status_code == 400
        assert "overlap" in response.json()["error"]


@pytest.mark.usefixtures("predictor")
def test_a_request_may_have_less_time_than_the_server_gives(send):
    picture = np.random.default_rng(0).integers(0, 4000, (1, 1024, 1024), np.uint16)
    response = send("POST", f"{PREDICT}?timeout_s=0.01&augment=rotations", content=npy(picture))
    assert response.status_code == 504
    assert "0.01 s" in response.json()["error"]
