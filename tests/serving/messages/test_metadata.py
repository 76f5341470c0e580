"""Metadata tell what a request may be, and which bundle answers it; the tests that send requests prove them."""

import dataclasses
import hashlib

import pytest
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelMetadataRequest

from cyto_dl import __version__
from serving.identity import Identity
from serving.limits import Limits
from serving.model import BundleModel
from tests.serving.test_grpc import stub_of


@pytest.mark.parametrize("dims", [2, 3])
def test_they_tell_the_tensors_with_their_axes_datatypes_and_pixel_size(send, dims):
    document = send("GET", f"/v2/models/cells_{dims}").json()
    free, axes = [-1] * dims, "NCYX" if dims == 2 else "NCZYX"
    (tensor,) = document["inputs"]
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("raw", "FP32", [-1, 1, *free])
    assert tensor["parameters"]["axes"] == axes
    assert tensor["parameters"]["accepted_axes"] == [axes, axes.replace("C", "")]
    assert tensor["parameters"]["spacing_um"] is None
    assert "UINT16" in tensor["parameters"]["datatypes"]
    described = {"axes": axes, "kind": "segmentation", "activation": "sigmoid"}
    assert document["outputs"] == [
        {"name": "seg", "datatype": "UINT8", "shape": [-1, 1, *free], "parameters": described},
        {"name": "distance", "datatype": "FP32", "shape": [-1, 1, *free], "parameters": described},
    ]


def test_they_tell_the_parameters_of_a_request_with_their_bounds(send):
    offered = send("GET", "/v2/models/cells_2").json()["parameters"]["request_parameters"]
    assert set(offered) == {"overlap", "augment", "timeout_s", "spacing_um", "axes"}
    assert (offered["overlap"]["default"], offered["overlap"]["maximum"]) == (0.25, 0.75)
    assert offered["timeout_s"]["maximum"] == 300


@pytest.fixture
def identified(server, models, executor):
    """Serves the 2-D model as `identified`, from a bundle with a hash."""
    digest = hashlib.sha256(b"bundle.yaml").hexdigest()
    made = {"format_version": 1, "provenance": {"seed": 7}}
    predictor = dataclasses.replace(models[2].predictor, metadata=made)
    predictor = dataclasses.replace(predictor, input=dataclasses.replace(predictor.input, spacing_um=(0.3, 0.2)))
    identity = Identity(digest, "onnxruntime", "cpu")
    server.register_model(BundleModel("identified", predictor, executor, identity=identity, limits=Limits(voxels=999)))
    yield digest
    server.models.get_models().pop("identified")


def test_they_tell_which_bundle_computes_and_with_what(send, identified):
    response = send("GET", "/v2/models/identified")
    assert response.headers["x-model-version"] == identified[:12]
    document = response.json()
    told = document["parameters"]
    assert (document["platform"], document["versions"]) == ("cyto-dl_onnxruntime", [])
    assert (told["sha256"], told["version"]) == (identified, identified[:12])
    assert (told["engine"], told["device"], told["cyto_dl"]) == ("onnxruntime", "cpu", __version__)
    assert (told["format_version"], told["provenance"], told["limits"]["voxels"]) == (1, {"seed": 7}, 999)
    assert document["inputs"][0]["parameters"]["spacing_um"] == [0.3, 0.2]
    assert told["request_parameters"]["spacing_um"]["default"] == [0.3, 0.2]


def test_grpc_has_the_version_in_its_trailing_metadata(server, identified):
    with stub_of(server) as stub:
        metadata, call = stub.ModelMetadata.with_call(ModelMetadataRequest(name="identified"))
    assert (metadata.platform, list(metadata.inputs[0].shape)) == ("cyto-dl_onnxruntime", [-1, 1, -1, -1])
    assert dict(call.trailing_metadata())["x-model-version"] == identified[:12]
