"""Make train, valid and test splits where a manifest has none."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cyto_dl.errors import ManifestError

MADE = ("train", "valid", "test")


def make_splits(groups: pd.Series, *, fractions: Sequence[float], seed: int) -> pd.Series:
    """A split for every row, the same one for rows of one group.

    It depends on the groups' names and the seed, not on the order of the rows.

    Args:
        groups: The group of each row, as text.
        fractions: The shares of train, valid and test among the groups. Each that is above 0 gets at least one group.
        seed: Other seeds make other splits.

    Raises:
        ManifestError: There are fewer groups than splits, or the fractions make no sense.
    """
    if len(fractions) != len(MADE) or min(fractions) < 0 or sum(fractions) <= 0:
        raise ManifestError(f"fractions are {tuple(fractions)}: give three shares, e.g. (0.7, 0.15, 0.15).")
    names = sorted(groups.unique())
    wanted = [split for split, fraction in zip(MADE, fractions, strict=True) if fraction > 0]
    if len(names) < len(wanted):
        raise ManifestError(f"{len(names)} images or groups cannot be split into {', '.join(wanted)}: each needs one.")
    share = np.cumsum([fraction for fraction in fractions if fraction > 0]) / sum(fractions)
    ends = np.arange(1, len(wanted) + 1) + np.round(share * (len(names) - len(wanted))).astype(int)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    split_of = {
        names[place]: wanted[int(np.searchsorted(ends, order, side="right"))] for order, place in enumerate(shuffled)
    }
    return groups.map(split_of)
