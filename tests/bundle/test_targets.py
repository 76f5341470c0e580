"""A bundle may name networks, transforms and postprocessing, and nothing else."""

import functools
import sys

import monai.transforms
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cyto_dl.bundle.build import parts_with_code
from cyto_dl.bundle.targets import check_targets, foreign_targets, instantiate
from cyto_dl.config import compose_experiment, experiments
from cyto_dl.errors import BundleError

ALLOWED = [
    "monai.networks.nets.DynUNet",
    "monai.networks.nets.dynunet.DynUNet",
    "monai.losses.DiceCELoss",
    "monai.transforms.Spacingd",
    "monai.transforms.SpacingDict",
    "monai.transforms.Compose",
    "torch.nn.Conv2d",
    "torch.nn.Sequential",
    "cyto_dl.data.ReadImaged",
    "cyto_dl.model.heads.IdentityHead",
    "cyto_dl.model.utils.postprocessing.sigmoid_rescale",
]
REFUSED = [
    "builtins.eval",
    "builtins.exec",
    "os.system",
    "subprocess.run",
    "shutil.rmtree",
    "torch.load",
    "torch.hub.load",
    "torch.nn.modules.lazy.torch.load",
    "torch.nn.modules.module.torch.hub.load",
    "torch.nn.modules.lazy.torch",
    "torch.nn.functional.relu",
    "torch.nn.init.normal_",
    "monai.bundle.ConfigParser",
    "monai.networks.utils.torch.load",
    "monai.networks.nets.resnet10",
    "monai.networks.nets.Transchex",
    "monai.networks.trt_compiler.TrtCompiler",
    "monai.losses.PerceptualLoss",
    "monai.losses.perceptual.MedicalNetPerceptualSimilarity",
    "monai.losses.perceptual.RadImageNetPerceptualSimilarity",
    "monai.losses.perceptual.TorchvisionModelPerceptualSimilarity",
    "monai.transforms.LoadImaged",
    "monai.transforms.io.array.LoadImage",
    "monai.transforms.SaveImaged",
    "monai.transforms.Lambdad",
    "monai.transforms.LambdaD",
    "monai.transforms.RandLambda",
    "monai.transforms.TorchVisiond",
    "monai.transforms.TorchIO",
    "monai.transforms.CuCIMd",
    "monai.transforms.SaveClassificationd",
    "monai.transforms.utility.array.np.load",
    "cyto_dl.storage.sha256",
    "cyto_dl.data.image.write_image",
    "cyto_dl.model.utils.postprocessing.np",
    "cyto_dl.model.utils.postprocessing._float",
    "cyto_dl.model.utils.postprocessing.gives_labels.__globals__",
    "no_dots",
    "a..b",
    "",
    5,
    None,
]


@pytest.mark.parametrize("target", ALLOWED)
def test_networks_transforms_and_postprocessing_are_allowed(target):
    check_targets({"_target_": target})


@pytest.mark.parametrize("target", REFUSED)
def test_everything_else_is_refused(target):
    with pytest.raises(BundleError, match="not allowed here"):
        check_targets({"_target_": target})


def test_the_message_names_the_target_its_place_and_how_to_allow_it():
    node = {
        "transforms": [
            {"_target_": "torch.nn.Identity"},
            {"_target_": "torch.nn.Identity", "x": {"_target_": "os.system"}},
        ]
    }
    with pytest.raises(BundleError) as caught:
        instantiate(node, where="preprocess")
    for part in ("'os.system'", "preprocess.transforms[1].x", "--allow-target", "CYTO_DL_ALLOWED_TARGETS"):
        assert part in str(caught.value)


def test_nothing_is_built_or_imported_when_one_node_is_refused(tmp_path, monkeypatch):
    (tmp_path / "foreign_code_of_a_bundle.py").write_text("raise SystemExit('this ran')")
    monkeypatch.syspath_prepend(tmp_path)
    built = []
    monkeypatch.setattr(torch.nn.Identity, "__init__", lambda self: built.append(self))
    with pytest.raises(BundleError, match="foreign_code_of_a_bundle"):
        instantiate([{"_target_": "torch.nn.Identity"}, {"_target_": "foreign_code_of_a_bundle.Net"}])
    assert not built
    assert "foreign_code_of_a_bundle" not in sys.modules


def test_what_nodes_hide_in_their_arguments_is_checked_too():
    node = {
        "_target_": "torch.nn.Sequential",
        "_args_": [{"_target_": "torch.nn.Identity", "deep": [{"_target_": "os.system"}]}],
    }
    with pytest.raises(BundleError, match=r"_args_\[0\]\.deep\[0\]"):
        instantiate(node)


