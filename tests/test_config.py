"""Hydra configurations become plain values and objects, and mistakes in them become one clear message."""

import re
import shlex

import pytest
import yaml

from cyto_dl.config import CONFIG_DIR, compose_experiment, differences, experiments, flatten, instantiate
from cyto_dl.errors import ConfigError, ManifestError


def compose(tmp_path, *overrides):
    return compose_experiment(["experiment=im2im/segmentation", *overrides], output_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "spatial_dims"),
    [(name, dims) for name in experiments() for dims in (2, 3) if (name, dims) != ("im2im/labelfree_projection", 2)],
)
def test_every_shipped_experiment_composes_for_planes_and_volumes(name, spatial_dims, tmp_path):
    config = compose_experiment(
        [f"experiment={name}", f"spatial_dims={spatial_dims}", "data.path=images.csv"], output_dir=tmp_path
    )

    assert len(config["data"]["patch_shape"]) == spatial_dims
    assert config["model"]["inference"]["roi_size"] == config["data"]["patch_shape"]
    assert config["model"]["backbone"]["spatial_dims"] == spatial_dims
    assert set(config["model"]["task_heads"]) < set(config["data"]["columns"])


@pytest.mark.parametrize("name", experiments())
def test_an_experiment_can_be_read_at_a_glance_and_begins_with_the_command_that_runs_it(name, tmp_path):
    lines = (CONFIG_DIR / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert len(lines) <= 40
    assert lines[0] == "# @package _global_"
    command = re.fullmatch(r"# [A-Z][^:]+:  python cyto_dl/train\.py (.*)", lines[1])
    assert command, "the second line says what the experiment is for, then the command:  # Do this:  python ..."
    overrides = shlex.split(command[1])
    assert overrides[0] == f"experiment={name}"
    assert compose_experiment(overrides, output_dir=tmp_path)["model"]
    assert [line for line in lines if line in ("# what", "# how")] == ["# what", "# how"]
    settings = lines[lines.index("# what") + 1 : lines.index("# how")]
    plain = [line for line in settings if re.match(r"\w+: ", line)]
    unexplained = [line for line in plain if "#" not in line and not re.match("experiment_name|run_name|tags", line)]
    assert unexplained in ([], ["target_channel: null"]), "say what each setting means"


@pytest.mark.parametrize(("name", "direction"), [("im2im/segmentation", "maximize"), ("im2im/multitask", "minimize")])
def test_a_search_goes_in_the_direction_of_the_experiments_metric(name, direction):
    from hydra import compose, initialize_config_dir

    overrides = [f"experiment={name}", "hparams_search=optuna"]
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        config = compose("train.yaml", overrides=overrides, return_hydra_config=True)
    assert config.hydra.sweeper.direction == direction


def test_auxiliary_values_serve_interpolation_and_are_gone_afterwards(tmp_path):
    config = compose(tmp_path, "+model._aux={width: 12}", "model.backbone.filters=[4, '${model._aux.width}', 8]")

    assert config["model"]["backbone"]["filters"] == [4, 12, 8]
    assert "_aux" not in yaml.safe_dump(config["model"]) + yaml.safe_dump(config["data"])


def test_the_output_folder_may_have_any_name(tmp_path):
    folder = tmp_path / "a b=c,d"
    assert compose_experiment(["experiment=im2im/segmentation"], output_dir=folder)["paths"]["output_dir"] == str(
        folder
    )


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("experiment=im2im/segmentatoin", "im2im/segmentatoin"),
        ("trainer.max_epoch=3", "max_epoch"),
        ("data.path=???", "data.path"),
        ("model.backbone.filters=${no_such_key}", "no_such_key"),
    ],
)
def test_a_mistake_in_an_override_is_a_config_error_that_names_it(tmp_path, override, says):
    with pytest.raises(ConfigError, match=says):
        compose(tmp_path, override)


def test_an_unknown_class_is_a_config_error_that_names_its_key():
    node = {"backbone": {"_target_": "monai.networks.nets.NoSuchNet"}, "_target_": "builtins.dict"}
    with pytest.raises(ConfigError, match=r"NoSuchNet.*\(at model\.backbone\)"):
        instantiate(node, "model")


def raise_manifest_error():
    """Stands for a class that finds its data wrong while it is built."""
    raise ManifestError("the table is wrong")


def test_an_error_that_explains_itself_is_not_buried_by_instantiation():
    with pytest.raises(ManifestError, match="the table is wrong"):
        instantiate({"_target_": f"{__name__}.raise_manifest_error"}, "data")


def test_flatten_joins_keys_by_dots():
    assert flatten({"data": {"a": 1, "b": [2]}, "c": {}}) == {"data.a": 1, "data.b": [2], "c": {}}


def test_differences_name_keys_also_inside_of_lists():
    before = {"data": {"transforms": [{"keys": "raw"}, {"keys": "raw", "upper": 99}], "path": "a.csv"}, "seed": 1}
    now = {"data": {"transforms": [{"keys": "raw"}, {"keys": "raw", "upper": 98}], "path": "a.csv", "new": None}}
    assert differences(before, before) == []
    assert differences(before, now) == ["data.transforms[1].upper: 99 there, 98 now", "seed: 1 there, None now"]


def test_what_a_class_says_of_its_arguments_is_told_in_its_words():
    with pytest.raises(ConfigError, match=r"cannot build 'torch.nn.modules.*': dropout probability has to be between"):
        instantiate({"_target_": "torch.nn.Dropout", "p": 3}, "model")


def test_no_configuration_uses_a_resolver_of_ours_or_python():
    for path in CONFIG_DIR.rglob("*.yaml"):
        assert "eval:" not in path.read_text().replace("extras/eval:", ""), path
