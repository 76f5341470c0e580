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


def residual(num_channels):
    shortcut = nn.Conv2d(num_channels, 32, 1, stride=2, bias=False)
    return TaskNetwork(nn.Sequential(nn.Conv2d(1, num_channels, 3, padding=1), shortcut), {"seg": IdentityHead()})


def test_weights_have_their_channels_last_unless_torch_would_write_beyond_its_memory():
    wide, narrow = residual(16), residual(8)
    assert wide.backbone[0].weight.is_contiguous(memory_format=torch.channels_last)
    for _ in range(3):  # with channels last, this ends the process in most cases
        narrow(torch.rand(4, 1, 64, 64))["seg"].square().mean().backward()
    assert all(parameter.is_contiguous() for parameter in narrow.parameters())
