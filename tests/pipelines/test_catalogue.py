import pytest

from cyto_dl.errors import ConfigError
from pipelines.catalogue import PIPELINES, describe, load_pipeline, parse_arguments


def test_arguments_have_the_types_that_the_pipeline_declares():
    words = ["manifest=a=b.csv", 'target_cols=["nuclei", "membrane"]', "spatial_dims=3", "fractions=[0.8, 0.1, 0.1]"]
    assert parse_arguments(load_pipeline("training"), words) == {
        "manifest": "a=b.csv",
        "target_cols": ["nuclei", "membrane"],
        "spatial_dims": 3,
        "fractions": [0.8, 0.1, 0.1],
    }


def test_every_wrong_argument_is_named_at_once_with_the_valid_ones():
    words = ["spatial_dims=2.5", "target_cols=nuclei", "epochs=3", "trainer", "seed=1", "seed=2", "minimal_gain=nan"]
    words.append("fractions=[0.8, Infinity, 0.1]")
    with pytest.raises(ConfigError) as error:
        parse_arguments(load_pipeline("training"), words)
    for part in (
        "'spatial_dims': '2.5' is not an integer",
        "'target_cols': 'nuclei' is not a list as JSON",
        "'epochs': no such argument",
        "'trainer': write name=value",
        "'seed': given twice",
        "'minimal_gain': 'nan' is not a number",
        "'fractions': '[0.8, Infinity, 0.1]' is not a list as JSON",
        "'manifest': required",
        "evaluation_split (text)",
    ):
        assert part in str(error.value)


def test_an_argument_that_does_nothing_without_another_one_is_refused():
    words = ["manifest=m.csv", "deploy_target=imaging/nuclei"]
    with pytest.raises(ConfigError, match="'deploy_target': does nothing without 'model_name'"):
        parse_arguments(load_pipeline("training"), words)
    assert parse_arguments(load_pipeline("training"), [*words, "model_name=nuclei"])["model_name"] == "nuclei"


def test_an_unknown_pipeline_is_refused_with_the_names_of_the_others():
    with pytest.raises(ConfigError, match=r"no pipeline 'nope'\. Pipelines: training"):
        load_pipeline("nope")


@pytest.mark.parametrize("name", PIPELINES)
def test_the_description_names_every_argument(name):
    pipeline = load_pipeline(name)
    text = describe(pipeline)
    assert "manifest  (text, required)" in text
    assert all(f"  {argument}  (" in text for argument in pipeline.component_spec.inputs)


def test_the_description_says_type_default_and_meaning_of_an_argument():
    text = describe(load_pipeline("training"))
    assert "spatial_dims  (an integer, default 2)\n      2 for planes, 3 for volumes." in text
