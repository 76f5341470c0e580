"""What a local run left behind, read from the executor_output.json of each step."""

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cyto_dl.errors
from cyto_dl.storage import atomic_path
from pipelines.story import StepFailure, Story

if TYPE_CHECKING:
    from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec


@dataclass(frozen=True)
class Summary:
    """A run's outcome.

    Attributes:
        pipeline: Its name.
        folder: Of the run; receives summary.json.
        seconds: That the run took.
        steps: Seconds of each step.
        places: Where each artifact is, by its name: dataset, model, report, bundle.
        metrics: All scalars that the steps logged, by name.
        failure: The step that failed, if one did.
        terminated: Whether SIGTERM ended the run.
    """

    pipeline: str
    folder: Path
    seconds: float
    steps: dict[str, float]
    places: dict[str, str]
    metrics: dict[str, float]
    failure: StepFailure | None
    terminated: bool = False

    @property
    def has_failed(self) -> bool:
        """Whether the run did not come to its end."""
        return self.failure is not None or self.terminated

    @property
    def exit_code(self) -> int:
        """0, or the code of the error that a step ended with, or 1 where CytoDL has none for it; 143 after SIGTERM."""
        if self.terminated:
            return 128 + signal.SIGTERM  # as a shell reports it
        if self.failure is None:
            return 0
        module, _, name = self.failure.error.rpartition(".")
        error = getattr(cyto_dl.errors, name, None) if module == cyto_dl.errors.__name__ else None
        return getattr(error, "exit_code", 1)

    @property
    def mlflow(self) -> dict[str, str] | None:
        """The MLflow run (tracking_uri, run_id) that a training left word of in its folder."""
        for place in self.places.values():
            known = Path(place) / "mlflow.json"
            if known.is_file():
                run: dict[str, str] = json.loads(known.read_text())
                return run
        return None

    def as_dict(self) -> dict[str, Any]:
        """The content of summary.json: places stand at the top level, by name."""
        values: dict[str, Any] = {
            "pipeline": self.pipeline,
            "status": "failed" if self.has_failed else "succeeded",
            "seconds": round(self.seconds, 1),
            "steps": {step: round(took, 1) for step, took in self.steps.items()},
            **self.places,
            "metrics": self.metrics,
            "mlflow": self.mlflow,
        }
        if self.failure:
            values |= {"failed_step": self.failure.step, "error": self.failure.message}
        return values

    def write(self) -> None:
        """Write summary.json into the run's folder."""
        with atomic_path(self.folder / "summary.json") as temporary:
            temporary.write_text(json.dumps(self.as_dict(), indent=2) + "\n")

    def __str__(self) -> str:
        """The summary as lines for a terminal."""
        places = dict(self.places)
        if self.mlflow:
            places["mlflow"] = f"{self.mlflow['tracking_uri']} (run {self.mlflow['run_id']})"
        places |= {"log": str(self.folder / "run.log"), "summary": str(self.folder / "summary.json")}
        width = max(len(name) for name in [*places, *self.metrics])
        return "\n".join(
            [
                f"{self.pipeline}: {'failed' if self.has_failed else 'succeeded'} after {self.seconds:.1f} s",
                *(f"  {name:{width}}  {value:.4f}" for name, value in self.metrics.items()),
                *(f"  {name:{width}}  {place}" for name, place in places.items()),
            ]
        )


def summarize(
    pipeline_spec: "PipelineSpec", folder: Path, story: Story, *, seconds: float, terminated: bool
) -> Summary:
    """The outcome of the run in `folder`; of steps inside of conditions too, not of those that ran once an item.

    A page (KFP's HTML artifact) is copied to <folder>/<name>.html, because KFP's own file has no suffix.
    """
    places: dict[str, str] = {}
    metrics: dict[str, float] = {}
    for component_name, component in pipeline_spec.components.items():
        definitions = component.output_definitions.artifacts
        for name, artifact in _artifacts(folder, component_name.removeprefix("comp-")).items():
            kind = definitions[name].artifact_type.schema_title
            if kind == "system.Metrics":
                metrics |= artifact["metadata"]
            elif kind == "system.HTML":
                places[name] = str(shutil.copyfile(artifact["uri"], folder / f"{name}.html"))
            else:
                places[name] = artifact["uri"]
    return Summary(
        pipeline=pipeline_spec.pipeline_info.name,
        folder=folder,
        seconds=seconds,
        steps=story.seconds,
        places=dict(sorted(places.items())),
        metrics=dict(sorted(metrics.items())),
        failure=story.failure,
        terminated=terminated,
    )


def _artifacts(folder: Path, step: str) -> dict[str, dict[str, Any]]:
    """A finished step's output artifacts by name; none if it did not finish."""
    for output in folder.glob(f"*/{step}/executor_output.json"):
        artifacts = json.loads(output.read_text()).get("artifacts", {})
        return {name: listed["artifacts"][0] for name, listed in artifacts.items()}
    return {}
