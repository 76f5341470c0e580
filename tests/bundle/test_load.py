"""Loading refuses what is damaged, foreign or not the model that was exported."""

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from cyto_dl.bundle import load_bundle
from cyto_dl.bundle.format import read_document, write_document
from cyto_dl.errors import BundleError


def rehash(bundle, **changes):
    """What someone with write access can do: change a bundle and make its hashes right again."""
    write_document(bundle, {**read_document(bundle), **changes})


def test_a_bundle_is_loaded_with_what_a_server_must_know(exported):
    predictor = load_bundle(exported)
    axes = predictor.input.axes
    assert (predictor.name, predictor.input.name, predictor.input.num_channels) == ("tiny", "raw", 1)
    assert {head: output["axes"] for head, output in predictor.outputs.items()} == {"seg": axes, "dist": axes}
    assert predictor.metadata["format_version"] == 1


@pytest.mark.parametrize("name", ["weights.safetensors", "sample.npz"])
def test_a_truncated_bundle_is_refused_by_file(bundle, name):
    (bundle / name).write_bytes((bundle / name).read_bytes()[:-10])
    with pytest.raises(BundleError, match=name):
        load_bundle(bundle)


@pytest.mark.parametrize("name", ["weights.safetensors", "sample.npz"])
def test_garbage_with_a_right_hash_is_refused_too(bundle, name):
    (bundle / name).write_bytes(b"garbage")
    rehash(bundle)
    with pytest.raises(BundleError, match=name):
        load_bundle(bundle)


def test_weights_of_another_training_do_not_pass_the_replay(bundle):
    weights = load_file(bundle / "weights.safetensors")
    save_file({name: value + np.float32(0.05) for name, value in weights.items()}, bundle / "weights.safetensors")
    rehash(bundle)
    with pytest.raises(BundleError, match=r"(?s)does not repeat the predictions.*seg"):
        load_bundle(bundle)
    assert load_bundle(bundle, replay=False).name == "tiny"


def test_a_sample_that_holds_pickled_code_is_refused(bundle):
    np.savez(bundle / "sample.npz", input=np.array([object()], dtype=object))
    rehash(bundle)
    with pytest.raises(BundleError, match=r"sample\.npz cannot be read"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("part", "node"),
    [
        ("preprocess", [{"_target_": "monai.transforms.LoadImaged", "keys": "raw"}]),
        ("preprocess", [{"_target_": "torch.nn.modules.lazy.torch.load", "f": "x"}]),
        ("postprocess", {"seg": {"_target_": "os.system", "_partial_": True}}),
        ("model", {"backbone": {"_target_": "builtins.eval", "_args_": ["1"]}, "heads": {}}),
    ],
)
def test_a_foreign_target_is_refused_wherever_it_stands(bundle, part, node):
    rehash(bundle, **{part: node})
    with pytest.raises(BundleError, match=rf"(?s)not allowed here.* at {part}.*CYTO_DL_ALLOWED_TARGETS"):
        load_bundle(bundle)


def test_a_head_whose_name_is_a_path_is_refused(bundle, tmp_path):
    document = read_document(bundle)
    name = f"{tmp_path}/elsewhere"
    renamed = {part: {name: document[part]["seg"]} for part in ("outputs", "postprocess")}
    model = {**document["model"], "heads": {name: document["model"]["heads"]["seg"]}}
    rehash(bundle, model=model, **renamed)
    with pytest.raises(BundleError, match="cannot name a head"):
        load_bundle(bundle)


def test_outputs_of_heads_that_the_network_lacks_are_refused(bundle):
    document = read_document(bundle)
    rehash(bundle, outputs={**document["outputs"], "other": document["outputs"]["seg"]})
    with pytest.raises(BundleError, match=r"outputs has seg.*, other, but model\.heads has seg"):
        load_bundle(bundle)


def test_a_newer_bundle_is_refused(bundle):
    rehash(bundle, format_version=99)
    with pytest.raises(BundleError, match="bundle format 99"):
        load_bundle(bundle)


def test_nothing_in_a_document_is_interpolated(bundle, monkeypatch):
    monkeypatch.setenv("SECRET", "swordfish")
    rehash(bundle, name="${oc.env:SECRET}")
    assert load_bundle(bundle).name == "${oc.env:SECRET}"
    assert yaml.safe_load((bundle / "bundle.yaml").read_text())["name"] == "${oc.env:SECRET}"
