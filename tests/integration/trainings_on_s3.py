"""Tiny trainings whose checkpoints are in a bucket, for the tests of what may go wrong with them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Callback

from cyto_dl.bundle.checkpoint import read_checkpoint
from cyto_dl.config import compose_experiment
from cyto_dl.train import train
from tests.test_train import overrides_for

# Two steps an epoch, six in all. Dropout, so that a resumed run with other random states has other weights.
EXTRA = ["trainer.max_epochs=3", "test=false", "~callbacks.previews", "+model.backbone.dropout=0.2"]
FOLDER = "mine/checkpoints"


def remote(bucket: Any) -> list[str]:
    """The overrides that publish a run's checkpoints in a bucket."""
    return ["callbacks=s3", f"callbacks.remote.address=s3://{bucket.name}/{FOLDER}"]


def fit(folder: Path, output_dir: Path, *extra: str, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Train on the images in `folder`; returns the final weights."""
    config = compose_experiment([*overrides_for(folder), *EXTRA, *extra], output_dir=output_dir)
    train(config, callbacks=callbacks)
    return read_checkpoint(output_dir / "checkpoints" / "last.ckpt")["state_dict"]


def pointer(bucket: Any, name: str = "last") -> dict[str, Any]:
    """What a pointer in the bucket says."""
    return json.loads(bucket.Object(f"{FOLDER}/{name}.json").get()["Body"].read())


def published_step(bucket: Any) -> int:
    """The step of the last checkpoint in the bucket, 0 if there is none yet."""
    return pointer(bucket)["step"] if f"{FOLDER}/last.json" in {each.key for each in bucket.objects.all()} else 0


def keys(bucket: Any) -> list[str]:
    """The names of a run's objects."""
    return sorted(each.key.removeprefix(f"{FOLDER}/") for each in bucket.objects.all())
