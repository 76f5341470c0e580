"""The discriminator sees source and image together, on several scales, whatever the anisotropy of the patch."""

import pytest
import torch

from cyto_dl.errors import ConfigError
from cyto_dl.model.discriminators import MultiScalePatchDiscriminator

PATCH = {2: (32, 40), 3: (8, 32, 40)}
STRIDES = {2: [2, 2], 3: [[1, 2, 2], 2]}
DIMS = pytest.mark.parametrize("spatial_dims", [2, 3])


def make(spatial_dims, **changes):
    settings = {"spatial_dims": spatial_dims, "source_channels": 2, "target_channels": 1, "channels": 4}
    return MultiScalePatchDiscriminator(**{**settings, "strides": STRIDES[spatial_dims], **changes})


def images(spatial_dims, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand((2, channels, *PATCH[spatial_dims]), generator=generator) for channels in (2, 1))


@DIMS
@pytest.mark.parametrize("norm", ["spectral", "instance"])
def test_every_scale_gives_features_and_scores_of_patches(spatial_dims, norm):
    discriminator = make(spatial_dims, norm=norm)
    outputs = discriminator(*images(spatial_dims))
    sizes = {2: [(8, 10), (4, 5)], 3: [(4, 8, 10), (4, 4, 5)]}[spatial_dims]  # the first stride of 3-D keeps Z
    assert [tuple(scale[-1].shape) for scale in outputs] == [(2, 1, *size) for size in sizes]
    assert [[layer.shape[1] for layer in scale] for scale in outputs] == [[4, 8, 16, 1]] * 2
    sum(scale[-1].sum() for scale in outputs).backward()
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


@DIMS
def test_an_image_is_judged_beside_its_source(spatial_dims):
    discriminator = make(spatial_dims).eval()
    source, image = images(spatial_dims)
    assert not torch.equal(discriminator(source, image)[0][-1], discriminator(1 - source, image)[0][-1])
    assert not torch.equal(discriminator(source, image)[0][-1], discriminator(source, 1 - image)[0][-1])


@DIMS
@pytest.mark.parametrize("norm", ["spectral", "instance"])
def test_an_images_scores_do_not_depend_on_the_others_of_the_batch(spatial_dims, norm):
    discriminator = make(spatial_dims, norm=norm).eval()  # in training, each pass turns the spectral norm's vectors
    source, image = images(spatial_dims)
    both, alone = discriminator(source, image), discriminator(source[:1], image[:1])
    # convolutions of other batch sizes sum in another order
    torch.testing.assert_close(both[1][-1][:1], alone[1][-1], rtol=1e-4, atol=1e-5)


def test_every_pixel_is_seen_equally_often_so_that_gradients_have_no_checkerboard():
    discriminator = make(2, strides=[2, 2, 2], num_scales=1)
    for name, parameter in discriminator.named_parameters():
        torch.nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
    source, image = torch.ones(1, 2, 64, 64), torch.ones(1, 1, 64, 64, requires_grad=True)
    discriminator(source, image)[0][-1].sum().backward()
    center = image.grad[0, 0, 24:40, 24:40]  # away from the padding
    torch.testing.assert_close(center, center.mean().expand_as(center), rtol=1e-4, atol=0)  # sums in single precision


@DIMS
def test_spectral_normalisation_bounds_the_steepness_and_keeps_brightness_visible(spatial_dims):
    discriminator = make(spatial_dims)
    source, image = images(spatial_dims)
    for _ in range(30):  # one power iteration a pass
        discriminator(source, image)
    discriminator.eval()
    for scale in discriminator.scales:
        for layer in scale:
            weight = (layer if not isinstance(layer, torch.nn.Sequential) else layer[0]).weight
            norm = torch.linalg.matrix_norm(weight.detach().flatten(1), ord=2).item()
            assert norm == pytest.approx(1, abs=0.05)  # the power method has not quite converged
    brighter = discriminator(source, image + 1)[0][-1]
    assert not torch.allclose(brighter, discriminator(source, image)[0][-1], atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_runs_in_mixed_precision(dtype):
    discriminator = make(2)
    with torch.autocast("cpu", dtype=dtype):
        outputs = discriminator(*images(2))
    assert outputs[0][-1].dtype == dtype
    outputs[0][-1].float().sum().backward()
    assert all(torch.isfinite(each.grad).all() for each in discriminator.scales[0].parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": [3]}, "model.discriminator.strides has 3; take 1 or 2"),
        ({"strides": [[2, 2, 2]]}, r"model.discriminator.strides has \[2, 2, 2\]"),
        ({"strides": []}, "at least one stride"),
        ({"num_scales": 0}, "at least one stride and one scale"),
        ({"norm": "batch"}, "model.discriminator.norm is 'batch'; choose spectral or instance"),
    ],
)
def test_a_wrong_argument_is_refused_by_its_key(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(2, **changes)


@pytest.mark.parametrize(
    ("norm", "size", "is_refused"),
    [("spectral", 7, True), ("spectral", 8, False), ("instance", 8, True), ("instance", 16, False)],
)
def test_a_patch_that_cannot_be_halved_so_often_is_refused(norm, size, is_refused):
    discriminator = make(2, norm=norm)  # two halvings, and one more of the second scale
    source, image = torch.rand(1, 2, size, 8), torch.rand(1, 1, size, 8)
    if not is_refused:
        assert len(discriminator(source, image)) == 2
        return
    with pytest.raises(ConfigError, match=rf"cannot judge patches of \({size}, 8\) px.*data.patch_shape"):
        discriminator(source, image)


def test_other_channels_than_promised_are_told():
    with pytest.raises(ConfigError, match=r"made for 3 channels.*the source has 4 and the targets 1"):
        make(2)(torch.rand(1, 4, 32, 32), torch.rand(1, 1, 32, 32))
