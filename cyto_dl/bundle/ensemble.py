"""Several trainings of one experiment as one model:  runs, checkpoints, bundles -> one document, all weights"""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import torch

from cyto_dl.bundle.build import build_predictor
from cyto_dl.bundle.checkpoint import predictor_from_checkpoint
from cyto_dl.bundle.format import is_bundle, read_document, verify_files
from cyto_dl.bundle.weights import member_files, member_prefix, read_weights
from cyto_dl.config import flatten
from cyto_dl.errors import BundleError, list_problems
from cyto_dl.inference.predictor import Predictor
from cyto_dl.model.network import Ensemble, TaskNetwork
from cyto_dl.storage import localize

# What members must have in common: they share the image that they see, the windows and how their mean is read.
_COMMON = ("input", "preprocess", "model", "postprocess", "inference", "outputs")


def predictor_of_ensemble(
    sources: Sequence[str | PathLike[str]], *, allow: Iterable[str] = ()
) -> tuple[Predictor, dict[str, Any], dict[str, Any]]:
    """The Predictor that averages the logits of several models, its document, and the experiment of the first run.

    Args:
        sources: Checkpoints, folders of runs, or bundles; of a bundle that is an ensemble, all members.
        allow: Dotted names of code beyond the list that the models may use.

    Returns:
        The experiment is empty if all sources are bundles, which hold none.

    Raises:
        BundleError: The models differ in more than their weights, all differences at once; or one cannot be read.
    """
    allow = tuple(allow)
    members: list[Mapping[str, torch.Tensor]] = []
    documents: list[dict[str, Any]] = []
    experiment: dict[str, Any] = {}
    for source in sources:
        weights, document, config = _read(source, allow)
        members += weights
        documents.append(document)
        experiment = experiment or config
    _check_alike(sources, documents)
    merged = {key: value for key, value in documents[0].items() if key in (*_COMMON, "format_version", "name")}
    merged["ensemble"] = member_files(len(members))
    merged["provenance"] = _origin([document.get("provenance") or {} for document in documents])
    state = {f"{member_prefix(n)}{name}": value for n, each in enumerate(members) for name, value in each.items()}
    return build_predictor(merged, state, allow=allow), merged, experiment


def _read(
    source: str | PathLike[str], allow: tuple[str, ...]
) -> tuple[list[Mapping[str, torch.Tensor]], dict[str, Any], dict[str, Any]]:
    """The weights of the networks of a source, its document, and its experiment if it has one."""
    path = localize(source)
    if not is_bundle(path):
        predictor, document, config = predictor_from_checkpoint(source, allow=allow)
        assert isinstance(predictor.network, TaskNetwork)
        return [predictor.network.state_dict()], document, config
    document = read_document(path)
    verify_files(path, document)
    predictor = build_predictor(document, read_weights(path, document), allow=allow)
    network = predictor.network
    assert isinstance(network, TaskNetwork | Ensemble)
    networks = list(network.members) if isinstance(network, Ensemble) else [network]
    return [each.state_dict() for each in networks], document, {}


def _check_alike(sources: Sequence[str | PathLike[str]], documents: Sequence[Mapping[str, Any]]) -> None:
    first = _common(documents[0])
    problems = []
    for source, document in zip(sources[1:], documents[1:], strict=True):
        other = _common(document)
        for key in sorted({*first, *other}):
            if first.get(key) != other.get(key):
                problems.append(f"{key}: {first.get(key)!r} in {sources[0]}, {other.get(key)!r} in {source}")
    if problems:
        raise BundleError(
            f"these models make no ensemble, they differ in more than their weights:\n{list_problems(problems)}\n"
            "Join trainings of one experiment with other seeds (seed=1, seed=2, ...) or other training images."
        )


def _common(document: Mapping[str, Any]) -> dict[str, Any]:
    """What members must share, as flat keys; without what an export adds to a run's document."""
    found = {key: document[key] for key in _COMMON}
    found["input"] = {key: value for key, value in document["input"].items() if key != "spacing_um"}
    found["outputs"] = {
        head: {key: output[key] for key in ("kind", "activation", "values")}
        for head, output in document["outputs"].items()
    }
    found["preprocess"] = {str(number): node for number, node in enumerate(document["preprocess"])}
    return flatten(found)


def _origin(origins: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where members come from: once what all have in common, and the rest of each under `members`."""
    common = {key: value for key, value in origins[0].items() if all(each.get(key) == value for each in origins)}
    rest = [{key: value for key, value in each.items() if key not in common} for each in origins]
    return {**common, "members": rest}
