"""The models of a group in MLflow's registry:  bundle -> logged model -> version, tags, aliases

challenger   the newest version of a model
champion     the version in use, with which a new one is compared
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from cyto_dl.bundle.format import DOCUMENT, SAMPLE, read_document, verify_files
from cyto_dl.errors import BundleError
from cyto_dl.storage import localize, sha256
from cyto_dl.tracking.server import as_storage_error, check_server, make_experiment, used_by_the_process

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

CHAMPION = "champion"
CHALLENGER = "challenger"

_REMEDY = "and that the server runs; a step that is started again registers nothing twice"
_BUNDLE_TAG = "bundle_sha256"
_VERSIONS_TAG = "mlflow.modelVersions"  # by which MLflow's page links a logged model to its versions
_EXAMPLE_SIDE_PX = 32  # of the input example along each axis: MLflow keeps it as JSON


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    model_name: str
    number: str

    @property
    def uri(self) -> str:
        """What MLflow's loaders take: models:/<name>/<version>."""
        return f"models:/{self.model_name}/{self.number}"


def find_champion(model_name: str, *, tracking_uri: str) -> Version | None:
    """The version in use; None if there is no such model yet, or none of its versions was promoted.

    Raises:
        StorageError: MLflow cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    with as_storage_error(tracking_uri, _REMEDY):
        try:
            model = check_server(tracking_uri).get_registered_model(model_name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
    number = model.aliases.get(CHAMPION)
    return None if number is None else Version(model_name, str(number))


def download_bundle(version: Version, folder: str | PathLike[str], *, tracking_uri: str) -> Path:
    """Bring the bundle of a version into `folder`; returns the bundle's own folder.

    Raises:
        StorageError: MLflow cannot be reached, or the version's files are gone.
        BundleError: The version was not registered by CytoDL.
    """
    from mlflow.artifacts import download_artifacts

    with as_storage_error(tracking_uri, _REMEDY), used_by_the_process(tracking_uri):  # where MLflow looks for a version
        artifacts = download_artifacts(f"{version.uri}/artifacts", dst_path=str(folder), tracking_uri=tracking_uri)
    found = sorted(Path(artifacts).glob(f"*/{DOCUMENT}"))
    if not found:
        raise BundleError(
            f"{version.uri} holds no bundle. Choose a model_name that only CytoDL registers models under."
        )
    return found[0].parent


def register_bundle(bundle: str | PathLike[str], model_name: str, *, tracking_uri: str) -> Version:
    """Make a bundle the newest version of a model, with the alias `challenger`; the same bundle only once.

    The version's tags say where it comes from: git commit, manifest, bundle and metrics. It belongs to the MLflow run
    of its training where MLflow knows that run, else to an experiment that is called as the model.

    Args:
        bundle: Local or s3://. Its files are verified.
        model_name: In the registry, without / and :.
        tracking_uri: http(s)://... or sqlite:///...

    Raises:
        BundleError: The bundle is damaged.
        StorageError: MLflow cannot be reached, or refuses the name.
    """
    folder = localize(bundle)
    document = read_document(folder)
    verify_files(folder, document)
    tags = _tags(document, folder)
    client = check_server(tracking_uri)
    with as_storage_error(tracking_uri, _REMEDY):
        number = _known_version(client, model_name, tags[_BUNDLE_TAG])
        if number is None:
            model_id = _log_model(client, folder, document, model_name, tags, tracking_uri=tracking_uri)
            with used_by_the_process(tracking_uri):  # an sqlite store looks there for the logged model
                number = _make_version(client, model_id, model_name, tags)
        client.set_registered_model_alias(model_name, CHALLENGER, number)
    version = Version(model_name, number)
    logger.info("registered %s as %s", version.uri, CHALLENGER)
    return version


def promote(version: Version, *, tracking_uri: str) -> None:
    """Make a version the champion; the former one stays in the registry without this alias.

    Raises:
        StorageError: MLflow cannot be reached.
    """
    client = check_server(tracking_uri)
    with as_storage_error(tracking_uri, _REMEDY):
        client.set_registered_model_alias(version.model_name, CHAMPION, version.number)
    logger.info("%s is %s now", version.uri, CHAMPION)


def _known_version(client: "MlflowClient", model_name: str, digest: str) -> str | None:
    """The version that holds this very bundle, if a step that was started again has made it before."""
    wanted = f"name = '{model_name}' and tags.`{_BUNDLE_TAG}` = '{digest}'"
    return next((str(each.version) for each in client.search_model_versions(wanted)), None)


def _make_version(client: "MlflowClient", model_id: str, model_name: str, tags: Mapping[str, str]) -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"models:/{model_id}"
    number = str(client.create_model_version(model_name, source, tags=dict(tags), model_id=model_id).version)
    link = json.dumps([{"name": model_name, "version": number}])
    client.set_logged_model_tags(model_id, {_VERSIONS_TAG: link})
    return number


def _log_model(
    client: "MlflowClient",
    folder: Path,
    document: Mapping[str, Any],
    model_name: str,
    tags: Mapping[str, str],
    *,
    tracking_uri: str,
) -> str:
    """Upload a bundle as a model that `mlflow.pyfunc.load_model` takes; returns the model's identifier.

    `mlflow.pyfunc.log_model` does the same, but at the address that the whole process uses, which belongs to the
    caller; and with a trial prediction, which loads torch and the network in a step that is given little memory (the
    export replayed the sample).
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    run_id, experiment_id = _origin(client, document, model_name, tracking_uri)
    logged = client.create_logged_model(experiment_id, name=model_name, source_run_id=run_id, tags=dict(tags))
    identifier, place = logged.model_id, logged.artifact_location
    if run_id:
        client.log_outputs(run_id, [LoggedModelOutput(identifier, step=0)])
    with TemporaryDirectory(prefix="cyto-dl-model-") as parent:
        save_model(
            Path(parent, "model"),
            mlflow_model=Model(artifact_path=place, model_uuid=identifier, model_id=identifier, run_id=run_id),
            python_model=str(Path(__file__).with_name("pyfunc.py")),  # as code: a pickle could do anything
            artifacts={"bundle": str(folder)},
            signature=_signature(document),
            input_example=_example(folder),
            pip_requirements=[f"{name}=={number}" for name, number in _packages(document).items()],
        )
        client.log_model_artifacts(identifier, str(Path(parent, "model")))
    client.finalize_logged_model(identifier, "READY")
    return identifier


