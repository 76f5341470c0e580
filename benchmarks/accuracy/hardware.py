"""The fastest trainer of the machine that a benchmark runs on."""

import torch


def trainer_overrides() -> list[str]:
    """An accelerator when there is one; bfloat16 where the processor has it, which halves a step's time."""
    if torch.cuda.is_available():
        return ["trainer=gpu", "trainer.precision=bf16-mixed"]
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return ["trainer=cpu", "trainer.precision=bf16-mixed"]
    return ["trainer=cpu"]
