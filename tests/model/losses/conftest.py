"""Batches that the losses' tests compare, in 2-D and 3-D."""

import pytest
import torch


@pytest.fixture(params=[2, 3])
def pair(request):
    """Prediction and target, B C (Z) Y X, double for gradcheck."""
    shape = (2, 3, *(4, 5, 6)[: request.param])
    generator = torch.Generator().manual_seed(request.param)
    prediction, target = (torch.randn(shape, dtype=torch.double, generator=generator) for _ in range(2))
    return prediction.requires_grad_(), target
