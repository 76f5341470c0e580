"""Hidden pixels show their neighbours, and their own values are the target."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cyto_dl.data import BlindSpotd, DataframeDatamodule, ReadImaged
from cyto_dl.data.patches import seeded
from cyto_dl.data.stages import made_targets
from cyto_dl.errors import ConfigError, ManifestError

SHAPES = {2: (64, 48), 3: (8, 32, 24)}


def numbered(shape, channels=1):
    """An image in which every pixel has a value of its own."""
    return torch.arange(channels * np.prod(shape), dtype=torch.float32).reshape(channels, *shape)


def hide(source, *, seed=0, **arguments):
    transform = BlindSpotd("raw", "clean", **arguments)
    with seeded([transform], seed):
        item = transform({"raw": source})
    return item["raw"], item["clean"]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_target_knows_the_hidden_pixels_alone(spatial_dims):
    source = numbered(SHAPES[spatial_dims], channels=2)
    masked, target = hide(source.clone())
    known = ~target.isnan()

    assert torch.equal(target[known], source[known])
    assert torch.equal(masked[~known], source[~known])
    assert (masked[known] != source[known]).all()  # every value is there once, so a neighbour's is another
    assert torch.equal(known[0], known[1])


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_64th_of_the_pixels_is_hidden_one_per_cell(spatial_dims):
    _, target = hide(numbered(SHAPES[spatial_dims]))
    hidden = (~target.isnan()).sum().item()
    # a shifted grid has cells across the border, whose pixel may lie outside; the spread is below that of a Poisson
    # count, and 4 of its standard deviations are allowed
    assert hidden == pytest.approx(target.numel() / 64, abs=4 * (target.numel() / 64) ** 0.5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_every_pixel_is_hidden_equally_often(spatial_dims):
    shape = (9, 10) if spatial_dims == 2 else (5, 6, 7)
    times = torch.stack([~hide(numbered(shape), seed=seed)[1].isnan() for seed in range(2000)]).double().sum(0)
    expected = 2000 / 64
    # 5 standard deviations of a Poisson count hold all of 210 pixels in 9999 of 10^4 such tests; the seeds are fixed
    assert (times - expected).abs().max() < 5 * expected**0.5


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_hidden_pixel_shows_one_within_the_radius(spatial_dims):
    shape = SHAPES[spatial_dims]
    source = numbered(shape)
    masked, target = hide(source.clone(), radius_px=2)
    hidden = ~target.isnan()
    own = np.stack(np.unravel_index(target[hidden].long().numpy(), shape))
    shown = np.stack(np.unravel_index(masked[hidden].long().numpy(), shape))
    assert np.abs(own - shown).max() == 2


def test_all_neighbours_are_shown_equally_often_also_at_the_border():
    transform = BlindSpotd("raw", "clean", radius_px=1)
    transform.set_random_state(seed=0)
    corner = np.zeros((2, 6000), np.int64)
    shown = transform._neighbours(corner, (4, 4))
    counts = np.unique(shown, axis=1, return_counts=True)
    assert counts[0].T.tolist() == [[0, 1], [1, 0], [1, 1]]
    assert counts[1] == pytest.approx(2000, abs=5 * (6000 * 2 / 9) ** 0.5)  # 5 standard deviations of a binomial


@given(
    shape=st.lists(st.integers(1, 12), min_size=2, max_size=3),
    radius_px=st.integers(1, 6),
    fraction=st.floats(0.01, 0.25),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_can_be_hidden_in(shape, radius_px, fraction, seed):
    source = numbered(shape)
    masked, target = hide(source.clone(), seed=seed, radius_px=radius_px, fraction=fraction)
    known = ~target.isnan()
    assert torch.equal(target[known], source[known])
    if source.numel() > 1:  # a single pixel has no neighbour
        assert (masked[known] != source[known]).all()


@pytest.mark.parametrize("box", [(1, 5), (1, 1, 5)])
def test_correlated_noise_is_hidden_around_the_target_pixel(box):
    shape = (16, 24) if len(box) == 2 else (4, 16, 24)
    source = numbered(shape)
    masked, target = hide(source.clone(), hidden_shape=box, fraction=0.01)
    hidden = masked != source
    known = ~target.isnan()

    around = torch.nn.functional.max_pool1d(known.float().flatten(0, -2), 5, stride=1, padding=2).reshape(known.shape)
    assert torch.equal(hidden, around.bool())
    assert known.sum() < hidden.sum()


@pytest.mark.parametrize(("box", "fraction"), [((1, 9), 1 / 64), ((1, 9), 1 / 16), ((1, 1, 5), 0.01), ((5, 5), 1 / 25)])
def test_no_value_of_a_hidden_box_is_shown_anywhere(box, fraction):
    source = numbered((32, 48) if len(box) == 2 else (4, 16, 24))
    masked, target = hide(source.clone(), hidden_shape=box, fraction=fraction)
    assert not torch.isin(target[~target.isnan()], masked).any()
    assert torch.isin(masked, source[masked == source]).all()


def test_boxes_that_hide_everything_are_refused():
    with pytest.raises(ConfigError, match="hide all of a patch"):
        hide(numbered((16, 16)), hidden_shape=(9, 9), fraction=0.25)


def test_the_hidden_pixels_follow_from_the_seed_alone():
    source = numbered((32, 32))
    once, again, other = (hide(source.clone(), seed=seed) for seed in (1, 1, 2))
    torch.testing.assert_close(once, again, rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(once[0], other[0])


def test_the_image_that_is_handed_in_stays_as_it_is():
    source = numbered((32, 32))
    hide(source)
    assert torch.equal(source, numbered((32, 32)))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"keys": ["raw", "other"]}, "there is one source"),
        ({"target_key": "raw"}, "the source itself"),
        ({"fraction": 0.5}, "fraction is 0.5"),
        ({"radius_px": 0}, "radius_px is 0"),
        ({"hidden_shape": [1, 4]}, r"hidden_shape is \(1, 4\)"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, says):
    with pytest.raises(ConfigError, match=says):
        BlindSpotd(**{"keys": "raw", "target_key": "clean", **arguments})


def test_a_hidden_shape_of_other_dimensions_than_the_image_is_refused():
    with pytest.raises(ConfigError, match="hidden_shape"):
        hide(numbered((8, 8)), hidden_shape=(1, 1, 5))


def datamodule(spatial_dims, *, rows=None, augment=None):
    """Images of numbered pixels, of which those of the split test have a clean image."""
    image = numbered([16] * spatial_dims).numpy()[0]
    found = {"train": [{"raw": image + 1}], "valid": [{"raw": image + 2}, {"raw": image + 3}]}
    return DataframeDatamodule(
        path=rows or found | {"test": [{"raw": image, "clean": 0 * image}, {"raw": image + 4}]},
        columns={"raw": "raw", "clean": "clean"},
        transforms={
            "load": [ReadImaged(["raw", "clean"], spatial_dims)],
            "augment": [BlindSpotd("raw", "clean")] if augment is None else augment,
        },
        patch_shape=[8] * spatial_dims,
        patches_per_image=4,
        batch_size=4,
    )


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_training_patches_and_validation_images_hide_pixels_and_need_no_clean_image(spatial_dims):
    data = datamodule(spatial_dims)
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in loader:
            known = ~batch["clean"].isnan()
            assert 0 < known.sum() < 0.1 * known.numel()
            assert (batch["raw"][known] != batch["clean"][known]).all()
            assert "present" not in batch


def test_validation_hides_the_same_pixels_in_every_epoch_and_others_in_every_image():
    once, again = (list(datamodule(2).val_dataloader()) for _ in range(2))
    known = [~batch["clean"].isnan() for batch in once]
    assert all(torch.equal(one["raw"], other["raw"]) for one, other in zip(once, again, strict=True))
    assert not torch.equal(*known)


def test_test_images_are_whole_and_come_with_a_clean_image_where_there_is_one():
    first, second = datamodule(2).test_dataloader()
    assert torch.equal(first["raw"][0], numbered((16, 16)))
    assert (first["clean"] == 0).all()
    assert "clean" not in second and len(second["present"]["clean"]) == 0


def test_a_manifest_needs_no_column_for_a_target_that_training_makes():
    rows = {"train": [{"raw": numbered((16, 16)).numpy()[0]}]}
    datamodule(2, rows=rows).setup("fit")
    with pytest.raises(ManifestError, match="no column 'clean'"):
        datamodule(2, rows=rows, augment=[]).setup("fit")


def test_what_training_makes_is_read_off_the_transforms():
    blind = {"_target_": "cyto_dl.data.BlindSpotd", "keys": "raw", "target_key": "clean"}
    assert made_targets({"augment": [blind]}) == {"clean"}
    assert made_targets({"train": [blind], "valid": []}) == {"clean"}
    assert made_targets({"test": []}) == made_targets({"load": []}) == set()
