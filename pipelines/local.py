"""Run a pipeline on this machine, without a cluster and without containers: each step is a process of its own.

<workspace>/mlflow.db                      MLflow of all runs, unless MLFLOW_TRACKING_URI names a server
<workspace>/<pipeline>-<time>/run.log      everything that the steps printed
                             /summary.json metrics, and where the report, the bundle and the rest are
                             /<name>/<step>/<artifact>    written by KFP
<workspace>/latest                         link to the folder of the last run
"""

import builtins
import contextlib
import copy
import datetime
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import cyto_dl
from cyto_dl.bundle.provenance import PIPELINE_RUN
from cyto_dl.steps.finish import FAILURE
from cyto_dl.storage import atomic_path
from pipelines.story import StepFailure, Story
from pipelines.summary import Summary, summarize

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent
    from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec


def run_locally(pipeline: "BaseComponent", arguments: Mapping[str, Any], *, workspace: str | Path) -> Summary:
    """Run every step in turn and write the run's summary; a step that fails ends the run.

    Args:
        pipeline: From `pipelines.catalogue.load_pipeline`.
        arguments: From `pipelines.catalogue.parse_arguments`.
        workspace: Folder that receives a new folder for this run. Nothing in it is removed.
    """
    folder = _new_folder(Path(workspace).resolve(), pipeline.name)
    local_pipeline = _for_one_machine(pipeline)
    started = time.monotonic()
    with (folder / "run.log").open("w") as log:
        story = Story(terminal=sys.stdout, log=log, num_steps=_count_steps(pipeline.pipeline_spec), failed=_tell_steps)
        with contextlib.redirect_stdout(story), _environment(folder), _one_log(), _sigterm_for_steps() as received:
            try:
                _execute(local_pipeline, arguments, folder)
            except _BetweenSteps:
                pass
            except RuntimeError:
                if story.failure is None:  # not a step's failure but KFP's own
                    raise
    seconds = time.monotonic() - started
    summary = summarize(pipeline.pipeline_spec, folder, story, seconds=seconds, terminated=received.is_set())
    summary.write()
    _point_to(folder)
    return summary


def _execute(pipeline: "BaseComponent", arguments: Mapping[str, Any], folder: Path) -> None:
    from kfp import local

    with warnings.catch_warnings():
        # Steps run in this Python, not in their image, and a laptop has no limits to set: both are meant so.
        warnings.filterwarnings("ignore", message="You may be attemping to run a task that uses custom")
        warnings.filterwarnings("ignore", message="Task .* have no effect in the current local runner")
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder), raise_on_error=True)
        pipeline(**arguments)


class _BetweenSteps(BaseException):
    """SIGTERM, and no step runs that would end by it."""


@contextlib.contextmanager
def _sigterm_for_steps() -> Iterator[threading.Event]:
    """Hand a SIGTERM on to the steps that run, as Kubernetes does: a training saves what it has, and the run ends.

    Without it only this process would end, and the step go on without anybody. Yields whether one was received.
    """
    import psutil

    received = threading.Event()

    def hand_on(*_: object) -> None:
        received.set()
        steps = psutil.Process().children()
        for step in steps:
            with contextlib.suppress(psutil.NoSuchProcess):
                is_shell = not step.name().startswith("python")  # KFP starts a step's Python from one
                for process in (step.children() if is_shell else []) or [step]:
                    process.terminate()
        if not steps:
            raise _BetweenSteps

    if threading.current_thread() is not threading.main_thread():  # Python gives signals to no other
        yield received
        return
    before = signal.signal(signal.SIGTERM, hand_on)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell_steps(failure: StepFailure) -> None:
    """For the step at the end of a run, which KFP's local runner tells only that something failed."""
    os.environ.setdefault(FAILURE, f"The step {failure.step} failed: {failure.message}")


def _for_one_machine(pipeline: "BaseComponent") -> "BaseComponent":
    """A copy without second attempts, which meet the same wrong table, and whose steps know no image."""
    pipeline = copy.deepcopy(pipeline)
    for node in (pipeline.pipeline_spec.root, *pipeline.pipeline_spec.components.values()):
        for task in node.dag.tasks.values():
            task.ClearField("retry_policy")
    for executor in pipeline.pipeline_spec.deployment_spec["executors"].values():
        if "container" in executor and "env" in executor["container"]:  # an importer has no container
            environment = executor["container"]["env"]
            executor["container"]["env"] = [each for each in environment if each["name"] != "CYTO_DL_IMAGE"]
    return pipeline


def _count_steps(specification: "PipelineSpec") -> int | None:
    """How many steps run at most: conditions may leave some out, and of their branches one runs.

    None where a loop's number of rounds is not known before.
    """
    nodes = [specification.root, *specification.components.values()]
    if any(task.WhichOneof("iterator") for node in nodes for task in node.dag.tasks.values()):
        return None

    def count(name: str) -> int:
        component = specification.components[name]
        if not component.HasField("dag"):
            return int(name != "comp-importer")  # which runs nothing
        of_tasks = [count(task.component_ref.name) for task in component.dag.tasks.values()]
        return max(of_tasks) if name.startswith("comp-condition-branches-") else sum(of_tasks)

    return sum(count(task.component_ref.name) for task in specification.root.dag.tasks.values())


@contextlib.contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """What the steps inherit: where the library and MLflow are, the run's name, and that output comes line by line."""
    library = str(Path(cyto_dl.__file__).resolve().parents[1])
    paths = [library, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.environ["PYTHONUNBUFFERED"] = "1"
    os.environ[PIPELINE_RUN] = folder.name
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder.parent / 'mlflow.db'}")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _one_log() -> Iterator[None]:
    """One handler for the runner's log, and the same `print` afterwards as before.

    Each of its tasks replaces the root logger's handlers and `print`, and puts back what it found: of a loop's tasks,
    which run at once, one puts back the other's, and records are lost (kfp 2.17).
    """
    from kfp.local import logging_utils

    before = builtins.print
    try:
        with (
            logging_utils.local_logger_context(),
            mock.patch.object(logging_utils, "local_logger_context", contextlib.nullcontext),
        ):
            yield
    finally:
        builtins.print = before


def _new_folder(workspace: Path, name: str) -> Path:
    """A folder for one run: <name>-<time>, with a number when two start in one second."""
    stem = f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    for number in range(1, 1000):
        folder = workspace / (stem if number == 1 else f"{stem}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise FileExistsError(f"{workspace / stem}: a thousand runs started in this second")


def _point_to(folder: Path) -> None:
    with atomic_path(folder.parent / "latest") as temporary:
        temporary.symlink_to(folder.name, target_is_directory=True)
