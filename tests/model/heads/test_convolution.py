import pytest
import torch

from cyto_dl.model.heads import ConvolutionHead


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_channels_change_and_the_size_stays(spatial_dims, kernel_size):
    head = ConvolutionHead(4, 2, spatial_dims=spatial_dims, kernel_size=kernel_size, activation="sigmoid")
    space = (5, 7, 9)[:spatial_dims]
    assert head(torch.rand(2, 4, *space)).shape == (2, 2, *space)
    assert head.activation == "sigmoid"
