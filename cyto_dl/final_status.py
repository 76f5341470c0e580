"""How a pipeline's run ended:  state, message --> a page, and a tag of the run's trainings in MLflow.

The trainings are found by the tag `pipeline_run`, which `cyto_dl.tracking` sets from CYTO_DL_PIPELINE_RUN.
"""

import html
import logging
import os
from pathlib import Path

from cyto_dl.bundle.provenance import PIPELINE_RUN
from cyto_dl.errors import StorageError
from cyto_dl.steps import quiet_libraries
from cyto_dl.storage import atomic_path

logger = logging.getLogger(__name__)

STATE_TAG = "pipeline_state"


def finish_step(state: str, message: str, *, page_path: str) -> None:
    """Write the page, and tag the run's trainings; an MLflow that does not answer is said, and changes nothing else.

    Args:
        state: SUCCEEDED, FAILED or CANCELLED.
        message: Why it failed, "" where nobody said so.
        page_path: Receives the page.
    """
    quiet_libraries()
    run, tracking_uri = os.environ.get(PIPELINE_RUN, ""), os.environ.get("MLFLOW_TRACKING_URI", "")
    trainings: list[str] = []
    problem = ""
    if run and _may_hold_runs(tracking_uri):
        try:
            trainings = _tag_trainings(run, state, tracking_uri)
        except StorageError as error:
            problem = str(error)
            logger.warning("the trainings in MLflow do not say how the run ended: %s", error)
    rows = {"State": state, "Message": message, "Run": run, "MLflow": tracking_uri, "Not tagged": problem}
    rows["Trainings in MLflow"] = ", ".join(trainings)
    rows["Where to look"] = (
        "The report of the step Evaluate, and the bundle of Export."
        if state == "SUCCEEDED"
        else "The log of the step that failed: its last lines say what is wrong and what to do. Started again with the "
        "same arguments, steps that are done are taken from Kubeflow's cache."
    )
    with atomic_path(page_path) as temporary:
        temporary.write_text(_page(state, {name: value for name, value in rows.items() if value}))
    logger.info("the run ended: %s", state)


def _may_hold_runs(tracking_uri: str) -> bool:
    """Whether there is an MLflow to ask: a file that no step has made would be made, with all its tables."""
    path = tracking_uri.removeprefix("sqlite:///")
    return bool(tracking_uri) and (path == tracking_uri or Path(path).is_file())


def _tag_trainings(run: str, state: str, tracking_uri: str) -> list[str]:
    """Tag the trainings of a run with its state; returns their ids."""
    from mlflow.tracking import MlflowClient

    from cyto_dl.mlflow_server import call_patiently

    client = MlflowClient(tracking_uri)
    found: list[str] = []

    def tag() -> None:
        experiments = [each.experiment_id for each in client.search_experiments()]
        runs = client.search_runs(experiments, f"tags.pipeline_run = '{run}'")
        found[:] = [each.info.run_id for each in runs]
        for run_id in found:
            client.set_tag(run_id, STATE_TAG, state)

    call_patiently(tag, tracking_uri)
    return found


def _page(state: str, rows: dict[str, str]) -> str:
    cells = "\n".join(
        f'<tr><th style="text-align:left;vertical-align:top">{html.escape(name)}</th>'
        f'<td style="white-space:pre-wrap">{html.escape(value)}</td></tr>'
        for name, value in rows.items()
    )
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Run {html.escape(state.lower())}</title>\n'
        f'<body style="font-family:sans-serif"><h1>Run {html.escape(state.lower())}</h1>\n'
        f"<table cellpadding='6'>\n{cells}\n</table></body></html>\n"
    )
