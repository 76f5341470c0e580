import pytest
import torch
from torch import nn

from cyto_dl.model import TaskNetwork
from cyto_dl.model.heads import ConvolutionHead, IdentityHead


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_every_head_sees_the_same_features(spatial_dims):
    convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
    head = ConvolutionHead(4, 2, spatial_dims=spatial_dims)
    network = TaskNetwork(convolution(1, 4, 3, padding=1), {"features": IdentityHead(), "seg": head})
    outputs = network(torch.rand(2, 1, *[8] * spatial_dims))
    assert list(outputs) == ["features", "seg"]
    assert torch.equal(outputs["seg"], head(outputs["features"]))
    assert {key.split(".")[0] for key in network.state_dict()} == {"backbone", "heads"}
