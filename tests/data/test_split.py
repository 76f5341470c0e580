"""Splits that are made: whole groups, reproducible, none empty."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyto_dl.data.split import make_splits
from cyto_dl.errors import ManifestError

GROUPS = st.lists(st.sampled_from("abcdefghijkl"), min_size=1, max_size=60).filter(lambda names: len(set(names)) >= 3)


@given(names=GROUPS, seed=st.integers(0, 2**32))
def test_every_split_has_rows_and_no_group_is_in_two(names, seed):
    groups = pd.Series(names)
    splits = make_splits(groups, fractions=(0.7, 0.15, 0.15), seed=seed)
    assert set(splits) == {"train", "valid", "test"}
    assert (splits.groupby(groups).nunique() == 1).all()


@given(names=GROUPS, seed=st.integers(0, 2**32))
def test_the_order_of_the_rows_does_not_matter(names, seed):
    groups = pd.Series(names)
    forward = make_splits(groups, fractions=(0.5, 0.25, 0.25), seed=seed)
    backward = make_splits(groups[::-1], fractions=(0.5, 0.25, 0.25), seed=seed)
    assert forward.to_dict() == backward.to_dict()


def test_the_fractions_are_met_and_another_seed_gives_other_splits():
    groups = pd.Series([f"image_{number:03d}" for number in range(200)])
    splits = make_splits(groups, fractions=(0.7, 0.2, 0.1), seed=0)
    counts = splits.value_counts()
    assert abs(counts["train"] - 140) <= 2  # one each is given before the rest is shared
    assert abs(counts["valid"] - 40) <= 2
    assert list(splits) != list(make_splits(groups, fractions=(0.7, 0.2, 0.1), seed=1))


def test_a_fraction_of_nothing_makes_no_split():
    assert set(make_splits(pd.Series(list("abcd")), fractions=(0.5, 0.5, 0), seed=0)) == {"train", "valid"}


@pytest.mark.parametrize(
    ("names", "fractions", "message"),
    [
        ("ab", (0.7, 0.15, 0.15), "2 images or groups cannot be split into train, valid, test"),
        ("abc", (0.7, 0.3), r"\(0.7, 0.3\): give three shares"),
        ("abc", (0.7, -0.1, 0.4), "give three shares"),
        ("abc", (0, 0, 0), "give three shares"),
    ],
)
def test_what_cannot_be_split_is_said(names, fractions, message):
    with pytest.raises(ManifestError, match=message):
        make_splits(pd.Series(list(names)), fractions=fractions, seed=0)
