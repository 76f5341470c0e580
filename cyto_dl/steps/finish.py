"""How a pipeline's run ended:  state, message -> a page, and a tag of the run's trainings in MLflow

The trainings are found by the tag `pipeline_run`, which `cyto_dl.tracking` sets from CYTO_DL_PIPELINE_RUN.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cyto_dl.bundle.provenance import PIPELINE_RUN
from cyto_dl.errors import StorageError
from cyto_dl.steps.console import quiet_libraries

logger = logging.getLogger(__name__)

STATE_TAG = "pipeline_state"
FAILURE = "CYTO_DL_FAILURE"  # variable: what an orchestrator knows of a failure beyond what it tells this step
_ABOUT_MODELS = ("valid/", "test/", "comparison/")  # metrics; the others are of the machine and of single steps


@dataclass(frozen=True)
class Training:
    """A training of the run, as MLflow knows it.

    Args:
        name: Of its MLflow run.
        run_id: Likewise.
        address: Of its page; "" where MLflow is a file.
        metrics: The last value of each metric of the model, by name.
        tags: Of its MLflow run.
    """

    name: str
    run_id: str
    address: str
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


def finish_step(state: str, message: str, *, page_path: str) -> None:
    """Write the page, and tag the run's trainings; an MLflow that does not answer is said, and changes nothing else.

    Args:
        state: SUCCEEDED, FAILED or CANCELLED.
        message: Why it failed, "" where nobody said so; CYTO_DL_FAILURE is said instead, where it is set.
        page_path: Receives the page.
    """
    quiet_libraries()
    from cyto_dl.evaluation.page import write_page

    run, tracking_uri = os.environ.get(PIPELINE_RUN, ""), os.environ.get("MLFLOW_TRACKING_URI", "")
    trainings: list[Training] = []
    problem = ""
    if run and _may_hold_runs(tracking_uri):
        try:
            trainings = _tag_trainings(run, state, tracking_uri)
        except StorageError as error:
            problem = str(error)
            logger.warning("the trainings in MLflow do not say how the run ended: %s", error)
    failure = os.environ.get(FAILURE, "")
    outcome = {"state": state, "message": failure or message, "run": run, "on_this_machine": bool(failure)}
    write_page("outcome.html.j2", page_path, **outcome, trainings=trainings, problem=problem)
    logger.info("the run ended: %s", state)


def _may_hold_runs(tracking_uri: str) -> bool:
    """Whether there is an MLflow to ask: a file that no step has made would be made, with all its tables."""
    path = tracking_uri.removeprefix("sqlite:///")
    return bool(tracking_uri) and (path == tracking_uri or Path(path).is_file())


def _tag_trainings(run: str, state: str, tracking_uri: str) -> list[Training]:
    """Tag the trainings of a run with its state; returns them.

    Raises:
        StorageError: MLflow does not answer, for minutes.
    """
    from mlflow.tracking import MlflowClient

    from cyto_dl.tracking.server import call_patiently

    client = MlflowClient(tracking_uri)
    page = f"{tracking_uri.rstrip('/')}/#/experiments/{{}}/runs/{{}}" if tracking_uri.startswith("http") else ""
    found: list[Training] = []

    def tag() -> None:
        experiments = [each.experiment_id for each in client.search_experiments()]
        found.clear()
        for each in client.search_runs(experiments, f"tags.pipeline_run = '{run}'"):
            client.set_tag(each.info.run_id, STATE_TAG, state)
            metrics = {name: value for name, value in each.data.metrics.items() if name.startswith(_ABOUT_MODELS)}
            address = page.format(each.info.experiment_id, each.info.run_id)
            name = each.info.run_name or each.info.run_id
            found.append(Training(name, each.info.run_id, address, dict(sorted(metrics.items())), each.data.tags))

    call_patiently(tag, tracking_uri)
    return found
