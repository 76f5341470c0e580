"""The document says all that a prediction needs, and becomes a predictor again."""

import pytest
import torch

from cyto_dl.bundle.build import build_predictor, document_from_config
from cyto_dl.errors import BundleError, ConfigError
from tests.bundle.tiny import ROI, experiment, predictor_of


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_document_describes_input_outputs_and_processing_of_the_source_alone(spatial_dims):
    document = document_from_config(experiment("m.csv", spatial_dims))
    assert document["name"] == "tiny"
    assert document["input"]["name"] == "raw"
    assert document["input"]["axes"] == {2: "CYX", 3: "CZYX"}[spatial_dims]
    assert document["input"]["channels"] == 1
    assert document["input"]["load"]["spatial_dims"] == spatial_dims
    assert [node["_target_"] for node in document["preprocess"]] == ["monai.transforms.NormalizeIntensityd"]
    assert document["preprocess"][0]["allow_missing_keys"] is True
    assert document["inference"] == {"roi_size": ROI[spatial_dims]}
    assert document["outputs"] == {
        "seg": {"kind": "segmentation", "activation": "sigmoid", "values": "intensities"},
        "dist": {"kind": "regression", "activation": "identity", "values": "intensities"},
    }


def test_a_head_without_postprocessing_gets_the_one_that_training_uses():
    document = document_from_config(experiment("m.csv"))
    assert document["postprocess"]["dist"] == {
        "_target_": "cyto_dl.model.utils.postprocessing.identity",
        "_partial_": True,
    }


def test_objects_drawn_as_intensities_are_refused_by_their_configuration_key():
    config = experiment("m.csv")
    head = {"_target_": "cyto_dl.model.heads.InstanceHead", "in_channels": 4, "spatial_dims": 2}
    config["model"]["task_heads"]["seg"] = {"head": head, "loss": {"_target_": "cyto_dl.model.losses.InstanceLoss"}}
    with pytest.raises(ConfigError, match=r"model.postprocessing.prediction.seg makes no labels.*instances"):
        document_from_config(config)
    config["model"]["postprocessing"]["prediction"] = {}
    document = document_from_config(config)
    assert document["outputs"]["seg"] == {"kind": "instances", "activation": "sigmoid", "values": "labels"}
    assert document["postprocess"]["seg"]["_target_"] == "cyto_dl.model.utils.postprocessing.instances"


def test_transforms_in_one_list_or_per_split_give_the_same_document():
    config = experiment("m.csv")
    expected = document_from_config(config)
    by_stage = config["data"]["transforms"]
    everything = [*by_stage["load"], *by_stage["preprocess"], *by_stage["augment"]]
    config["data"]["transforms"] = everything
    assert document_from_config(config) == expected
    deterministic = [*by_stage["load"], *by_stage["preprocess"]]
    config["data"]["transforms"] = {"train": everything, "predict": deterministic}
    assert document_from_config(config) == expected


def test_the_number_of_channels_is_what_the_reader_selects():
    config = experiment("m.csv")
    reader = config["data"]["transforms"]["load"][0]
    reader["channels"] = [2, 0]
    assert document_from_config(config)["input"]["channels"] == 2
    reader["channels"] = 1
    assert document_from_config(config)["input"]["channels"] == 1
    reader.pop("channels")
    config.pop("raw_im_channels")
    with pytest.raises(ConfigError, match="raw_im_channels"):
        document_from_config(config)


def test_an_experiment_without_our_reader_cannot_be_described():
    config = experiment("m.csv")
    config["data"]["transforms"]["load"] = []
    with pytest.raises(ConfigError, match=r"no cyto_dl.data.ReadImaged for 'raw'"):
        document_from_config(config)


def test_foreign_code_of_an_experiment_is_refused_by_configuration_key():
    config = experiment("m.csv")
    config["model"]["backbone"] = {"_target_": "my_lab.Net"}
    config["data"]["transforms"]["preprocess"].append({"_target_": "monai.transforms.Lambdad", "keys": "raw"})
    with pytest.raises(BundleError, match=r"Lambdad' at data.transforms.preprocess\[2\]"):
        document_from_config(config)


def test_a_predictor_of_a_document_has_the_weights_that_are_given():
    config = experiment("m.csv")
    first = predictor_of(config, seed=1)
    again = build_predictor(first.metadata, first.network.state_dict())
    for name, value in first.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value)
    assert not again.network.training


def test_weights_of_another_network_are_refused():
    config = experiment("m.csv")
    weights = predictor_of(experiment("m.csv", 3)).network.state_dict()
    with pytest.raises(BundleError, match="size mismatch"):
        build_predictor(document_from_config(config), weights)


@pytest.mark.parametrize(
    ("part", "value", "named"),
    [
        ("inference", {"roi_size": [32]}, "roi_size"),
        ("inference", {"window": 3}, "window"),
        ("input", {"name": "raw"}, "axes"),
        ("model", {"backbone": {"_target_": "torch.nn.Identity"}}, "heads"),
        ("model", {"backbone": 5, "heads": {}}, "model.backbone is no torch module"),
    ],
)
def test_a_document_that_makes_no_sense_is_a_bundle_error(part, value, named):
    document = document_from_config(experiment("m.csv"))
    with pytest.raises(BundleError, match=named):
        build_predictor({**document, part: value})


@pytest.mark.parametrize("name", ["cuda:99", "foo", "meta", "cuda:x"])  # meta: torch has it, but it computes nothing
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name):
    with pytest.raises(ConfigError, match=rf"^there is no device '{name}' here\. Choose cpu"):
        build_predictor(document_from_config(experiment("m.csv")), device=name)


def test_a_gpu_needs_a_pytorch_that_is_built_for_it(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match=r"cuda:99.* is built without CUDA"):
        build_predictor(document_from_config(experiment("m.csv")), device="cuda:99")
