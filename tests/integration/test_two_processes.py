"""The step `train` in two processes, as `trainer=ddp_sim` starts them, learns the weights of one process."""

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.integration.process import run

pytestmark = pytest.mark.integration

# Lightning starts the second process with the command of the first: here a file, in a pipeline KFP's executor.
SCRIPT = "import json, sys\nfrom cyto_dl.steps.train import train_step\ntrain_step(**json.loads(sys.argv[1]))\n"
OVERRIDES = [
    "data.patch_shape=[32,32]",
    "data.patches_per_image=2",
    "model.backbone.filters=[4,4,8,8]",
    "model.backbone.norm_name=INSTANCE",  # of a batch, each process would see its half: torch has no other for CPUs
    "trainer.max_epochs=3",
]


def weights_after(overrides: list[str], dataset: Path, folder: Path) -> dict[str, torch.Tensor]:
    folder.mkdir()
    (folder / "step.py").write_text(SCRIPT)
    arguments = {
        "dataset_dir": str(dataset),
        "experiment": "im2im/segmentation",
        "overrides": [*OVERRIDES, *overrides],
        "model_dir": str(folder / "model"),
        "metrics_path": str(folder / "metrics.json"),
        "source_col": "raw",
        "target_cols": ["seg"],
        "spatial_dims": 2,
    }
    ended = run([sys.executable, folder / "step.py", json.dumps(arguments)])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "valid/seg/dice" in json.loads((folder / "metrics.json").read_text())
    checkpoint = torch.load(folder / "model/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6  # 8 patches an epoch, 4 a step, whoever sees them
    return checkpoint["state_dict"]


def test_two_processes_with_half_the_batch_each_learn_the_weights_of_one(manifest_folder, tmp_path):
    dataset = manifest_folder(train=4)
    alone = weights_after(["trainer=cpu", "data.batch_size=4"], dataset, tmp_path / "one")
    together = weights_after(["trainer=ddp_sim", "data.batch_size=2"], dataset, tmp_path / "two")
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        # A twentieth of one step of 0.002. Sums in another order differ by 1e-7; Adam, which divides a gradient by its
        # own size, makes 3e-6 of it where a gradient is nearly 0: a convolution's scale, which the normalisation undoes
        torch.testing.assert_close(together[name], value, rtol=0, atol=1e-4)
    assert alone["network.backbone.output_block.conv.conv.bias"].abs().max() > 1e-3  # it began at 0
