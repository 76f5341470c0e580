"""MLflow: one run for one training, also when the training is killed and goes on.

MLFLOW_RUN_ID (injected by an orchestrator), else <run folder>/mlflow.json (a run that goes on), else a new run

A server that goes away in the middle ends nothing: what it misses is kept in <run folder>/mlflow_unsent.jsonl, and sent
when it is back.
"""

import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from cyto_dl.bundle.provenance import git_commit
from cyto_dl.mlflow_server import (
    PATIENCE_S,
    as_storage_error,
    call_patiently,
    check_server,
    make_experiment,
    outages_told_apart,
)
from cyto_dl.outbox import Message, Outbox
from cyto_dl.storage import atomic_path

logger = logging.getLogger(__name__)

_RUN_FILE = "mlflow.json"
_UNSENT_FILE = "mlflow_unsent.jsonl"
_METRIC_SIGNS = re.compile(r"[^\w/. -]", re.ASCII)  # what MLflow refuses in a metric's name


class MLflowLogger(MLFlowLogger):
    """Parameters, metrics, configuration, previews, checkpoints, package versions and git commit of a run.

    Args:
        output_dir: The run's folder: its config.yaml and checkpoints are uploaded, and mlflow.json in it remembers
            the MLflow run, so that a resumed training continues it.
        experiment_name: Experiment in MLflow; made if it does not exist.
        run_name: Name of a new run.
        tracking_uri: http(s)://..., or sqlite:///path/mlflow.db (artifacts then lie in mlartifacts beside the file).
        tags: Words to find the run by, or a mapping.
        patience_s: How long the end of a training waits for a server that went away.

    Raises:
        StorageError: The server does not answer at the start, after retries, or is not back at the end; or it refuses
            something, at any time.
    """

    def __init__(
        self,
        *,
        output_dir: str | Path,
        experiment_name: str,
        run_name: str | None = None,
        tracking_uri: str,
        tags: Sequence[str] | Mapping[str, str] = (),
        patience_s: float = PATIENCE_S,
    ) -> None:
        check_server(tracking_uri)
        self.output_dir = Path(output_dir)
        self.patience_s = patience_s
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
        server = f"MLflow at {self._tracking_uri}"
        self._outbox = Outbox(self.output_dir / _UNSENT_FILE, self._send, server=server)

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
        # MLflow counts the same number of the same time once, so that it may be sent twice
        now_ms = int(time.time() * 1000)
        numbers = {_METRIC_SIGNS.sub("", name): float(value) for name, value in metrics.items()}
        self._outbox.put({"metrics": numbers, "step": step or 0, "timestamp_ms": now_ms})

    @rank_zero_only
    def log_previews(self, paths: Sequence[Path], epoch: int) -> None:
        """Upload preview images of one epoch."""
        for path in paths:
            self._put_file(path, f"previews/epoch_{epoch:03d}")

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Checkpoints are uploaded once, when the training ends (`finalize`)."""

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Upload the best and the last checkpoint and end the run, unless an orchestrator owns it.

        Raises:
            StorageError: The training succeeded, and the server is not back in time.
        """
        for path in sorted((self.output_dir / "checkpoints").glob("*.ckpt")):
            self._put_file(path, "checkpoints")
        if not self.injected:
            self._outbox.put({"status": "FAILED" if status == "failed" else "FINISHED"})
        if status != "failed":  # a training that is being stopped has no time to wait, and an error of its own
            self._outbox.wait(self.patience_s)

    def _put_file(self, path: Path, folder: str) -> None:
        inside = path.relative_to(self.output_dir) if path.is_relative_to(self.output_dir) else path.resolve()
        self._outbox.put({"file": str(inside), "folder": folder})

    def _send(self, message: Message) -> None:
        """Send one message of the outbox: metrics of a step, a file, or the end of the run."""
        from mlflow.entities import Metric

        client, run_id = self._mlflow_client, str(self._run_id)
        with outages_told_apart(str(self._tracking_uri)):
            if "metrics" in message:
                when = message["timestamp_ms"], message["step"]
                client.log_batch(run_id, [Metric(name, value, *when) for name, value in message["metrics"].items()])
            elif "file" in message:
                client.log_artifact(run_id, str(self.output_dir / message["file"]), message["folder"])
            else:
                client.set_terminated(run_id, message["status"])


def log_evaluation(run_dir: str | Path, metrics: Mapping[str, float], files: Sequence[str | Path]) -> None:
    """Add metrics and files (a report, say) to the MLflow run of a training; nothing if it had none.

    Raises:
        StorageError: The server does not answer, for minutes.
    """
    known = _read_run_file(Path(run_dir))
    if known is None:
        return
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

    run_id, now_ms = known["run_id"], int(time.time() * 1000)
    client = MlflowClient(known["tracking_uri"])

    def send() -> None:
        client.log_batch(run_id, [Metric(name, value, now_ms, 0) for name, value in metrics.items()])
        for file in files:
            client.log_artifact(run_id, str(file), "evaluation")

    call_patiently(send, known["tracking_uri"])


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
