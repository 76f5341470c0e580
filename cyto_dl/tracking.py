"""MLflow: one run for one training, also when the training is killed and goes on.

MLFLOW_RUN_ID (injected by an orchestrator), else <run folder>/mlflow.json (a run that goes on), else a new run
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from cyto_dl.bundle.provenance import git_commit
from cyto_dl.mlflow_server import as_storage_error, check_server, make_experiment
from cyto_dl.storage import atomic_path

logger = logging.getLogger(__name__)

_RUN_FILE = "mlflow.json"


class MLflowLogger(MLFlowLogger):
    """Parameters, metrics, configuration, previews, checkpoints, package versions and git commit of a run.

    Args:
        output_dir: The run's folder: its config.yaml and checkpoints are uploaded, and mlflow.json in it remembers
            the MLflow run, so that a resumed training continues it.
        experiment_name: Experiment in MLflow; made if it does not exist.
        run_name: Name of a new run.
        tracking_uri: http(s)://..., or sqlite:///path/mlflow.db (artifacts then lie in mlartifacts beside the file).
        tags: Words to find the run by, or a mapping.

    Raises:
        StorageError: The server does not answer, after retries; also later, from any method. A training that ends so
            goes on when it is started again.
    """

    def __init__(
        self,
        *,
        output_dir: str | Path,
        experiment_name: str,
        run_name: str | None = None,
        tracking_uri: str,
        tags: Sequence[str] | Mapping[str, str] = (),
    ) -> None:
        check_server(tracking_uri)
        self.output_dir = Path(output_dir)
        self.injected = "MLFLOW_RUN_ID" in os.environ
        super().__init__(
            experiment_name=experiment_name,
            run_name=run_name,
            tracking_uri=tracking_uri,
            tags={**_as_tags(tags), "git_commit": git_commit()},
            run_id=_known_run(self.output_dir, tracking_uri),
        )
        self._begin()

    @rank_zero_only
    def _begin(self) -> None:
        """Open the run now, so that a wrong server, run or permission is an error before the first step."""
        with as_storage_error(str(self._tracking_uri)):
            if self._run_id is None:
                make_experiment(self._mlflow_client, self._experiment_name, str(self._tracking_uri))
            client, run_id = self.experiment, self.run_id
            if not self.injected:
                client.update_run(run_id, status="RUNNING")
            client.log_text(run_id, _package_versions(), "requirements.txt")
        with atomic_path(self.output_dir / _RUN_FILE) as temporary:
            temporary.write_text(json.dumps({"tracking_uri": self._tracking_uri, "run_id": run_id}))
        logger.info("MLflow run %s at %s", run_id, self._tracking_uri)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log parameters that the run does not have yet: MLflow refuses to change one, as a resumed run might."""
        names = {name: name.replace("[", ".").replace("]", "") for name in params}
        config = self.output_dir / "config.yaml"
        with as_storage_error(str(self._tracking_uri)):
            logged = self.experiment.get_run(self.run_id).data.params
            super().log_hyperparams({names[name]: value for name, value in params.items() if names[name] not in logged})
            if config.is_file():
                self.experiment.log_artifact(self.run_id, str(config))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers of one step."""
        with as_storage_error(str(self._tracking_uri)):
            super().log_metrics(metrics, step)

    @rank_zero_only
    def log_previews(self, paths: Sequence[Path], epoch: int) -> None:
        """Upload preview images of one epoch."""
        with as_storage_error(str(self._tracking_uri)):
            for path in paths:
                self.experiment.log_artifact(self.run_id, str(path), f"previews/epoch_{epoch:03d}")

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Checkpoints are uploaded once, when the training ends (`finalize`)."""

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Upload the best and the last checkpoint and end the run, unless an orchestrator owns it."""
        with as_storage_error(str(self._tracking_uri)):
            for path in sorted((self.output_dir / "checkpoints").glob("*.ckpt")):
                self.experiment.log_artifact(self.run_id, str(path), "checkpoints")
            if not self.injected:
                super().finalize(status)


def log_evaluation(run_dir: str | Path, metrics: Mapping[str, float], files: Sequence[str | Path]) -> None:
    """Add metrics and files (a report, say) to the MLflow run of a training; nothing if it had none.

    Raises:
        StorageError: The server does not answer.
    """
    known = _read_run_file(Path(run_dir))
    if known is None:
        return
    from mlflow.tracking import MlflowClient

    with as_storage_error(known["tracking_uri"]):
        client = MlflowClient(known["tracking_uri"])
        for name, value in metrics.items():
            client.log_metric(known["run_id"], name, value)
        for file in files:
            client.log_artifact(known["run_id"], str(file), "evaluation")


def _known_run(output_dir: Path, tracking_uri: str) -> str | None:
    if injected := os.environ.get("MLFLOW_RUN_ID"):
        return injected
    known = _read_run_file(output_dir)
    return known["run_id"] if known is not None and known["tracking_uri"] == tracking_uri else None


def _read_run_file(run_dir: Path) -> dict[str, str] | None:
    path = run_dir / _RUN_FILE
    return json.loads(path.read_text()) if path.is_file() else None


def _as_tags(tags: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    return dict(tags) if isinstance(tags, Mapping) else {"tags": ", ".join(tags)}


def _package_versions() -> str:
    return "\n".join(sorted({f"{package.name}=={package.version}" for package in distributions()}, key=str.lower))
