"""How targets of another size go with their source."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cyto_dl.data.scale import common_steps, scale_of, source_voxel, target_box, target_spacing

HALF, THIRD = Fraction(1, 2), Fraction(1, 3)


@pytest.mark.parametrize(
    ("shape", "target_shape", "scale"),
    [
        ((32, 32), (32, 32), (1, 1)),
        ((32, 32), (64, 32), (2, 1)),
        ((8, 32, 32), (8, 16, 96), (1, HALF, 3)),
        ((8, 32, 32), (16, 32), (HALF, 1)),  # a projection
        ((8, 32, 32), (1, 32, 32), (Fraction(1, 8), 1, 1)),  # a projection that kept its axis
        ((32, 32), (33, 32), None),
        ((32, 32), (48, 32), None),  # 3/2
        ((32, 32), (8, 32, 32), None),
    ],
)
def test_a_scale_is_a_whole_number_or_one_over_it_along_every_axis(shape, target_shape, scale):
    assert scale_of(shape, target_shape) == scale


def test_the_grids_of_coarser_targets_meet_at_their_common_multiples():
    assert common_steps(3, [(1, HALF, HALF), (HALF, THIRD), (2, 2, 2)]) == (1, 2, 6)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), ratio=st.sampled_from([Fraction(1, 4), THIRD, HALF, Fraction(1), Fraction(2), Fraction(5)]))
def test_a_voxel_of_a_target_lies_in_the_box_around_its_source_voxel(data, ratio):
    step = ratio.denominator
    voxel = data.draw(st.integers(0, 50))
    (found,) = source_voxel([voxel], (ratio,))
    start = found // step * step
    (box,) = target_box([slice(start, start + step)], (ratio,))
    assert box.start <= voxel < box.stop
    assert (box.stop - box.start) == ratio * step


def test_the_pixel_size_of_a_target_goes_down_as_its_voxels_go_up():
    assert target_spacing((1.0, 0.5, 0.2), (Fraction(2), HALF)) == (0.25, 0.4)
    assert target_spacing(None, (Fraction(2), HALF)) is None
    assert target_spacing((1.0, 0.5), None) is None
