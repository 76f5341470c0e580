"""The choice between the variants of a sweep."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cyto_dl.errors import ConfigError
from cyto_dl.steps import choose_step

VARIANTS = [["model.optimizer.generator.lr=0.1"], ["trainer.max_epochs=2", "seed=3"], []]


def choose(folder: Path, values: list[dict[str, float]], **settings: Any) -> dict[str, float]:
    """What is chosen of runs with these metrics; the results lie in `folder`."""
    models, metrics = [], []
    for number, found in enumerate(values):
        model = folder / f"model_{number}"
        (model / "checkpoints").mkdir(parents=True)
        (model / "checkpoints/best.ckpt").write_text(f"weights {number}")
        (folder / f"metrics_{number}.json").write_text(json.dumps(found))
        models.append(str(model))
        metrics.append(str(folder / f"metrics_{number}.json"))
    written = {"model_dir": folder / "best", "table_path": folder / "table.csv", "metrics_path": folder / "chosen.json"}
    return choose_step(
        models,
        metrics,
        VARIANTS[: len(values)],
        **({"metric": "", "mode": "max"} | settings),
        **{name: str(path) for name, path in written.items()},
    )


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, 1),
        ({"metric": "valid/seg/dice"}, 1),
        ({"metric": "valid/seg/loss", "mode": "min"}, 2),
        ({"metric": "valid/seg/loss", "mode": "max"}, 0),
    ],
)
def test_the_best_run_is_copied_and_all_are_in_the_table(tmp_path, settings, wanted):
    dices, losses = [0.5, 0.75, 0.25], [0.9, 0.5, 0.1]
    values = [{"valid/seg/dice": d, "valid/seg/loss": one} for d, one in zip(dices, losses, strict=True)]
    found = choose(tmp_path, values, **settings)
    metric = settings.get("metric", "valid/seg/dice")
    assert found == {"variant": wanted, metric: values[wanted][metric]}
    assert json.loads((tmp_path / "chosen.json").read_text()) == found
    assert (tmp_path / "best/checkpoints/best.ckpt").read_text() == f"weights {wanted}"
    table = pd.read_csv(tmp_path / "table.csv")
    assert [json.loads(text) for text in table["overrides"]] == VARIANTS
    assert list(table["chosen"]) == [number == wanted for number in range(3)]
    assert list(table["valid/seg/dice"]) == dices


def test_a_variant_without_a_value_is_not_chosen_and_of_equal_ones_the_first_is(tmp_path):
    values = [{"valid/seg/dice": float("nan")}, {"valid/seg/dice": 0.5}, {"valid/seg/dice": 0.5}]
    assert choose(tmp_path, values)["variant"] == 1


@pytest.mark.parametrize(
    ("values", "settings", "words"),
    [
        ([{"valid/seg/dice": 0.5}], {"metric": "valid/seg/dise"}, ["valid/seg/dise", "valid/seg/dice"]),
        ([{"valid/seg/dice": 0.5}], {"mode": "best"}, ["'best'", "max", "min"]),
        ([{"valid/seg/dice": float("nan")}], {}, ["no variant has a value"]),
        ([{}], {}, ["no image has a target"]),
    ],
)
def test_a_choice_that_cannot_be_made_is_an_error_that_says_what_there_is(tmp_path, values, settings, words):
    with pytest.raises(ConfigError) as caught:
        choose(tmp_path, values, **settings)
    assert all(word in str(caught.value) for word in words)
    assert not (tmp_path / "best").exists()
