"""An experiment that cannot work is refused by key, with what was given and what is accepted."""

import numpy as np
import pandas as pd
import pytest

from cyto_dl.check import check_accelerator, check_experiment, wrong_types
from cyto_dl.config import compose_experiment, experiments
from cyto_dl.errors import ConfigError


def compose(tmp_path, *overrides):
    return compose_experiment(["experiment=im2im/segmentation", *overrides], output_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "spatial_dims"),
    [(name, dims) for name in experiments() for dims in (2, 3) if (name, dims) != ("im2im/labelfree_projection", 2)],
)
def test_every_shipped_experiment_is_as_its_classes_want_it(name, spatial_dims, tmp_path):
    given = [f"experiment={name}", f"spatial_dims={spatial_dims}", "data.path=images.csv", "trainer=gpu"]
    check_experiment(compose_experiment(given, output_dir=tmp_path))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainer.max_epochs=ten", "trainer.max_epochs is 'ten'; Trainer takes a whole number or null"),
        ("trainer.max_epochs='10'", "trainer.max_epochs is '10'; Trainer takes a whole number or null"),
        ("trainer.precision=bf16mixed", "32-true, 64-true, bf16 or null"),
        ("data.patch_shape=32", "data.patch_shape is 32; DataframeDatamodule takes a list of whole numbers or null"),
        ("data.batch_size=many", "data.batch_size is 'many'; DataframeDatamodule takes a whole number"),
        ("data.num_workers=all", "data.num_workers is 'all'; DataframeDatamodule takes a whole number"),
        ("data.transforms.augment.0.prob=x", "data.transforms.augment[0].prob is 'x'; RandFlipsd takes a number"),
        ("model.optimizer.generator.lr=abc", "model.optimizer.generator.lr is 'abc'; AdamW takes a number"),
        ("model.backbone.kernel_size=[3,wide]", "model.backbone.kernel_size is [3, 'wide']; DynUNet takes a list"),
        ("callbacks.early_stopping.patience=long", "callbacks.early_stopping.patience is 'long'; EarlyStopping takes"),
        ("data.transforms.preprocess.0.clip=yes", "preprocess[0].clip is 'yes'; ScaleIntensityRangePercentilesd takes"),
        ("seed=abc", "seed is 'abc'; give a whole number"),
        ("optimized_mode=maximum", "optimized_mode is 'maximum'; give one of min, max"),
        ("spatial_dims=4", "spatial_dims is 4; give one of 2, 3"),
        ("extras.matmul_precision=low", "extras.matmul_precision is 'low'; give one of highest, high, medium"),
    ],
)
def test_a_value_of_another_type_is_named_with_what_its_class_takes(tmp_path, override, says):
    with pytest.raises(ConfigError) as error:
        check_experiment(compose(tmp_path, override))
    assert says in str(error.value)


@pytest.mark.parametrize(
    "override",
    [
        "run_name=2026",
        "trainer.min_epochs=null",
        "trainer.devices=[0,1]",
        "trainer.gradient_clip_val=1",
        "+trainer.profiler={_target_: lightning.pytorch.profilers.SimpleProfiler}",
        "data.patch_shape=null",
        "model.backbone.norm_name=[group,{num_groups: 2}]",
        "++model.task_heads.seg.loss={_target_: torch.nn.BCEWithLogitsLoss, pos_weight: [2.0]}",
        "model.backbone._target_=no_such_module.Net",
    ],
)
def test_values_that_a_class_takes_are_left_alone_and_unknown_classes_to_their_construction(tmp_path, override):
    assert wrong_types(compose(tmp_path, override)) == []


@pytest.mark.parametrize(
    ("experiment", "override", "says"),
    [
        ("segmentation", "spatial_dims=two", "spatial_dims is 'two'; give one of 2, 3"),
        ("segmentation_classes", "num_classes=four", "num_classes is 'four'; give a whole number"),
        ("superres", "scale=1.5", "scale is 1.5; give a whole number or a list of whole numbers"),
        ("superres", "scale=[1,2,2.5]", "scale is [1, 2, 2.5]; give a whole number or a list of whole numbers"),
        ("labelfree", "target_std=wide target_mean=400", "target_std is 'wide'; give a number or null"),
    ],
)
def test_a_wrong_value_that_many_arguments_take_from_one_key_is_named_once(tmp_path, experiment, override, says):
    given = [f"experiment=im2im/{experiment}", "data.path=images.csv", *override.split()]
    assert wrong_types(compose(tmp_path, *given)) == [says]


def test_a_key_of_a_users_own_may_mean_something_else_than_that_of_a_shipped_experiment(tmp_path):
    assert wrong_types({**compose(tmp_path), "scale": "micrometer", "num_classes": None}) == []


def test_images_in_memory_are_left_to_the_data_module(tmp_path):
    config = compose(tmp_path)
    for rows in (pd.DataFrame({"raw": ["a.tif"]}), {"train": [{"raw": np.zeros((1, 4, 4))}]}):
        config["data"]["path"] = rows
        assert wrong_types(config) == []


def test_an_accelerator_that_is_not_there_is_named_with_those_that_are():
    check_accelerator({"accelerator": "cpu"})
    check_accelerator({"accelerator": "auto"})
    with pytest.raises(ConfigError, match=r"trainer\.accelerator is 'tpu'.* it has .*cpu.*trainer=cpu"):
        check_accelerator({"accelerator": "tpu"})


@pytest.mark.parametrize("name", ["labelfree", "labelfree_projection", "labelfree_stains", "gan"])
def test_a_mean_of_the_target_without_its_standard_deviation_is_refused(tmp_path, name):
    experiment = [f"experiment=im2im/{name}", "data.path=my_images.csv"]
    check_experiment(compose(tmp_path, *experiment))
    check_experiment(compose(tmp_path, *experiment, "target_mean=300", "target_std=80"))
    for given, says in {
        "target_mean=300": "mean is 300 and std is None",
        "target_std=80": "mean is None and std is 80",
    }.items():
        with pytest.raises(
            ConfigError, match=rf"model\.postprocessing\.prediction\..*: {says}; give both \(target_mean"
        ):
            check_experiment(compose(tmp_path, *experiment, given))
