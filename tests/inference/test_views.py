"""Seen from several sides and turned back, a window keeps its place; the mean is that of the logits."""

import pytest
import torch
from torch.nn import functional

from cyto_dl.errors import ConfigError
from cyto_dl.inference import SlidingWindow
from cyto_dl.inference.views import averaged_over_views

NUM_VIEWS = {"flips": 4, "rotations": 8}
SHAPES = [(16, 24), (24, 24), (4, 16, 24), (4, 16, 16)]


def windows(*shape, batch=2, channels=1):
    return torch.rand((batch, channels, *shape), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("augment", NUM_VIEWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_network_that_treats_all_sides_alike_says_the_same(augment, shape):
    source = windows(*shape)
    output = averaged_over_views(lambda seen: {"seg": seen}, augment)(source)["seg"]
    assert torch.allclose(output, source, atol=1e-6)  # five or seven times a number is rounded
    assert torch.equal(source, windows(*shape))  # what was given is not written on


@pytest.mark.parametrize(("augment", "count"), NUM_VIEWS.items())
@pytest.mark.parametrize("shape", SHAPES)
def test_every_view_is_another_one_and_z_keeps_its_direction(augment, count, shape):
    seen = []
    averaged_over_views(lambda view: seen.append(view.clone()) or {"seg": view}, augment)(windows(*shape))
    assert len({view.numpy().tobytes() for view in seen}) == len(seen) == count
    if len(shape) == 3:
        planes = windows(*shape).amax((-2, -1))
        assert all(torch.equal(view.amax((-2, -1)), planes) for view in seen)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mean_over_all_flips_and_rotations_turns_with_the_image(shape):
    torch.manual_seed(0)
    convolution = (torch.nn.Conv2d if len(shape) == 2 else torch.nn.Conv3d)(1, 2, 3, padding=1)
    network = averaged_over_views(lambda seen: {"seg": convolution(seen)}, "rotations")
    with torch.no_grad():
        straight, turned = network(windows(*shape)), network(windows(*shape).rot90(1, (-2, -1)))
    # the eight terms are added in another order
    assert torch.allclose(turned["seg"], straight["seg"].rot90(1, (-2, -1)), atol=1e-6)


def test_it_is_the_logits_that_are_averaged():
    constants = iter([2.0, -1.0, 4.0, 3.0])
    mean = averaged_over_views(lambda seen: {"seg": torch.full_like(seen, next(constants))}, "flips")
    assert torch.equal(mean(windows(8, 8))["seg"], torch.full((2, 1, 8, 8), 2.0))


@pytest.mark.parametrize("augment", NUM_VIEWS)
def test_heads_of_another_scale_or_without_z_are_turned_back_too(augment):
    source = windows(4, 16, 24)

    def network(seen):
        return {
            "plane": seen.amax(2),
            "fine": functional.interpolate(seen, scale_factor=(1, 2, 2)),
            "coarse": functional.max_pool3d(seen, 2),
            "half": seen.bfloat16(),
        }

    outputs, expected = averaged_over_views(network, augment)(source), network(source)
    for head in ("plane", "fine", "coarse"):
        assert torch.allclose(outputs[head], expected[head], atol=1e-6)  # as above
    assert outputs["half"].dtype == torch.float32


def test_a_head_that_cannot_be_turned_is_refused_by_name():
    def network(seen):
        return {"wide": functional.interpolate(seen, scale_factor=(1, 2))}

    assert averaged_over_views(network, "flips")(windows(8, 8))["wide"].shape[2:] == (8, 16)
    with pytest.raises(ConfigError, match=r"task_heads.wide has another shape when its window is turned.*Use flips"):
        averaged_over_views(network, "rotations")(windows(8, 8))


@pytest.mark.parametrize("shape", [(30, 41), (33, 64), (7, 20, 23)])
@pytest.mark.parametrize("augment", NUM_VIEWS)
def test_images_of_any_size_are_covered_by_augmented_windows(shape, augment):
    source = windows(*shape)
    window = SlidingWindow([4, 8, 12][-len(shape) :], 0.3, augment=augment)
    outputs = window(source, lambda seen: {"seg": seen})
    assert torch.allclose(outputs["seg"], source, atol=1e-6)  # blending weights sum to one in single precision


@pytest.mark.parametrize("augment", NUM_VIEWS)
def test_a_head_that_halves_an_image_of_odd_size_stays_aligned(augment):
    source = windows(17, 23)

    def network(seen):
        return {"coarse": functional.max_pool2d(seen, 2)}

    plain = SlidingWindow([8, 8], 0.3)(source, network)["coarse"]
    assert torch.allclose(SlidingWindow([8, 8], 0.3, augment=augment)(source, network)["coarse"], plain, atol=1e-6)


def test_another_augmentation_is_refused_with_the_choices():
    with pytest.raises(ConfigError, match=r"augment is 'mirror'; choose null or one of flips, rotations"):
        SlidingWindow([8, 8], augment="mirror")
