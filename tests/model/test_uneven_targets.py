"""A target that some images lack trains, validates and chooses the checkpoint all the same."""

import numpy as np
import pandas as pd

from tests.test_train import run


def test_the_first_validation_images_may_lack_the_target_whose_metric_chooses_the_checkpoint(manifest_folder, tmp_path):
    folder = manifest_folder(valid=3)  # the sanity check sees two of them
    table = pd.read_csv(folder / "manifest.csv")
    is_valid = table["split"] == "valid"
    lack_map2 = is_valid & (is_valid.cumsum() < 3)
    table = table.assign(dapi=table["seg"], map2=table["seg"].mask(lack_map2), nfh=table["seg"].mask(is_valid))
    table.drop(columns="seg").to_csv(folder / "manifest.csv", index=False)
    columns = [f"data.columns.{stain}={stain}" for stain in ("dapi", "map2", "nfh")]

    chosen = ["optimized_metric=valid/map2/pearson", "optimized_mode=max", "logger=csv", "test=false"]
    metrics = run(folder, tmp_path / "run", *columns, *chosen, experiment="im2im/labelfree_stains")

    assert np.isfinite(metrics["valid/map2/pearson"])
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()
    logged = pd.read_csv(tmp_path / "run" / "csv" / "version_0" / "metrics.csv", keep_default_na=False)
    assert {"train/nfh/loss", "valid/dapi/loss", "valid/map2/loss"} < set(logged)
    assert not any(name.startswith("valid/nfh/") for name in logged)  # no validation image has it
    assert not logged.astype(str).isin(["nan"]).any(axis=None)
