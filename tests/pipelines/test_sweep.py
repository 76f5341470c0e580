"""The compiled pipeline `sweep`: what holds for it beside what holds for every pipeline (test_packages)."""

from typing import Any

import pytest
import yaml

from pipelines.compiler import compile_pipeline
from pipelines.sweep import MAX_AT_ONCE
from tests.pipelines.graph import steps


@pytest.fixture(scope="module")
def specification(tmp_path_factory) -> dict[str, Any]:
    package = compile_pipeline("sweep", tmp_path_factory.mktemp("compiled") / "sweep.yaml")
    return next(yaml.safe_load_all(package.read_text()))


def test_variants_are_trained_and_measured_at_once_up_to_a_limit(specification):
    loop = specification["root"]["dag"]["tasks"]["for-loop-1"]
    assert loop["iteratorPolicy"]["parallelismLimit"] == MAX_AT_ONCE
    assert loop["parameterIterator"]["items"] == {"inputParameter": "pipelinechannel--variants"}
    inside = specification["components"]["comp-for-loop-1"]["dag"]["tasks"]
    assert set(inside) == {"train", "evaluate"}


def test_the_variants_are_chosen_by_other_images_than_the_report_is_about(specification):
    tasks = steps(specification)
    splits = [tasks[name]["inputs"]["parameters"]["split"] for name in ("evaluate", "evaluate-2")]
    assert splits == [{"runtimeValue": {"constant": "valid"}}, {"componentInputParameter": "evaluation_split"}]
    chosen = {"outputArtifactKey": "model", "producerTask": "choose-best"}
    for name in ("evaluate-2", "export"):
        assert tasks[name]["inputs"]["artifacts"]["model"]["taskOutputArtifact"] == chosen


def test_manifest_and_variants_are_required(specification):
    parameters = specification["root"]["inputDefinitions"]["parameters"]
    required = [name for name, parameter in parameters.items() if not parameter.get("isOptional")]
    assert sorted(required) == ["manifest", "variants"]
