import pytest
import torch

from cyto_dl.model.heads import UpsamplingHead


@pytest.mark.parametrize(
    ("spatial_dims", "scale", "expected"),
    [(2, 2, (10, 14)), (2, [1, 3], (5, 21)), (3, 2, (10, 14, 18)), (3, [1, 2, 2], (5, 14, 18))],
)
def test_the_output_is_scale_times_as_large(spatial_dims, scale, expected):
    head = UpsamplingHead(4, 2, spatial_dims=spatial_dims, scale=scale, num_blocks=2)
    output = head(torch.rand(2, 4, *(5, 7, 9)[:spatial_dims]))
    assert output.shape == (2, 2, *expected)
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
