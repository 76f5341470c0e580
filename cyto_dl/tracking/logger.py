"""MLflow: one run for one training, also when the training is killed and goes on.

MLFLOW_RUN_ID (injected by an orchestrator), else <run folder>/mlflow.json (a run that goes on), else a new run

A server that goes away in the middle ends nothing: what it misses is kept in <run folder>/mlflow_unsent.jsonl, and sent
when it is back. Checkpoints are uploaded from a thread while the training goes on.
"""

import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from cyto_dl.bundle.provenance import PIPELINE_RUN, RUN_FILE, git_commit, image_name
from cyto_dl.newest_files import NewestFiles
from cyto_dl.storage import atomic_path
from cyto_dl.tracking.dataset import DATA_FOLDER, data_tags, dataset_input, fingerprint_file
from cyto_dl.tracking.outbox import Message, Outbox
from cyto_dl.tracking.server import (
    PATIENCE_S,
    as_storage_error,
    call_patiently,
    check_server,
    make_experiment,
    outages_told_apart,
    used_by_the_process,
)

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

    from cyto_dl.tracking.system_metrics import SystemMetrics

logger = logging.getLogger(__name__)

_UNSENT_FILE = "mlflow_unsent.jsonl"
_METRIC_SIGNS = re.compile(r"[^\w/. -]", re.ASCII)  # what MLflow refuses in a metric's name


class MLflowLogger(MLFlowLogger):
    """Parameters, metrics, how busy the machine is, data, configuration, previews, checkpoints and origin of a run.

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
            tags={**_as_tags(tags), **_origin()},
            run_id=_known_run(self.output_dir, tracking_uri),
        )
        self._system_metrics: SystemMetrics | None = None
        self._begin()

    @rank_zero_only
    def _begin(self) -> None:
        """Open the run now, so that a wrong server, run or permission is an error before the first step."""
        uri = str(self._tracking_uri)
        with as_storage_error(uri), used_by_the_process(uri):  # Lightning's logger would leave its address behind
            if self._run_id is None:
                make_experiment(self._mlflow_client, self._experiment_name, uri)
            client, run_id = self.experiment, self.run_id
            if not self.injected:
                client.update_run(run_id, status="RUNNING")
            for name, value in _origin().items():  # also of a run that is not ours, or goes on with other code
                client.set_tag(run_id, name, value)
            client.log_text(run_id, _package_versions(), "requirements.txt")
        with atomic_path(self.output_dir / RUN_FILE) as temporary:
            temporary.write_text(json.dumps({"tracking_uri": self._tracking_uri, "run_id": run_id}))
        logger.info("MLflow run %s at %s", run_id, self._tracking_uri)
        server = f"MLflow at {self._tracking_uri}"
        self._outbox = Outbox(self.output_dir / _UNSENT_FILE, self._send, server=server)
        self._checkpoints = NewestFiles(lambda path: self._upload(path, "checkpoints"), server=server)

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
            self._log_data(params.get("data.path"))

    def _log_data(self, manifest: Any) -> None:
        """Say what the run is trained on: images in memory have no address and no digest, and are left out."""
        if (dataset := dataset_input(manifest)) is None:
            return
        self._log_input(dataset)
        for name, value in data_tags(manifest).items():
            self.experiment.set_tag(self.run_id, name, value)
        if (measured := fingerprint_file(manifest)) is not None:
            self.experiment.log_artifact(self.run_id, str(measured), DATA_FOLDER)

    def _log_input(self, dataset: "DatasetInput") -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.experiment.log_inputs(self.run_id, [dataset])
        except MlflowException as error:
            if "unique constraint" not in str(error).lower():
                raise
            # Another training has made the same data set's row between MLflow's look and its insertion: now it is found
            self.experiment.log_inputs(self.run_id, [dataset])

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers of one step. With the first, measuring the machine begins."""
        if self._system_metrics is None:
            from cyto_dl.tracking.system_metrics import SystemMetrics

            with as_storage_error(str(self._tracking_uri)):
                self._system_metrics = SystemMetrics(
                    self._put_metrics, run_id=str(self.run_id), tracking_uri=str(self._tracking_uri)
                )
            self._system_metrics.start()
        self._put_metrics(metrics, step or 0)

    def _put_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        # MLflow counts the same number of the same time once, so that it may be sent twice
        now_ms = int(time.time() * 1000)
        numbers = {_METRIC_SIGNS.sub("", name): float(value) for name, value in metrics.items()}
        self._outbox.put({"metrics": numbers, "step": step, "timestamp_ms": now_ms})

    @rank_zero_only
    def log_previews(self, paths: Sequence[Path], epoch: int) -> None:
        """Upload preview images of one epoch."""
        for path in paths:
            self._put_file(path, f"previews/epoch_{epoch:03d}")

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Upload the best and the last checkpoint where they have changed, without making the training wait."""
        for name in ("best", "last"):
            self._checkpoints.put(self.output_dir / "checkpoints" / f"{name}.ckpt")

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Upload the checkpoints that are not there yet and end the run, unless an orchestrator owns it.

        Raises:
            StorageError: The training succeeded, and the server is not back in time.
        """
        if self._system_metrics is not None:
            self._system_metrics.finish()
            self._system_metrics = None
        self._checkpoints.finish()
        for path in sorted((self.output_dir / "checkpoints").glob("*.ckpt")):
            if not self._checkpoints.is_sent(path):
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

        if "file" in message:
            self._upload(self.output_dir / message["file"], message["folder"])
            return
        client, run_id = self._mlflow_client, str(self._run_id)
        with outages_told_apart(str(self._tracking_uri)):
            if "metrics" in message:
                when = message["timestamp_ms"], message["step"]
                client.log_batch(run_id, [Metric(name, value, *when) for name, value in message["metrics"].items()])
            else:
                client.set_terminated(run_id, message["status"])

    def _upload(self, path: Path, folder: str) -> None:
        with outages_told_apart(str(self._tracking_uri)):
            self._mlflow_client.log_artifact(str(self._run_id), str(path), folder)


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
    path = run_dir / RUN_FILE
    return json.loads(path.read_text()) if path.is_file() else None


def _as_tags(tags: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    return dict(tags) if isinstance(tags, Mapping) else {"tags": ", ".join(tags)}


def _origin() -> dict[str, str]:
    """What the run is made with, as tags."""
    known = {"git_commit": git_commit(), "image": image_name(), "pipeline_run": os.environ.get(PIPELINE_RUN)}
    return {name: value for name, value in known.items() if value}


def _package_versions() -> str:
    return "\n".join(sorted({f"{package.name}=={package.version}" for package in distributions()}, key=str.lower))
