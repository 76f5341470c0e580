import io
import json

import numpy as np
import pytest

from tests.serving.wire import LENGTH, binary_request, npy, read_tensors, tensor

INFER, PREDICT = "/v2/models/cells_2/infer", "/v1/models/cells_2:predict"


def expected(models, image, dims=2):
    return models[dims].predictor.predict(image)


def assert_equal(got, wanted):
    """Same heads in the same order, same dtype, same bits."""
    assert list(got) == list(wanted)
    for head, array in wanted.items():
        assert got[head].dtype == array.dtype
        np.testing.assert_array_equal(got[head], array)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("binary_output", [True, False])
def test_a_binary_tensor_is_predicted_as_by_the_predictor(send, models, image, dims, binary_output):
    batch = np.stack([image(dims, seed=0), image(dims, seed=1)])
    body, headers = binary_request(batch, binary_output=binary_output)
    response = send("POST", f"/v2/models/cells_{dims}/infer", content=body, headers=headers)
    assert response.status_code == 200
    wanted = [expected(models, picture, dims) for picture in batch]
    assert_equal(read_tensors(response), {head: np.stack([one[head] for one in wanted]) for head in wanted[0]})


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("form", ["flat", "nested"])
def test_a_json_tensor_is_predicted_as_by_the_predictor(send, models, image, dims, form):
    picture = image(dims)
    data = picture[None].tolist() if form == "nested" else picture.ravel().tolist()
    response = send("POST", f"/v2/models/cells_{dims}/infer", json={"inputs": [tensor(picture[None], data=data)]})
    assert response.status_code == 200
    wanted = expected(models, picture, dims)
    assert_equal(read_tensors(response), {head: array[None] for head, array in wanted.items()})


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_an_image_may_come_in_the_datatype_that_the_camera_gave(send, models, image, dtype):
    picture = (image(2) % 256).astype(dtype)
    body, headers = binary_request(picture[None])
    wanted = expected(models, picture.astype(np.float32))
    assert_equal(
        read_tensors(send("POST", INFER, content=body, headers=headers)),
        {head: array[None] for head, array in wanted.items()},
    )


def test_only_the_requested_heads_come_back_in_the_requested_order(send, models, image):
    body, headers = binary_request(image(2)[None], outputs=["distance", "seg"])
    assert list(read_tensors(send("POST", INFER, content=body, headers=headers))) == ["distance", "seg"]
    body, headers = binary_request(image(2)[None], outputs=["seg"])
    assert list(read_tensors(send("POST", INFER, content=body, headers=headers))) == ["seg"]


def test_one_output_may_be_binary_and_the_other_json(send, models, image):
    request = {
        "id": "first",
        "inputs": [tensor(image(2)[None])],
        "outputs": [{"name": "seg", "parameters": {"binary_data": True}}, {"name": "distance"}],
    }
    response = send("POST", INFER, json=request)
    header = json.loads(response.content[: int(response.headers[LENGTH])])
    assert header["id"] == "first"
    assert header["model_name"] == "cells_2"
    assert ["data" in output for output in header["outputs"]] == [False, True]
    wanted = expected(models, image(2))
    assert_equal(read_tensors(response), {head: wanted[head][None] for head in ("seg", "distance")})


@pytest.mark.parametrize("dims", [2, 3])
def test_v1_instances_of_different_sizes_are_predicted_as_by_the_predictor(send, models, image, dims):
    pictures = [image(dims), image(dims, seed=1)[..., :-3]]
    response = send(
        "POST", f"/v1/models/cells_{dims}:predict", json={"instances": [picture.tolist() for picture in pictures]}
    )
    assert response.status_code == 200
    for prediction, picture in zip(response.json()["predictions"], pictures, strict=True):
        wanted = expected(models, picture, dims)
        assert_equal({head: np.array(prediction[head], array.dtype) for head, array in wanted.items()}, wanted)


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "text/plain"])
def test_v1_json_is_read_whatever_it_is_called(send, image, content_type):
    body = json.dumps({"instances": [image(2).tolist()], "outputs": ["seg"]})
    response = send("POST", PREDICT, content=body, headers={"Content-Type": content_type})
    assert list(response.json()["predictions"][0]) == ["seg"]


@pytest.mark.parametrize("dims", [2, 3])
def test_a_npy_body_gives_the_npy_of_the_one_requested_head(send, models, image, dims):
    headers = {"X-Outputs": "distance"}
    response = send("POST", f"/v1/models/cells_{dims}:predict", content=npy(image(dims)), headers=headers)
    assert response.headers["content-type"] == "application/x-npy"
    got = np.load(io.BytesIO(response.content), allow_pickle=False)
    assert_equal({"distance": got}, {"distance": expected(models, image(dims), dims)["distance"]})


@pytest.mark.parametrize("content_type", ["application/octet-stream", "application/json", "application/x-npy"])
def test_a_npy_body_gives_a_npz_of_several_heads(send, models, image, content_type):
    response = send("POST", PREDICT, content=npy(image(2)), headers={"Content-Type": content_type})
    assert response.headers["content-type"] == "application/x-npz"
    with np.load(io.BytesIO(response.content), allow_pickle=False) as archive:
        assert_equal(dict(archive), expected(models, image(2)))


def test_readiness_follows_the_models(send, server):
    for path in ("/v2/health/ready", "/v2/health/live", "/v2/models/cells_2/ready", "/v1/models/cells_2"):
        assert send("GET", path).status_code == 200
    model = server.models.get_model("cells_2")
    model.stop()
    try:
        assert send("GET", "/v2/models/cells_2/ready").status_code == 503
        assert send("GET", "/v2/health/ready").status_code == 503
        assert send("POST", INFER, json={}).status_code == 503
        assert not model.load()
        assert send("GET", "/v2/health/live").status_code == 200
    finally:
        model.ready = True


@pytest.mark.parametrize("action", ["load", "unload"])
def test_models_cannot_be_loaded_or_unloaded_over_the_network(send, action):
    response = send("POST", f"/v2/repository/models/cells_2/{action}")
    assert response.status_code == 403
    assert "operator" in response.json()["error"]
    assert send("GET", "/v2/models/cells_2/ready").json()["ready"] is True


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/other/ready", "/v1/models/other"])
def test_an_unknown_model_is_not_found(send, path):
    response = send("GET", path)
    assert response.status_code == 404
    assert "other" in response.json()["error"]


def test_there_are_no_explanations(send):
    response = send("POST", "/v1/models/cells_2:explain", json={"instances": []})
    assert (response.status_code, response.json()) == (404, {"error": "this server predicts; it does not explain"})
