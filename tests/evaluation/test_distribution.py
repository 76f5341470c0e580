"""Every metric of several images has its chart, and data its rows, whatever is missing."""

import numpy as np
import pandas as pd

from cyto_dl.evaluation.distribution import Distribution, data_rows, distribution_charts


def test_each_metric_of_several_images_has_a_chart():
    values = pd.Series([0.5, 0.7, np.nan, np.inf, 0.9])
    metrics = [
        Distribution("dice", values, 0.7, (0.5, 0.9)),
        Distribution("single", values[:1], 0.5, None),
        Distribution("nothing", values[2:3], np.nan, None),
    ]
    (chart,) = distribution_charts("seg", metrics)
    assert chart.title == "dice"
    assert "seg: how dice is spread over 3 images, 0.5 to 0.9" in chart.drawing


def test_a_head_of_many_classes_has_twelve_charts():
    metrics = [Distribution(f"dice_{index}", pd.Series([0.1, 0.2]), 0.15, None) for index in range(60)]
    assert len(distribution_charts("seg", metrics)) == 12


def test_data_is_said_in_words_and_what_is_unknown_is_a_dash():
    known = {
        "num_images": 44,
        "dtypes": {"uint8": 40, "uint16": 4},
        "num_channels": [1, 3],
        "size": {"min": [10, 256, 256], "median": [12.0, 256.0, 256.0], "max": [20, 512, 512]},
        "spacing_um": None,
        "intensity": {"mean": 12.345678, "std": 2.0, "p0.1": 0, "p1": 1, "p5": 2, "p50": 10, "p95": 50, "p99": 99},
    }
    same = {"num_images": 3, "size": {key: [256, 256] for key in ("min", "median", "max")}, "spacing_um": None}
    rows = {
        title: [cell.replace("\u00a0", " ") for cell in cells] for title, cells in data_rows({"a": known, "b": same})
    }
    assert rows["images"] == ["44", "3"]
    assert rows["type"] == ["uint8, uint16", "–"]
    assert rows["channels"] == ["1, 3", "–"]
    assert rows["size, (Z) Y X in pixels"] == ["12 × 256 × 256 (10 × 256 × 256 to 20 × 512 × 512)", "256 × 256"]
    assert rows["intensity: mean ± standard deviation"] == ["12.35 ± 2", "–"]
    assert rows["percentiles 0.1, 1, 5"] == ["0, 1, 2", "–"]
    assert "pixel size, (Z) Y X in µm" not in rows  # nobody knows
    assert "percentiles 95, 99, 99.9" not in rows  # an older fingerprint lacks one
