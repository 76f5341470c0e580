import io

import pytest

from pipelines.story import Story


@pytest.fixture
def tell():
    """Feeds lines to a story of one step and returns it with what the terminal shows."""

    def run(*lines: str, status: str = "SUCCESS") -> tuple[Story, str]:
        story = Story(terminal=io.StringIO(), log=io.StringIO(), num_steps=1)
        story.write("12:00:00.000 - INFO - Executing task \x1b[96m'train'\x1b[0m\n")
        for line in lines:
            story.write(f"    {line}\n")
        story.write(f"12:00:01.000 - INFO - Task \x1b[96m'train'\x1b[0m finished with status \x1b[92m{status}\x1b[0m\n")
        return story, story.terminal.getvalue()

    return run


def test_a_line_that_arrives_in_pieces_is_told_once(tell):
    story = Story(terminal=io.StringIO(), log=io.StringIO(), num_steps=1)
    for piece in ("12:00:00.000 - INFO - Exec", "uting task 'train'\n", "    ", "epoch 1", "\n"):
        story.write(piece)
    assert story.terminal.getvalue() == "[1 of 1] train\n    epoch 1\n"


def test_the_inputs_that_kfp_dumps_are_not_told(tell):
    _, told = tell("[KFP Executor now INFO]: Got executor_input:", "{", '    "a": {', "    }", "}", "epoch 1")
    assert told.splitlines()[1:-1] == ["    epoch 1"]


def test_a_traceback_that_does_not_end_the_step_is_told(tell):
    story, told = tell("Traceback (most recent call last):", "ValueError: retried", "[KFP Executor now INFO]: again")
    assert story.failure is None
    assert told.splitlines()[1:-1] == [
        "    Traceback (most recent call last):",
        "    ValueError: retried",
        "    again",
    ]


def test_of_chained_exceptions_the_last_one_is_the_failure(tell):
    story, _ = tell(
        "Traceback (most recent call last):",
        "KeyError: 'raw'",
        "The above exception was the direct cause of the following exception:",
        "Traceback (most recent call last):",
        "cyto_dl.errors.ConfigError: data.columns: no column 'raw'",
        status="FAILURE",
    )
    assert story.failure is not None
    assert (story.failure.error, story.failure.message) == (
        "cyto_dl.errors.ConfigError",
        "data.columns: no column 'raw'",
    )


def test_an_exception_without_a_message_is_named(tell):
    story, _ = tell("Traceback (most recent call last):", "AssertionError", status="FAILURE")
    assert story.failure is not None
    assert (story.failure.step, story.failure.error, story.failure.message) == ("train", "AssertionError", "")


def test_steps_that_run_at_once_are_counted_and_their_inputs_not_told():
    """The runner prints the lines of a loop's steps as they come, deeper indented than others."""
    story = Story(terminal=io.StringIO(), log=io.StringIO(), num_steps=None)
    inputs = ["[KFP Executor now INFO]: Got executor_input:", "{", '    "a": {', "    }", "}"]
    story.write("12:00:00.000 - INFO - Executing task 'predict'\n    12:00:00.000 - INFO - Executing task 'predict'\n")
    for line in (*inputs, *inputs, "[KFP Executor now INFO]: loaded"):
        story.write(f"            {line}\n")
    story.write("            read 3 images12:00:00.000 - INFO - Streamed logs:\n")
    for _ in range(2):
        story.write("12:00:01.000 - INFO - Task 'predict' finished with status SUCCESS\n        " + "-" * 80 + "\n")
        story.write(
            "            table: Dataset( name='table',\n                uri='/a',\n                metadata={} )\n"
        )
    assert [line for line in story.terminal.getvalue().splitlines() if "done" not in line] == [
        "[1] predict",
        "[2] predict",
        "    loaded",
        "    read 3 images",
    ]
    assert list(story.seconds) == ["predict", "predict-2"]


def test_the_error_of_a_step_is_found_among_the_lines_of_another():
    story = Story(terminal=io.StringIO(), log=io.StringIO(), num_steps=None)
    story.write("12:00:00.000 - INFO - Executing task 'train'\n12:00:00.000 - INFO - Executing task 'train'\n")
    for line in (
        "Traceback (most recent call last):",
        "[KFP Executor now INFO]: epoch 2",
        "cyto_dl.errors.TrainingError: the loss is not finite",
    ):
        story.write(f"    {line}\n")
    story.write("12:00:01.000 - INFO - Task 'train' finished with status FAILURE\n")
    assert story.failure is not None
    assert (story.failure.error, story.failure.message) == (
        "cyto_dl.errors.TrainingError",
        "the loss is not finite",
    )
