"""A training begins as good as a Gaussian filter, at the border too, and learns the difference."""

import pytest
import torch
from scipy.ndimage import gaussian_filter

from cyto_dl.errors import ConfigError
from cyto_dl.model import TaskNetwork
from cyto_dl.model.heads import DenoisingHead

DIMS = pytest.mark.parametrize("spatial_dims", [2, 3])
SHAPE = (6, 20, 24)


def network(head, channels=1):
    convolution = torch.nn.Conv2d if len(list(head.buffers())) == 2 else torch.nn.Conv3d
    return TaskNetwork(convolution(channels, 4, 1), {"clean": head})


@pytest.mark.parametrize(("spatial_dims", "sigma_px"), [(2, 1.25), (2, [1, 2]), (3, 1), (3, [0.5, 1.5, 1.5])])
def test_it_begins_with_a_gaussian_filter_of_the_source(spatial_dims, sigma_px):
    head = DenoisingHead(4, 2, spatial_dims=spatial_dims, sigma_px=sigma_px)
    source = torch.rand(2, 2, *SHAPE[-spatial_dims:])
    filtered = [
        gaussian_filter(channel, sigma_px, mode="nearest") for image in source.double().numpy() for channel in image
    ]
    expected = torch.stack([torch.from_numpy(channel) for channel in filtered]).reshape(source.shape)
    # single precision against double, of numbers up to 1
    torch.testing.assert_close(network(head, 2)(source)["clean"].double(), expected, rtol=0, atol=1e-6)


@DIMS
def test_it_keeps_an_even_image_at_the_border_too(spatial_dims):
    source = torch.full((1, 1, *SHAPE[-spatial_dims:]), 7.0)
    output = network(DenoisingHead(4, 1, spatial_dims=spatial_dims))(source)["clean"]
    torch.testing.assert_close(output, source, rtol=1e-5, atol=0)  # sums of 11 single-precision numbers per axis


@DIMS
def test_what_the_features_say_is_added_and_learnt(spatial_dims):
    head = DenoisingHead(4, 1, spatial_dims=spatial_dims)
    source = torch.rand(2, 1, *SHAPE[-spatial_dims:])
    before = network(head)(source)["clean"]
    torch.nn.init.ones_(head.convolution.bias)
    after = network(head)(source)["clean"]
    torch.testing.assert_close(after, before + 1)
    after.square().mean().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


@DIMS
def test_its_weights_are_those_of_the_convolution_alone(spatial_dims):
    assert set(DenoisingHead(4, 1, spatial_dims=spatial_dims).state_dict()) == {
        "convolution.weight",
        "convolution.bias",
    }


@pytest.mark.parametrize("sigma_px", [0, -1, [1], [1, 1, 1], [1, 0]])
def test_a_sigma_that_is_not_above_zero_for_every_axis_is_refused(sigma_px):
    with pytest.raises(ConfigError, match="sigma_px is"):
        DenoisingHead(4, 1, spatial_dims=2, sigma_px=sigma_px)


def test_a_source_of_other_channels_is_refused():
    with pytest.raises(ConfigError, match="the source has 3 channels and the output 1"):
        DenoisingHead(4, 1, spatial_dims=2)(torch.rand(1, 4, 6, 6), torch.rand(1, 3, 6, 6))
