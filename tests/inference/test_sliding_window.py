"""The sliding window gives what one pass over the whole image would give, for images and heads of any size."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from cyto_dl.errors import ConfigError
from cyto_dl.inference import SlidingWindow
from cyto_dl.model.heads import ProjectionHead, UpsamplingHead

EXACT = 1e-6  # the weights are single precision and sum to one within a few units in the last place


def identity(windows):
    return {"seg": windows}


def image(*shape, batch=1, channels=1, seed=0):
    return torch.rand((batch, channels, *shape), generator=torch.Generator().manual_seed(seed))


@st.composite
def geometry(draw):
    spatial_dims = draw(st.sampled_from([2, 3]))
    largest = {2: 70, 3: 24}[spatial_dims]
    sizes = draw(st.lists(st.integers(1, largest), min_size=spatial_dims, max_size=spatial_dims))
    roi = draw(st.lists(st.integers(1, 20), min_size=spatial_dims, max_size=spatial_dims))
    return sizes, [max(side, size // 4) for side, size in zip(roi, sizes, strict=True)]  # few windows: fast


@given(geometry=geometry(), overlap=st.floats(0, 0.75), blend=st.sampled_from(["gaussian", "constant"]))
def test_an_identity_network_gives_back_the_image(geometry, overlap, blend):
    sizes, roi = geometry
    source = image(*sizes)
    output = SlidingWindow(roi, overlap, blend, batch_size=16)(source, identity)["seg"]
    assert output.shape == source.shape
    assert torch.allclose(output, source, atol=EXACT)


@given(size=st.integers(20, 90), roi=st.integers(2, 20), overlap=st.floats(0, 0.75))
def test_windows_are_spread_evenly_and_overlap_as_asked(size, roi, overlap):
    (axis,) = SlidingWindow([roi, roi], overlap)._grid([size, size], [1, 1])[:1]
    gaps = [after - before for before, after in zip(axis.starts, axis.starts[1:], strict=False)]
    assert axis.starts[0] == 0
    assert axis.starts[-1] + roi == axis.padded == size
    assert max(gaps, default=0) - min(gaps, default=0) <= 1
    # a window cannot move by less than one pixel, whatever overlap is asked
    assert max(gaps, default=0) <= max(1, roi * (1 - overlap))


@pytest.mark.parametrize("shape", [(50, 61), (9, 20, 33)])
def test_a_pointwise_network_gives_what_one_pass_over_the_image_gives(shape):
    output = SlidingWindow([8] * len(shape), 0.5)(image(*shape), lambda windows: {"seg": windows.square() * 3 - 1})
    assert torch.allclose(output["seg"], image(*shape).square() * 3 - 1, atol=3 * EXACT)


@pytest.mark.parametrize("shape", [(30, 41), (7, 20, 23)])
def test_heads_may_have_any_number_of_channels_and_run_together(shape):
    source = image(*shape, batch=2, channels=2)

    def network(windows):
        return {"both": windows, "sum": windows.sum(1, keepdim=True), "five": windows[:, :1].repeat_interleave(5, 1)}

    outputs = SlidingWindow([8] * len(shape))(source, network)
    assert list(outputs) == ["both", "sum", "five"]
    assert torch.allclose(outputs["both"], source, atol=EXACT)
    assert torch.allclose(outputs["sum"], source.sum(1, keepdim=True), atol=2 * EXACT)
    assert torch.allclose(outputs["five"], source[:, :1].expand(-1, 5, *shape), atol=EXACT)


@pytest.mark.parametrize("shape", [(30, 41), (7, 20, 23), (3, 5), (3, 2, 5)])
def test_an_upsampling_head_gives_a_larger_image(shape):
    def nearest(windows):
        return {"fine": functional.interpolate(windows, scale_factor=2.0), "seg": windows}

    source = image(*shape)
    outputs = SlidingWindow([8] * len(shape), 0.4)(source, nearest)
    assert torch.allclose(outputs["fine"], functional.interpolate(source, scale_factor=2.0), atol=EXACT)
    assert torch.allclose(outputs["seg"], source, atol=EXACT)


@pytest.mark.parametrize("shape", [(11, 9), (3, 9, 10)])
@pytest.mark.parametrize("scale", [9, 16])
def test_a_head_may_upsample_by_any_whole_number(shape, scale):
    source = image(*shape)
    output = SlidingWindow([8] * len(shape))(
        source, lambda windows: {"fine": functional.interpolate(windows, scale_factor=float(scale))}
    )["fine"]
    assert torch.allclose(output, functional.interpolate(source, scale_factor=float(scale)), atol=EXACT)


@pytest.mark.parametrize("shape", [(30, 41), (7, 20, 23), (3, 5), (8, 8, 8), (9, 64)])
def test_a_head_that_halves_an_image_is_aligned_with_its_pixels(shape):
    source = image(*shape)
    pool = functional.max_pool2d if len(shape) == 2 else functional.max_pool3d
    outputs = SlidingWindow([8] * len(shape), 0.3)(source, lambda windows: {"coarse": pool(windows, 2), "seg": windows})
    coarse = pool(source, 2, ceil_mode=True)
    assert outputs["coarse"].shape == coarse.shape  # rounded up
    inside = tuple(slice(0, size // 2) for size in shape)  # an odd last pixel is pooled with its reflection
    assert torch.allclose(outputs["coarse"][(..., *inside)], coarse[(..., *inside)], atol=EXACT)
    assert torch.allclose(outputs["seg"], source, atol=EXACT)


def test_a_head_of_the_package_is_upsampled_by_its_own_scale():
    head = UpsamplingHead(1, 2, spatial_dims=3, scale=[1, 2, 2]).eval()
    output = SlidingWindow([4, 8, 8])(image(5, 11, 13), lambda windows: {"fine": head(windows)})["fine"]
    assert output.shape == (1, 2, 5, 22, 26)


def test_a_projection_gives_one_plane():
    source = image(6, 30, 41)
    outputs = SlidingWindow([6, 8, 8])(source, lambda windows: {"plane": windows.amax(2), "stack": windows})
    assert torch.allclose(outputs["plane"], source.amax(2), atol=EXACT)
    assert torch.allclose(outputs["stack"], source, atol=EXACT)
    head = ProjectionHead(1, 3).eval()
    assert SlidingWindow([8, 8, 8])(source, lambda windows: {"plane": head(windows)})["plane"].shape == (1, 3, 30, 41)


def test_a_projection_through_a_part_of_the_stack_is_refused():
    with pytest.raises(ConfigError, match=r"covers 4 of 6 planes.*roi_size to 6"):
        SlidingWindow([4, 8, 8])(image(6, 30, 41), lambda windows: {"plane": windows.amax(2)})


@pytest.mark.parametrize("shape", [(50, 61), (9, 20, 33)])
def test_the_result_is_the_same_bit_for_bit_when_repeated(shape):
    torch.manual_seed(0)
    conv = (torch.nn.Conv2d if len(shape) == 2 else torch.nn.Conv3d)(1, 2, 3, padding=1)
    runs = [SlidingWindow([16] * len(shape))(image(*shape), lambda windows: {"seg": conv(windows)}) for _ in range(2)]
    assert torch.equal(runs[0]["seg"], runs[1]["seg"])


@pytest.mark.parametrize("shape", [(50, 61), (9, 20, 33)])
def test_the_result_does_not_depend_on_the_batch_size(shape):
    torch.manual_seed(0)
    conv = (torch.nn.Conv2d if len(shape) == 2 else torch.nn.Conv3d)(1, 2, 3, padding=1)
    one, many = (
        SlidingWindow([16] * len(shape), batch_size=size)(image(*shape, batch=2), lambda x: {"seg": conv(x)})
        for size in (1, 7)
    )
    # convolutions of another batch size may add in another order
    assert torch.allclose(one["seg"], many["seg"], atol=1e-5)


@pytest.mark.parametrize(
    ("num_windows", "sizes"), [(1, [1]), (4, [4]), (5, [2, 3]), (9, [3, 3, 3]), (13, [3, 3, 3, 4])]
)
def test_no_window_is_left_over_for_a_batch_of_its_own(num_windows, sizes):
    seen = []
    source = image(8, 8 * num_windows)
    output = SlidingWindow([8, 8], 0)(source, lambda windows: seen.append(len(windows)) or {"seg": windows})["seg"]
    assert seen == sizes
    assert torch.equal(output, source)


@pytest.mark.parametrize("shape", [(50, 61), (9, 20, 33), (32, 32), (32, 32, 32)])
def test_without_a_roi_the_network_meets_the_whole_image_in_one_window(shape):
    seen = []

    def network(windows):
        seen.append(tuple(windows.shape[2:]))
        return {"seg": windows}

    assert torch.equal(SlidingWindow()(image(*shape), network)["seg"], image(*shape))
    (window,) = seen
    assert all(side % 32 == 0 and size <= side < size + 32 for side, size in zip(window, shape, strict=True))


def test_an_image_of_one_window_is_passed_on_bit_for_bit():
    assert torch.equal(SlidingWindow([16, 16])(image(16, 16), identity)["seg"], image(16, 16))


def test_a_small_image_is_reflected_at_its_borders():
    source = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 1, 1, 3)
    seen = []
    SlidingWindow([1, 9])(source, lambda windows: seen.append(windows.clone()) or {"seg": windows})
    assert seen[0].flatten().tolist() == [2, 3, 2, 1, 2, 3, 2, 1, 2]


def test_half_precision_outputs_are_blended_in_single_precision():
    output = SlidingWindow([8, 8], 0.5)(image(30, 30), lambda windows: {"seg": windows.bfloat16()})["seg"]
    assert output.dtype == torch.float32
    assert torch.allclose(output, image(30, 30).bfloat16().float(), atol=EXACT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"roi_size": [8]}, "model.inference.roi_size"),
        ({"roi_size": [8, 0]}, "model.inference.roi_size"),
        ({"roi_size": [8, 8.5]}, "model.inference.roi_size"),
        ({"roi_size": 64}, "model.inference.roi_size"),
        ({"roi_size": [8, 8], "overlap": 1}, "model.inference.overlap is 1"),
        ({"roi_size": [8, 8], "overlap": -0.1}, "model.inference.overlap is -0.1"),
        ({"roi_size": [8, 8], "overlap": "a lot"}, "model.inference.overlap"),
        ({"roi_size": [8, 8], "blend": "linear"}, "blend is 'linear'; choose one of gaussian, constant"),
        ({"roi_size": [8, 8], "batch_size": 0}, "model.inference.batch_size"),
    ],
)
def test_a_wrong_argument_is_refused_by_its_key(arguments, message):
    with pytest.raises(ConfigError, match=message):
        SlidingWindow(**arguments)


def test_a_window_of_another_rank_than_the_image_is_refused():
    with pytest.raises(ConfigError, match=r"roi_size has 2 numbers \(8, 8\), but the image has 3 spatial axes"):
        SlidingWindow([8, 8])(image(9, 20, 20), identity)


def test_a_network_that_crops_its_window_is_refused():
    with pytest.raises(ConfigError, match=r"task_heads.seg.*\(60, 60\) px for a window of \(64, 64\)"):
        SlidingWindow([64, 64])(image(100, 100), lambda windows: {"seg": windows[..., 2:-2, 2:-2]})


@pytest.mark.parametrize(("augment", "num_views"), [(None, 1), ("flips", 4), ("rotations", 8)])
@pytest.mark.parametrize("shape", [(40, 23), (9, 40, 23)])
def test_it_says_beforehand_how_many_windows_the_network_will_see(shape, augment, num_views):
    window = SlidingWindow(roi_size=(16,) * len(shape), augment=augment, batch_size=3)
    seen = []

    def network(windows):
        seen.append(len(windows))
        return {"same": windows}

    window(torch.zeros(1, 1, *shape), network)
    assert sum(seen) == window.num_windows(shape)
    assert sum(seen) % num_views == 0