def _origin(
    client: "MlflowClient", document: Mapping[str, Any], model_name: str, tracking_uri: str
) -> tuple[str | None, str]:
    """The run that trained a bundle, and its experiment; no run where this MLflow does not know it."""
    from mlflow.exceptions import MlflowException

    if run_id := document.get("provenance", {}).get("mlflow_run"):
        try:
            return run_id, client.get_run(run_id).info.experiment_id
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    return None, make_experiment(client, model_name, tracking_uri)


def _tags(document: Mapping[str, Any], folder: Path) -> dict[str, str]:
    origin = document.get("provenance", {})
    known = {
        "git_commit": origin.get("training_commit") or origin.get("export_commit"),
        "manifest_sha256": origin.get("manifest_sha256"),
        "mlflow_run": origin.get("mlflow_run"),
    }
    return {
        _BUNDLE_TAG: sha256(folder / DOCUMENT),  # which holds the sha256 of every other file
        **{name: str(value) for name, value in known.items() if value},
        **{name: f"{value:.6g}" for name, value in document.get("metrics", {}).items()},
    }


def _signature(document: Mapping[str, Any]) -> "ModelSignature":
    """One image C (Z) Y X in, one per head out; the lengths of the spatial axes are free."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    source, spatial_dims = document["input"], len(document["input"]["axes"]) - 1
    free = (-1,) * spatial_dims
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(source["dtype"]), (source["channels"], *free))]),
        outputs=Schema(
            [
                TensorSpec(np.dtype(output["dtype"]), (output["channels"], *free), name=head)
                for head, output in document["outputs"].items()
            ]
        ),
    )


def _example(folder: Path) -> np.ndarray:
    """A piece of the bundle's sample."""
    from cyto_dl.bundle.sample import read_sample

    image = read_sample(folder / SAMPLE).image.array
    piece = image[(slice(None), *(slice(_EXAMPLE_SIDE_PX) for _ in image.shape[1:]))]
    return np.ascontiguousarray(piece, dtype=np.float32)


def _packages(document: Mapping[str, Any]) -> dict[str, str]:
    packages: dict[str, str] = document.get("provenance", {}).get("packages", {})
    return packages
