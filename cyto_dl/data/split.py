"""Make train, valid and test splits where a manifest has none: whole groups, and if wanted, a share of every class."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cyto_dl.errors import ManifestError

MADE = ("train", "valid", "test")
MAX_CLASSES = 1000  # more are measurements, not classes; the table of groups and classes would fill the memory


def make_splits(
    groups: pd.Series, *, fractions: Sequence[float], seed: int, classes: pd.Series | None = None
) -> pd.Series:
    """A split for every row, the same one for rows of one group.

    It depends on the groups' names, the rows' classes and the seed, not on the order of the rows.

    Args:
        groups: The group of each row, as text.
        fractions: The shares of train, valid and test; each that is above 0 gets at least one group. Shares of the
            groups, or with `classes` of the rows of each class, as far as whole groups allow.
        seed: Other seeds make other splits.
        classes: The class of each row, as text; the rows of a group may be of several.

    Raises:
        ManifestError: There are fewer groups than splits, too many classes, or the fractions make no sense.
    """
    if len(fractions) != len(MADE) or min(fractions) < 0 or sum(fractions) <= 0:
        raise ManifestError(f"fractions are {tuple(fractions)}: give three shares, e.g. (0.7, 0.15, 0.15).")
    names = sorted(groups.unique())
    wanted = [split for split, fraction in zip(MADE, fractions, strict=True) if fraction > 0]
    if len(names) < len(wanted):
        raise ManifestError(f"{len(names)} images or groups cannot be split into {', '.join(wanted)}: each needs one.")
    if classes is not None and classes.nunique() > MAX_CLASSES:
        raise ManifestError(
            f"{classes.nunique()} classes are too many to give every split its share of each: at most {MAX_CLASSES}. "
            "Name a column of classes, such as treatments."
        )
    positive = np.array([fraction for fraction in fractions if fraction > 0])
    shuffled = np.random.default_rng(seed).permutation(len(names))
    if classes is None:
        chosen = _one_after_the_other(positive, shuffled)
    else:
        counts = pd.crosstab(groups, classes).loc[names].to_numpy()
        chosen = _where_most_is_lacking(counts, positive / positive.sum(), shuffled)
    split_of = {name: wanted[number] for name, number in zip(names, chosen, strict=True)}
    return groups.map(split_of)


def _one_after_the_other(fractions: np.ndarray, shuffled: np.ndarray) -> list[int]:
    """The number of each group's split: the first groups of the order are the first split's."""
    share = np.cumsum(fractions) / fractions.sum()
    ends = np.arange(1, len(share) + 1) + np.round(share * (len(shuffled) - len(share))).astype(int)
    chosen = np.empty(len(shuffled), dtype=int)
    chosen[shuffled] = np.searchsorted(ends, np.arange(len(shuffled)), side="right")
    return chosen.tolist()


def _where_most_is_lacking(counts: np.ndarray, shares: np.ndarray, shuffled: np.ndarray) -> list[int]:
    """The number of each group's split: large groups first, each to the split that lacks its classes and rows most.

    A group adds least to sum((rows - wanted rows)^2 / share), over the splits, of every class and of all classes
    together. Without the latter, classes of a few rows would all go to the largest split.

    Args:
        counts: How many rows of each class a group has, groups x classes.
        shares: Of the splits; their sum is 1.
        shuffled: The numbers of the groups in the order that decides among groups of one size.

    Source: greedy like scikit-learn's StratifiedGroupKFold, whose folds are of one size; for groups of one row and one
    class it is the apportionment of Webster and Sainte-Laguë.
    """
    rows = np.column_stack([counts, counts.sum(axis=1)])
    large_first = shuffled[np.argsort(-np.square(rows[shuffled]).sum(axis=1), kind="stable")]
    given = np.zeros((len(shares), rows.shape[1]), dtype=int)
    chosen = np.full(len(rows), -1)
    for num_done, group in enumerate(large_first):
        cost = (rows[group] * (2 * given + rows[group])).sum(axis=1) / shares  # what the sum grows by, up to a constant
        is_empty = given[:, -1] == 0
        if len(rows) - num_done <= is_empty.sum():
            cost[~is_empty] = np.inf
        chosen[group] = np.argmin(cost)
        given[chosen[group]] += rows[group]
    return chosen.tolist()
