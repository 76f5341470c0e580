"""The client against a real server on loopback ports: the predictor's numbers, and errors that say what to do."""

import subprocess
import sys

import numpy as np
import pytest

from cyto_dl.client import Client, EndpointError
from cyto_dl.data.image import Image, write_image
from cyto_dl.errors import ConfigError, ImageError
from cyto_dl.inference.parameters import with_parameters
from tests.client.conftest import TOKEN, listening
from tests.serving.process import free_ports


@pytest.fixture(params=["http", "grpc"])
def address(request, served):
    return getattr(served, request.param)


def noise(dims, dtype=np.uint16):
    return np.random.default_rng(0).integers(0, 4000, (1, *(7, 21, 18)[-dims:])).astype(dtype)


def assert_equal(got, wanted):
    assert list(got) == list(wanted)
    for head, array in wanted.items():
        assert got[head].dtype == array.dtype and got[head].flags.writeable
        np.testing.assert_array_equal(got[head], array)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_served_model_gives_what_its_predictor_gives(served, address, dims):
    client, image = Client(address, f"cells_{dims}"), noise(dims)
    wanted = served.predictors[f"cells_{dims}"].predict(image)
    assert_equal(client.predict(image), wanted)
    assert_equal(client.predict(image[0]), wanted)  # one channel needs no axis
    assert_equal(client.predict(image, heads=["distance"]), {"distance": wanted["distance"]})


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.uint64, np.float16, np.float32, np.float64, ">u2"])
def test_every_type_of_numbers_gives_what_the_predictor_gives_for_it(served, address, dtype):
    image = (noise(2) % 200).astype(dtype)
    native = image.astype(image.dtype.newbyteorder("="))
    assert_equal(Client(address, "cells_2").predict(image), served.predictors["cells_2"].predict(native))


def test_parameters_and_the_order_of_axes_are_asked_for(served, address):
    predictor, image = served.predictors["cells_2"], noise(2)
    wanted = with_parameters(predictor, {"overlap": 0.625}).predict(image)
    assert_equal(Client(address, "cells_2").predict(image, parameters={"overlap": 0.625}), wanted)
    turned = np.moveaxis(image, 0, -1)
    assert_equal(Client(address, "cells_2").predict(turned, parameters={"axes": "YXC"}), predictor.predict(image))


def test_an_image_brings_its_pixel_size(served, address):
    image = Image(noise(3), (0.5, 0.25, 1 / 3), "stack.tif")
    assert_equal(Client(address, "cells_3").predict(image), served.predictors["cells_3"].predict(image))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_file_is_read_as_the_model_takes_it(served, tmp_path, dims):
    write_image(tmp_path / "image.ome.tif", noise(dims), spacing_um=(0.5,) * dims)
    image = Client(served.http, f"cells_{dims}").read(tmp_path / "image.ome.tif")
    np.testing.assert_array_equal(image.array, noise(dims))
    assert image.spacing_um == (0.5,) * dims


def test_a_file_of_another_kind_is_refused_with_what_the_model_takes(served, tmp_path):
    write_image(tmp_path / "image.ome.tif", noise(2))
    with pytest.raises(ImageError, match=r"image\.ome\.tif: .*2-D image; the model takes C Z Y X with 1 channel"):
        Client(served.http, "cells_3").read(tmp_path / "image.ome.tif")


@pytest.mark.parametrize("wrong", [np.zeros((3, 8, 8)), np.zeros((1, 0, 8)), np.full((1, 8, 8), np.nan)])
def test_a_wrong_image_is_an_image_error_with_its_path(address, wrong):
    with pytest.raises(ImageError, match=r"^a\.tif: raw: "):
        Client(address, "cells_2").predict(Image(wrong, None, "a.tif"))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"heads": ["nuclei"]}, "there is no 'nuclei'; this model gives seg, distance"),
        ({"heads": []}, "Choose among seg, distance"),
        ({"parameters": {"overlap": 2.0}}, "overlap: .*from 0 to 0.75"),
        ({"parameters": {"overlab": 0.5}}, "overlab"),
    ],
)
def test_a_wrong_question_is_a_config_error(address, asked, says):
    with pytest.raises(ConfigError, match=says):
        Client(address, "cells_2").predict(noise(2), **asked)


def test_a_model_that_is_not_there_is_a_config_error(address):
    with pytest.raises(ConfigError, match="nuclei"):
        Client(address, "nuclei").predict(noise(2))


def test_one_of_several_models_must_be_chosen(served):
    with pytest.raises(ConfigError, match=r"has cells_2, cells_3\. Choose one"):
        Client(served.http).metadata()
    with pytest.raises(ConfigError, match="must be named"):
        Client(served.grpc).metadata()


def test_without_a_choice_the_only_model_answers_to_whom_has_the_token(guarded):
    client = Client(guarded.http, token=TOKEN)
    assert client.model == "cells_2"
    assert_equal(client.predict(noise(2)), guarded.predictors["cells_2"].predict(noise(2)))
    assert set(Client(guarded.grpc, "cells_2", token=TOKEN).predict(noise(2))) == {"seg", "distance"}
    for address in (guarded.http, guarded.grpc):
        with pytest.raises(ConfigError, match="token"):
            Client(address, "cells_2", token="wrong").metadata()


def test_metadata_tell_the_tensors(address):
    told = Client(address, "cells_3").metadata()
    assert (told["inputs"][0]["name"], told["inputs"][0]["shape"]) == ("raw", [-1, 1, -1, -1, -1])
    assert {each["name"]: each["datatype"] for each in told["outputs"]} == {"seg": "UINT8", "distance": "FP32"}


def test_waiting_ends_when_the_model_is_ready_or_the_time_is_over(address):
    Client(address, "cells_2").wait_until_ready()
    with pytest.raises(EndpointError, match=r"not ready after 0\.1 s: .*(cannot be reached|failed to connect)"):
        Client(f"{address.partition(':')[0]}://127.0.0.1:{free_ports(1)[0]}", "cells_2").wait_until_ready(0.1)


@pytest.mark.parametrize("url", ["host:8080", "ftp://host", "http://", ""])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ConfigError, match="begins with http://, https://, grpc:// or grpcs://"):
        Client(url)


def test_a_server_of_something_else_is_told_from_a_server_of_models(tmp_path):
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            with pytest.raises(ConfigError, match="File not found"):
                Client(f"http://127.0.0.1:{port}").metadata()
        finally:
            process.kill()


def test_a_server_without_a_model_says_so():
    with listening() as server, pytest.raises(ConfigError, match="has no model"):
        Client(server.http).metadata()


def test_the_client_imports_neither_torch_nor_kserve():
    program = (
        "import sys; from cyto_dl.client import Client; import cyto_dl.client.rest, cyto_dl.client.grpc_transport; "
        "assert not {'torch', 'monai', 'kserve', 'mlflow', 'boto3'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
