"""Best and last checkpoint on S3 while a training goes on, without ever making it wait.

    checkpoints/{best,last}.ckpt --changed?--> hard links --thread--> <address>/best-step...ckpt, then best.json,
                                                                      <address>/last-step...ckpt, then last.json
    training goes on --------------------------------------------------------------------------> end: wait

The name of the run in MLflow goes there first, so that a run that begins on another machine continues it.
The thread always takes the newest files: what was replaced before its turn is not uploaded. The last checkpoint knows
how good the best one is, so it is linked first and published second: the best one on S3 is never older than it says.
"""

import logging
import os
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint

from cyto_dl.bundle.provenance import RUN_FILE
from cyto_dl.errors import ConfigError, StorageError
from cyto_dl.storage import RefusedError, is_remote, patience_s, publish, upload

logger = logging.getLogger(__name__)

_NAMES = ("best", "last")  # in the order of their publication
_LOOK_EVERY_S = 0.5
_LONGEST_PAUSE_S = 30.0


class RemoteCheckpoints(Checkpoint):
    """Publishes checkpoints/{last,best}.ckpt of a run in an s3:// folder, for a run that begins on another machine.

    A `Checkpoint`, because Lightning calls these after all other callbacks: what they write at the end, or when the
    process is asked to end (SIGTERM), is uploaded too. While S3 does not answer, the training goes on and the upload
    is tried again.
    """

    def __init__(self, address: str, local_dir: str | Path) -> None:
        """Make the callback.

        Args:
            address: The run's own folder, s3://bucket/.../checkpoints.
            local_dir: Where the checkpoints best.ckpt and last.ckpt are written.

        Raises:
            ConfigError: `address` is no s3:// address.
        """
        if not is_remote(address):
            raise ConfigError(f"callbacks.remote.address is '{address}'. Give an address like s3://bucket/runs/mine.")
        self.address = address.rstrip("/")
        self.local_dir = Path(local_dir)
        self._upload: _Upload | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Begin to watch the files; of several processes, only the first does."""
        if stage == "fit" and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._upload = _Upload(self.address, self.local_dir)
            self._upload.start()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Upload what there is before the process ends; the exception stays the reason of its end."""
        try:
            self._finish()
        except StorageError as error:
            logger.error("%s", error)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Wait for the last upload.

        Raises:
            StorageError: S3 did not come back.
        """
        self._finish()

    def _finish(self) -> None:
        if self._upload is not None:
            upload, self._upload = self._upload, None
            upload.finish()


class _Upload(threading.Thread):
    """Watches the checkpoints of a run and publishes them one after the other."""

    def __init__(self, address: str, local_dir: Path) -> None:
        super().__init__(name="upload of checkpoints", daemon=True)  # a crash of the training must end the process
        self.address, self.local_dir = address, local_dir
        self._done: dict[str, tuple[int, int]] = {}
        self._ending = threading.Event()
        self._deadline = float("inf")
        self._error: Exception | None = None
        self._complete = False

    def run(self) -> None:
        """Publish what changes, until there is nothing more to publish at the end or time is up."""
        pause_s = _LOOK_EVERY_S
        while True:
            ending = self._ending.is_set()  # before looking: what is written until then is seen
            try:
                self._publish_what_is_new()
                self._error, pause_s = None, _LOOK_EVERY_S
                if ending:
                    self._complete = True
                    return
            except (StorageError, OSError) as error:
                logger.warning("checkpoints are not on S3 yet, the training goes on: %s", error)
                self._error, pause_s = error, min(2 * pause_s, _LONGEST_PAUSE_S)
                if ending and (isinstance(error, RefusedError) or time.monotonic() >= self._deadline):
                    return
            if ending:
                time.sleep(min(pause_s, 1.0))
            else:
                self._ending.wait(pause_s)

    def finish(self) -> None:
        """Wait until the newest checkpoints are published.

        Raises:
            StorageError: They could not be.
        """
        self._deadline = time.monotonic() + patience_s()
        self._ending.set()
        self.join()
        if not self._complete:
            reason = self._error or "the thread that does so died, see the traceback above."
            raise StorageError(
                f"The checkpoints in {self.local_dir} could not be uploaded to {self.address}: {reason} "
                "The local files are complete: the same command, started again here, uploads them."
            ) from self._error

    def _publish_what_is_new(self) -> None:
        run_file = self.local_dir.parent / RUN_FILE
        if run_file.is_file() and RUN_FILE not in self._done:
            upload(run_file, f"{self.address}/{RUN_FILE}")
            self._done[RUN_FILE] = _version(run_file)
        if not any(self._is_new(name) for name in _NAMES):
            return
        with tempfile.TemporaryDirectory(prefix=".upload.", dir=self.local_dir) as folder:
            links = {}
            for name in reversed(_NAMES):
                if self._is_new(name):
                    links[name] = Path(folder) / f"{name}.ckpt"
                    os.link(self._path(name), links[name])  # keeps the content when the training replaces the file
            for name in _NAMES:
                if link := links.get(name):
                    publish(link, self.address, name, step=_step(link))
                    self._done[name] = _version(link)

    def _is_new(self, name: str) -> bool:
        return self._path(name).is_file() and _version(self._path(name)) != self._done.get(name)

    def _path(self, name: str) -> Path:
        return self.local_dir / f"{name}.ckpt"


def _version(path: Path) -> tuple[int, int]:
    """What changes when another checkpoint takes a file's place."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns


def _step(path: Path) -> int:
    """The training step of a checkpoint; its tensors are not read."""
    checkpoint: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return int(checkpoint["global_step"])
