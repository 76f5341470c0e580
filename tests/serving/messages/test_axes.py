"""An image in any order of its axes is the same image."""

import numpy as np
import pytest

from tests.serving.wire import binary_request, npy, read_tensors, tensor

ORDERS = {2: ["NCYX", "NYX", "NYXC", "YXCN", "XY", "yx"], 3: ["NCZYX", "NZYX", "NZYXC", "ZCYX", "XYZ", "ZYX"]}


def in_order(image, axes):
    """The image C (Z) Y X with other axes, N among them of length 1."""
    full = "NCZYX" if image.ndim == 4 else "NCYX"
    axes = axes.upper()
    dropped = [place for place, axis in enumerate(full) if axis not in axes]
    kept = [axis for axis in full if axis in axes]
    return np.transpose(image[None].squeeze(tuple(dropped)), [kept.index(axis) for axis in axes])


@pytest.mark.parametrize(("dims", "axes"), [(dims, axes) for dims, orders in ORDERS.items() for axes in orders])
def test_a_tensor_in_another_order_gives_the_same_to_the_last_bit(send, models, image, dims, axes):
    picture = image(dims)
    wanted = models[dims].predictor.predict(picture)
    array = np.ascontiguousarray(in_order(picture, axes))
    body = {"inputs": [tensor(array)], "parameters": {"axes": axes}}
    got = read_tensors(send("POST", f"/v2/models/cells_{dims}/infer", json=body))
    for head, values in wanted.items():
        np.testing.assert_array_equal(got[head][0], values)


@pytest.mark.parametrize("dims", [2, 3])
def test_an_image_of_one_channel_needs_no_channel_axis(send, models, image, dims):
    pictures = [image(dims, seed=seed)[0] for seed in range(2)]
    body, headers = binary_request(np.stack(pictures))
    got = read_tensors(send("POST", f"/v2/models/cells_{dims}/infer", content=body, headers=headers))
    for index, picture in enumerate(pictures):
        np.testing.assert_array_equal(got["distance"][index], models[dims].predictor.predict(picture)["distance"])


def test_a_file_and_v1_json_may_say_their_axes_as_well(send, models, image):
    picture = image(2)
    wanted = models[2].predictor.predict(picture)["distance"]
    transposed = np.ascontiguousarray(picture.transpose(1, 2, 0))
    route, only = "/v1/models/cells_2:predict", {"X-Outputs": "distance", "Accept": "application/json"}
    answers = [
        send("POST", f"{route}?axes=YXC", content=npy(transposed), headers=only),
        send("POST", route, json={"instances": [transposed.tolist()], "parameters": {"axes": "YXC"}}),
    ]
    for answer in answers:
        got = np.array(answer.json()["predictions"][0]["distance"], np.float32)
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("axes", ["", "Y", "NCY", "NCZYX", "NCYY", "TCYX", "NNYX", "N" * 10**5])
def test_an_order_that_is_none_is_refused_with_one_that_is(send, axes):
    body = {"inputs": [tensor(np.zeros((1, 1, 3, 4), np.float32))], "parameters": {"axes": axes}}
    response = send("POST", "/v2/models/cells_2/infer", json=body)
    assert response.status_code == 400
    assert "NCYX" in response.json()["error"]
    assert len(response.text) < 400


@pytest.mark.parametrize(
    ("axes", "shape"), [("NYXC", (1, 3, 4, 2)), ("NYX", (1, 1, 3, 4)), ("YX", (0, 4)), ("NYXC", (1, 1, 3, 4))]
)
def test_a_shape_that_is_not_of_the_named_order_is_refused(send, axes, shape):
    body = {"inputs": [tensor(np.zeros(shape, np.float32))], "parameters": {"axes": axes}}
    response = send("POST", "/v2/models/cells_2/infer", json=body)
    assert response.status_code == 400
    assert str(list(shape)) in response.json()["error"]


def test_n_is_not_an_axis_of_a_file(send):
    response = send("POST", "/v1/models/cells_2:predict?axes=NYX", content=npy(np.zeros((1, 3, 4), np.uint8)))
    assert response.status_code == 400
    assert "CYX" in response.json()["error"]
