"""Finer output along each axis by its own factor, without a checkerboard, and no worse than interpolation at first."""

import pytest
import torch
from torch.nn.functional import interpolate

from cyto_dl.errors import ConfigError
from cyto_dl.model import TaskNetwork
from cyto_dl.model.heads import UpsamplingHead

DIMS = pytest.mark.parametrize("spatial_dims", [2, 3])


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


@pytest.mark.parametrize(("spatial_dims", "scale"), [(2, 2), (2, 4), (3, 2), (3, [1, 2, 2])])
def test_even_features_give_an_even_image_whatever_the_weights(spatial_dims, scale):
    torch.manual_seed(0)
    head = UpsamplingHead(4, 1, spatial_dims=spatial_dims, scale=scale)
    output = head(torch.ones(1, 4, *[14] * spatial_dims))
    inside = output[(..., *[slice(5 * size // 14, 9 * size // 14) for size in output.shape[2:]])]  # of the padding
    torch.testing.assert_close(inside, inside.mean().expand_as(inside), rtol=1e-4, atol=1e-5)  # sums of 100 singles


@DIMS
def test_a_residual_head_begins_with_the_interpolated_source(spatial_dims):
    head = UpsamplingHead(4, 1, spatial_dims=spatial_dims, residual=True)
    network = TaskNetwork(torch.nn.Conv2d(1, 4, 1) if spatial_dims == 2 else torch.nn.Conv3d(1, 4, 1), {"fine": head})
    source = torch.rand(2, 1, *(6, 8, 10)[:spatial_dims])
    mode = "bilinear" if spatial_dims == 2 else "trilinear"
    assert torch.equal(network(source)["fine"], interpolate(source, scale_factor=2, mode=mode))
    torch.nn.init.ones_(head.convolution.bias)
    assert torch.equal(network(source)["fine"], interpolate(source, scale_factor=2, mode=mode) + 1)


def test_a_residual_head_refuses_a_source_of_other_channels():
    head = UpsamplingHead(4, 1, spatial_dims=2, residual=True)
    with pytest.raises(ConfigError, match=r"has 3 channels and the output 1. Set the head's residual to false"):
        head(torch.rand(1, 4, 6, 6), torch.rand(1, 3, 6, 6))


@pytest.mark.parametrize("scale", [0, [2], [1, 2, 2], [1.5, 2]])
def test_a_scale_that_is_no_whole_number_per_axis_is_refused(scale):
    with pytest.raises(ConfigError, match="UpsamplingHead: scale is"):
        UpsamplingHead(4, 1, spatial_dims=2, scale=scale)
