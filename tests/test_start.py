"""Fine-tuning: a training begins with the weights of a bundle, a run or a checkpoint."""

import pytest
import torch

from cyto_dl.bundle import export_bundle
from cyto_dl.errors import BundleError, ConfigError
from tests.test_train import run, weights

STANDS_STILL = "model.optimizer.generator.lr=1e-12"


def network(output_dir):
    """Its parameters; running statistics of batch normalisation move with every batch."""
    return {
        name: value
        for name, value in weights(output_dir).items()
        if name.startswith("network.") and "running" not in name and "num_batches" not in name
    }


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("kind", ["bundle", "run", "checkpoint"])
def test_a_training_begins_with_the_weights_of_another(manifest_folder, tmp_path, spatial_dims, kind):
    folder = manifest_folder(spatial_dims=spatial_dims)
    run(folder, tmp_path / "first", spatial_dims=spatial_dims)
    start = {"run": tmp_path / "first", "checkpoint": tmp_path / "first" / "checkpoints" / "last.ckpt"}
    if kind == "bundle":
        start["bundle"] = export_bundle(tmp_path / "first", tmp_path / "bundle")
    still = ["seed=7", STANDS_STILL, "test=false"]
    run(folder, tmp_path / "tuned", f"start_from={start[kind]}", *still, spatial_dims=spatial_dims)
    run(folder, tmp_path / "fresh", *still, spatial_dims=spatial_dims)

    first, tuned, fresh = (network(tmp_path / name) for name in ("first", "tuned", "fresh"))
    # two steps at this rate move a weight by 2e-12, below float32's last bit for most; decay is as small
    assert all(torch.allclose(tuned[name], first[name], atol=1e-9) for name in first)
    assert not all(torch.allclose(fresh[name], first[name], atol=1e-9) for name in first)


def test_another_network_is_refused_with_the_weights_that_differ(manifest_folder, tmp_path):
    folder = manifest_folder()
    run(folder, tmp_path / "first", "test=false")
    with pytest.raises(ConfigError, match=r"start_from: .*another network(.|\n)*here, .* there(.|\n)*and \d+ more"):
        run(folder, tmp_path / "wide", f"start_from={tmp_path / 'first'}", "model.backbone.filters=[6,6,8,8]")
    assert not (tmp_path / "wide").exists()


def test_a_last_layer_for_other_classes_begins_anew(manifest_folder, tmp_path, caplog):
    folder = manifest_folder()
    run(folder, tmp_path / "first", "test=false")
    own = ["num_classes=5", "test=false"]
    with caplog.at_level("INFO", logger="cyto_dl.start"):
        run(
            folder,
            tmp_path / "classes",
            f"start_from={tmp_path / 'first'}",
            *own,
            experiment="im2im/segmentation_classes",
        )
    assert "new are" in caplog.text
    assert "(5,) here, (1,) there" in caplog.text


def test_a_run_that_goes_on_does_not_start_again(manifest_folder, tmp_path, caplog):
    folder = manifest_folder()
    run(folder, tmp_path / "first", "test=false")
    words = [f"start_from={tmp_path / 'first'}", "test=false"]
    run(folder, tmp_path / "tuned", *words)
    with caplog.at_level("INFO", logger="cyto_dl.start"):
        run(folder, tmp_path / "tuned", *words, "trainer.max_epochs=2")
    assert "starting from" not in caplog.text


def test_what_is_no_model_is_refused(manifest_folder, tmp_path):
    with pytest.raises(BundleError, match="neither a checkpoint nor the folder of a run"):
        run(manifest_folder(), tmp_path / "run", f"start_from={tmp_path}")
