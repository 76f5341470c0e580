"""The last step, also of a run that failed: what became of the run is written where people look."""

from kfp.dsl import HTML, Output, PipelineTaskFinalStatus

from components.image import component


@component
def finish(status: PipelineTaskFinalStatus, outcome: Output[HTML]) -> None:
    """Write how the run ended on a page, and as a tag of its trainings in MLflow where MLFLOW_TRACKING_URI is set.

    Args:
        status: Of the steps before, from Kubeflow.

    Returns:
        outcome: Page with the final state, what failed, the run's id, its trainings in MLflow, and where to look.
    """
    from cyto_dl.steps import finish_step

    finish_step(status.state, status.error_message or "", page_path=outcome.path)
