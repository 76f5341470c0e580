"""What the accuracy benchmarks say about the machine is a trainer that the experiments take."""

import pytest
import torch

from benchmarks.accuracy.hardware import trainer_overrides
from cyto_dl.config import compose_experiment


@pytest.mark.parametrize(
    ("gpu", "bfloat16", "trainer"),
    [(True, True, ("gpu", "bf16-mixed")), (False, True, ("cpu", "bf16-mixed")), (False, False, ("cpu", "32-true"))],
)
def test_every_machine_has_a_trainer(gpu, bfloat16, trainer, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bfloat16)
    overrides = ["experiment=im2im/instance_seg", "data.path=images.csv", *trainer_overrides()]
    composed = compose_experiment(overrides, output_dir=tmp_path)["trainer"]
    assert (composed["accelerator"], composed["precision"]) == trainer