@pytest.fixture
def own_head(tmp_path, monkeypatch):
    """A package of the operator with a head in it."""
    (tmp_path / "my_lab_heads.py").write_text("import torch\nclass Mine(torch.nn.Identity):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_lab_heads.Mine"
    sys.modules.pop("my_lab_heads", None)


def test_an_operator_allows_own_code_by_its_exact_name(own_head, monkeypatch):
    node = {"_target_": own_head}
    assert type(instantiate(node, allow=[own_head])).__name__ == "Mine"
    with pytest.raises(BundleError):
        instantiate(node, allow=["my_lab_heads"])  # a prefix is not enough
    monkeypatch.setenv("CYTO_DL_ALLOWED_TARGETS", f"other.Thing, {own_head}")
    assert type(instantiate(node)).__name__ == "Mine"


def test_foreign_targets_are_listed_with_the_package_that_provides_them(own_head):
    node = {"a": {"_target_": own_head}, "b": [{"_target_": "torch.optim.Adam"}, {"_target_": "torch.nn.Identity"}]}
    assert foreign_targets(node) == [
        {"target": "my_lab_heads.Mine", "package": None},
        {"target": "torch.optim.Adam", "package": "torch"},
    ]


def test_nodes_become_objects_partials_and_plain_values():
    node = {
        "compose": {"_target_": "monai.transforms.Compose", "transforms": [{"_target_": "monai.transforms.Flip"}]},
        "draw": {
            "_target_": "cyto_dl.model.utils.postprocessing.sigmoid_threshold",
            "_partial_": True,
            "threshold": 0.3,
        },
        "sequence": {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "torch.nn.Identity"}]},
        "value": [1, "x", None, {"k": 2.5}],
    }
    made = instantiate(node)
    assert isinstance(made["compose"].transforms[0], monai.transforms.Flip)
    assert isinstance(made["draw"], functools.partial)
    assert made["draw"].keywords == {"threshold": 0.3}
    assert isinstance(made["sequence"][0], torch.nn.Identity)
    assert made["value"] == [1, "x", None, {"k": 2.5}]


def test_an_interpolation_that_hydra_would_turn_into_a_node_is_refused():
    node = {"_target_": "torch.nn.Identity", "x": ["${oc.create:{_target_: os.getcwd}}"]}
    with pytest.raises(BundleError, match=r"at model.backbone.x\[0\]: an interpolation"):
        check_targets(node, where="model.backbone")


@pytest.mark.parametrize(
    "arguments",
    [
        {"_target_": "torch.nn.Conv2d", "channels": 3},
        {"_target_": "torch.nn.PixelShuffle", "_args_": None},
        {"_target_": "monai.networks.nets.DynUNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 1}
        | {"kernel_size": [], "strides": [], "upsample_kernel_size": []},
    ],
)
def test_arguments_that_do_not_fit_are_an_error_that_says_where(arguments):
    with pytest.raises(BundleError, match=rf"{arguments['_target_']} at model.backbone does not take these arguments"):
        instantiate(arguments, where="model.backbone")


def test_networks_do_not_download_weights_that_the_bundle_has():
    node = {"_target_": "monai.networks.nets.EfficientNetBN", "model_name": "efficientnet-b0", "pretrained": True}
    made = instantiate({**node, "_partial_": True})
    assert made.keywords["pretrained"] is False


@given(
    st.recursive(
        st.none() | st.integers() | st.text().filter(lambda text: "${" not in text),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_values_without_targets_stay_what_they_are(node):
    assert instantiate(node) == node


@pytest.mark.parametrize("name", experiments())
def test_the_code_of_every_shipped_experiment_is_allowed(name, tmp_path):
    config = compose_experiment([f"experiment={name}", "data.path=images.csv"], output_dir=tmp_path)
    check_targets(parts_with_code(config))


def test_a_loss_takes_weights_of_classes_as_a_tensor_that_an_operator_allows():
    weight = {"_target_": "torch.tensor", "data": [0.2, 1.0]}
    loss = instantiate(
        {"_target_": "monai.losses.DiceCELoss", "softmax": True, "weight": weight}, allow=["torch.tensor"]
    )
    assert torch.equal(loss.cross_entropy.weight, torch.tensor([0.2, 1.0]))
    with pytest.raises(BundleError, match=r"torch\.tensor"):
        instantiate(weight)
