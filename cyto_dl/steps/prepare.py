"""Check, split and measure the images that a training may use."""

from collections.abc import Sequence
from typing import Any

from cyto_dl.errors import ConfigError

MANIFEST = "manifest.csv"
FINGERPRINT = "fingerprint.json"


def prepare_step(
    manifest: str,
    dataset_dir: str,
    *,
    source_col: str,
    target_cols: Sequence[str],
    spatial_dims: int,
    num_channels: int = 0,
    source_channel: Sequence[int] = (),
    target_channel: Sequence[int] = (),
    split_column: str = "split",
    group_column: str = "",
    stratify_column: str = "",
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    evaluation_split: str = "",
) -> dict[str, Any]:
    """Check, split and measure a manifest of images; see `cyto_dl.data.prepare.prepare_data`.

    An orchestrator's parameters have no null: 0 channels means any number, an empty selection means all channels, an
    empty group or stratify column or evaluation split means none, and no target columns mean that the training makes
    its own targets.

    Returns:
        The data's fingerprint, as written to fingerprint.json.
    """
    from cyto_dl.data.prepare import prepare_data

    train, valid, test = _three_fractions(fractions)
    return prepare_data(
        manifest,
        dataset_dir,
        source_col=source_col,
        target_cols=list(target_cols),
        spatial_dims=int(spatial_dims),
        num_channels=int(num_channels) or None,
        source_channel=whole_numbers(source_channel) or None,
        target_channel=whole_numbers(target_channel) or None,
        split_column=split_column,
        group_column=group_column or None,
        stratify_column=stratify_column or None,
        fractions=(train, valid, test),
        seed=int(seed),
        evaluation_split=evaluation_split or None,
    )


def _three_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    if len(fractions) != 3:
        raise ConfigError(
            f"fractions has {len(fractions)} values: give the shares of train, valid and test, e.g. [0.7, 0.15, 0.15]."
        )
    train, valid, test = (float(fraction) for fraction in fractions)
    return train, valid, test


def whole_numbers(channels: Sequence[float]) -> list[int]:
    """The channels as whole numbers: an orchestrator's lists may hold 1.0 for 1."""
    return [int(channel) for channel in channels]
