"""The model card: what a bundle takes and gives, how good it is, where it comes from, for people."""

from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyto_dl.bundle.format import CARD, PREVIEW, read_document
from cyto_dl.config import flatten
from cyto_dl.errors import BundleError
from cyto_dl.storage import atomic_path, localize

if TYPE_CHECKING:
    from cyto_dl.bundle.sample import Sample


def card_text(bundle_path: str | PathLike[str]) -> str:
    """The card of a bundle, in Markdown, from its bundle.yaml alone: nothing of the model is built or run.

    Raises:
        BundleError: There is no bundle, or its document is damaged.
    """
    document = read_document(localize(bundle_path))
    try:
        return "\n".join(_lines(document))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{bundle_path}: bundle.yaml is damaged ({type(error).__name__}: {error}).") from error


def write_card(folder: Path, document: Mapping[str, Any], sample: "Sample") -> None:
    """Write README.md and preview.png into a bundle."""
    _write_preview(folder / PREVIEW, document, sample)
    title, *rest = _lines(document)
    caption = f"![The sample's input, and what the model makes of it]({PREVIEW})"
    text = "\n".join([title, "", caption, *rest, *_usage(document)])
    with atomic_path(folder / CARD) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _write_preview(path: Path, document: Mapping[str, Any], sample: "Sample") -> None:
    from cyto_dl.inference.picture import coloured_labels, grey, plane, strip

    pictures = [(f"{document['input']['name']} (input)", grey(plane(sample.image.array)))]
    for head, array in sample.images.items():
        shown = plane(array)
        if document["outputs"][head]["values"] == "labels":
            picture = coloured_labels(shown)
        else:
            picture = grey(shown, (0, 255) if shown.dtype == "uint8" else None)
        pictures.append((head, picture))
    with atomic_path(path) as temporary:
        strip(pictures).save(temporary)


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    heads = ", ".join(f"{head} ({output['kind']})" for head, output in document["outputs"].items())
    yield f"# {document['name']}"
    yield ""
    yield f"Predicts {heads} from {_input_text(document['input'])}."
    yield from _outputs(document)
    yield from _metrics(document.get("metrics") or {})
    yield from _section("Processing", _processing(document))
    yield from _section("Training data", _data(document.get("fingerprint") or {}))
    yield from _section("Provenance", _provenance(document.get("provenance") or {}))
    yield from _section("Own code that must be installed and allowed", _foreign(document.get("foreign_targets") or []))


def _input_text(described: Mapping[str, Any]) -> str:
    channels = described["channels"]
    text = f"`{described['name']}`: {' '.join(described['axes'])} with {channels} channel{'s' if channels != 1 else ''}"
    if described.get("spacing_um"):
        text += f", pixels of {' x '.join(f'{each:g}' for each in described['spacing_um'])} µm"
    return f"{text}, any size, intensities as acquired"


def _outputs(document: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Outputs", "", "| head | kind | axes | type | values |", "|---|---|---|---|---|")
    for head, output in document["outputs"].items():
        function = _short(document["postprocess"][head])
        axes = f"{' '.join(output.get('axes', ''))}, {output.get('channels', '?')} channel(s)"
        values = f"{output['values']}, from `{function}`"
        yield f"| {head} | {output['kind']} | {axes} | {output.get('dtype', '?')} | {values} |"


def _metrics(metrics: Mapping[str, float]) -> Iterator[str]:
    if metrics:
        over = "Means over images; those that end in `_pooled` over all images together."
        yield from ("", "## Metrics", "", over, "", "| metric | value |", "|---|---:|")
        yield from (f"| {name} | {value:.4f} |" for name, value in metrics.items())


def _section(title: str, lines: Iterator[str]) -> Iterator[str]:
    items = [f"- {line}" for line in lines]
    if items:
        yield from ("", f"## {title}", "", *items)


def _processing(document: Mapping[str, Any]) -> Iterator[str]:
    steps = ", ".join(_short(node) for node in document["preprocess"]) or "nothing"
    yield f"preprocessing: {steps}"
    yield f"backbone: {_short(document['model']['backbone'])}"
    if members := document.get("ensemble"):
        yield f"ensemble: mean of the logits of {len(members)} trainings"
    window = document["inference"]
    if window.get("augment"):
        yield f"test-time augmentation: {window['augment']}"
    if window.get("roi_size"):
        sides = " x ".join(map(str, window["roi_size"]))
        yield f"sliding window: {sides} pixels, overlap {window.get('overlap', 0.25):g}"
    onnx = (document.get("engines") or {}).get("onnx") or {}
    if "file" in onnx:
        yield f"ONNX: {onnx['file']}, logits differ from torch by at most {onnx['max_difference']:.1e}"
    elif "error" in onnx:
        yield f"ONNX: none ({onnx['error']})"
    for engine, found in ((document.get("engines") or {}).get("measured") or {}).items():
        if "refused" in found:
            yield f"engine {engine}: refused, {found['refused']}"
        elif engine != "torch":
            yield f"engine {engine}: {found['speed']:g} times torch's speed, {found['changed_labels']:.3%} other labels"


def _data(fingerprint: Mapping[str, Any]) -> Iterator[str]:
    for key, value in fingerprint.items():
        if isinstance(value, (int, str)):
            yield f"{key.replace('_', ' ')}: {value}"


def _provenance(origin: Mapping[str, Any]) -> Iterator[str]:
    for number, member in enumerate(origin.get("members") or [], start=1):
        yield f"member {number}: {', '.join(f'{name} {each}' for name, each in flatten(member).items())}"
    for key, value in origin.items():
        if key == "members":
            continue
        shown = ", ".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, Mapping) else value
        if shown is not None:
            yield f"{key.replace('_', ' ')}: {shown}"


def _foreign(targets: list[Mapping[str, Any]]) -> Iterator[str]:
    for each in targets:
        yield f"`{each['target']}` of the package {each['package'] or '(not installed where it was exported)'}"


def _usage(document: Mapping[str, Any]) -> Iterator[str]:
    allow = "".join(f" --allow-target {each['target']}" for each in document.get("foreign_targets") or [])
    yield from ("", "## Use", "", "```bash")
    yield f"cyto-dl predict . image.tif --output predictions{allow}"
    yield f"python -m serving --bundle .{allow}"
    yield from ("```", "", "```python", "from cyto_dl.bundle import load_bundle", "")
    yield 'predictor = load_bundle(".")'
    yield f"prediction = predictor.predict(image)  # {{head: array}}, image: {' '.join(document['input']['axes'])}"
    yield "```"


def _short(node: Mapping[str, Any]) -> str:
    return str(node.get("_target_", "?")).rpartition(".")[2]
