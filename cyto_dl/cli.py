"""The `cyto-dl` command:  cyto-dl train | eval | predict | export | inspect | doctor

Heavy libraries are imported by the command that needs them, so that --help answers at once.
"""

import argparse
import functools
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cyto_dl import __version__
from cyto_dl.config import exit_with
from cyto_dl.errors import ConfigError, CytoDLError

if TYPE_CHECKING:
    from cyto_dl.client import Client
    from cyto_dl.inference.batch import ImageModel


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; an error that CytoDL explains ends the process with its exit code, without a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] in (["train"], ["eval"]):
        _run_hydra(given[0], given[1:])
        return
    options = _parse(given)
    try:
        options.run(options)
        sys.stdout.flush()
    except CytoDLError as error:
        exit_with(error)
    except BrokenPipeError:  # the reader has seen enough, as in `cyto-dl inspect BUNDLE | head -3`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run_hydra(command: str, overrides: list[str]) -> None:
    """Hydra reads its overrides from sys.argv, and Lightning the script that the other processes of trainer=ddp run."""
    module = importlib.import_module(f"cyto_dl.{command}")
    sys.argv = [str(module.__file__), *overrides]
    module.main()


def _parse(given: list[str]) -> argparse.Namespace:
    parser, commands = _parsers()
    if given[:1] and given[0] in commands:  # by its own parser, which takes options between files too
        return commands[given[0]].parse_intermixed_args(given[1:])
    return parser.parse_args(given)


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the whole command line, and those of the commands by name."""
    parser = argparse.ArgumentParser(prog="cyto-dl", description="From microscope images to a prediction service.")
    parser.add_argument("--version", action="version", version=f"cyto-dl {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands.add_parser("train", help="train an experiment: cyto-dl train experiment=im2im/segmentation trainer=cpu")
    commands.add_parser("eval", help="evaluate a checkpoint: cyto-dl eval experiment=... ckpt_path=...")
    _add_predict(commands)
    _add_export(commands)
    inspect = commands.add_parser("inspect", help="show what a bundle is: inputs, outputs, metrics, provenance")
    inspect.add_argument("bundle", help="folder of a bundle, local or s3://")
    inspect.set_defaults(run=_inspect)
    doctor = commands.add_parser("doctor", help="show what of the environment is there: GPU, MLflow, S3, versions")
    doctor.set_defaults(run=_doctor)
    return parser, dict(commands.choices)


def _add_predict(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    predict = commands.add_parser("predict", help="predict images with a bundle, or with a model on a server")
    predict.add_argument("bundle", nargs="?", help="folder of a bundle, local or s3://; not with --endpoint")
    predict.add_argument("images", nargs="*", default=[], help="image files, or folders of them")
    predict.add_argument("--manifest", help="a .csv or .parquet with a column of images")
    predict.add_argument("--column", help="that column (default: the name of the bundle's input)")
    predict.add_argument("--output", default="predictions", help="folder for the images and predictions.csv")
    predict.add_argument("--device", help="cpu (default), cuda, mps")
    predict.add_argument("--engine", help="torch (default), torch-mixed, onnxruntime, openvino, openvino-bf16, auto")
    _add_allow_target(predict)
    predict.add_argument("--endpoint", metavar="URL", help="a server instead of a bundle, as http://host:8080")
    predict.add_argument("--model", metavar="NAME", help="name of the server's model, where it has several")
    predict.add_argument("--token-file", metavar="FILE", help="a file with the token that the server asks for")
    predict.add_argument(
        "--job",
        action="store_true",
        help="long images: each as a job of the server, taken up again by the id it prints",
    )
    predict.set_defaults(run=_predict)


def _add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    export = commands.add_parser("export", help="export a checkpoint as a bundle, or several as an ensemble")
    export.add_argument(
        "source",
        nargs="+",
        metavar="CHECKPOINT",
        help="a .ckpt, or the folder of a run (its best checkpoint); several, bundles too, are averaged",
    )
    export.add_argument("--output", required=True, help="folder of the new bundle")
    export.add_argument("--name", help="name of the model (default: the run's name)")
    export.add_argument("--sample", help="image that the bundle replays (default: the first test image of the run)")
    export.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="choose after training, e.g. model.inference.augment=flips or "
        "model.postprocessing.prediction.objects.seed=0.6; may be repeated",
    )
    _add_allow_target(export)
    export.set_defaults(run=_export)


def _add_allow_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-target",
        action="append",
        default=[],
        metavar="MODULE.NAME",
        help="code of your own that the model may use, by its exact dotted name; may be repeated",
    )


def _predict(options: argparse.Namespace) -> None:
    """Every image that can be predicted is; those that cannot are rows of predictions.csv, and the exit code is 2."""
    if options.endpoint and options.bundle:  # the first image stands where a bundle would
        options.bundle, options.images = None, [options.bundle, *options.images]
    _check_predict(options)
    if options.job:
        _predict_jobs(options)
        return
    from cyto_dl.inference.batch import check_all_predicted, image_files, predict_images

    paths = image_files(options.images)
    predictor = _client(options) if options.endpoint else _loaded(options)
    if options.manifest:
        paths = _column(options.manifest, options.column or predictor.input_name)
    table = predict_images(predictor, paths, options.output)
    print(f"{(table['status'] == 'ok').sum()} of {len(table)} images predicted into {options.output}")
    check_all_predicted(table, options.output)


def _predict_jobs(options: argparse.Namespace) -> None:
    from cyto_dl.client.submission import predict_jobs

    client = _client(options)
    words = options.images
    if options.manifest:
        words = _column(options.manifest, options.column or client.input_name)
    predict_jobs(client, words, options.output, say=functools.partial(print, flush=True))  # seen before the wait


def _check_predict(options: argparse.Namespace) -> None:
    """See that the options of `predict` go together."""
    if not (options.bundle or options.endpoint):
        raise ConfigError("give a bundle or --endpoint, e.g. cyto-dl predict BUNDLE image.tif folder")
    if bool(options.images) == bool(options.manifest):
        raise ConfigError("give images or --manifest, one of the two, e.g. cyto-dl predict BUNDLE image.tif folder")
    others = ("device", "engine", "allow_target") if options.endpoint else ("model", "token_file", "job")
    if wrong := [f"--{each.replace('_', '-')}" for each in others if getattr(options, each)]:
        reason = "the server has chosen it" if options.endpoint else "it is for --endpoint URL"
        raise ConfigError(f"leave out {wrong[0]}: {reason}.")


def _loaded(options: argparse.Namespace) -> "ImageModel":
    from cyto_dl.bundle import load_bundle

    chosen = {name: value for name in ("device", "engine") if (value := getattr(options, name))}
    return load_bundle(options.bundle, allow=tuple(options.allow_target), **chosen)


def _client(options: argparse.Namespace) -> "Client":
    from cyto_dl.client import Client

    return Client(options.endpoint, options.model, token=_token(options.token_file))


def _token(path: str | None) -> str | None:
    """The token in a file, which a command line would show to everybody on the machine."""
    if path is None:
        return None
    try:
        words = Path(path).read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {path} cannot be read: {type(error).__name__}.") from error
    if len(words) != 1:
        raise ConfigError(f"--token-file {path} must hold one token, and nothing else; it holds {len(words)} words.")
    return words[0]


def _column(manifest: str, column: str) -> list[str]:
    from cyto_dl.data.manifest import read_column

    return read_column(manifest, column)


def _export(options: argparse.Namespace) -> None:
    from cyto_dl.bundle import card_text, export_bundle

    bundle = export_bundle(
        options.source,
        options.output,
        name=options.name,
        sample=options.sample,
        settings=_settings(options.set),
        allow=tuple(options.allow_target),
    )
    print(card_text(bundle))


def _settings(given: Sequence[str]) -> dict[str, object]:
    """KEY=VALUE as hydra reads values: numbers, true, null and lists are what they look like."""
    import yaml

    pairs = [each.partition("=") for each in given]
    if wrong := [key for key, equals, _ in pairs if not equals]:
        raise ConfigError(f"--set {wrong[0]}: write KEY=VALUE, e.g. --set model.inference.augment=flips")
    try:
        return {key: _value(value) for key, _, value in pairs}
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {' '.join(given)}: {' '.join(str(error).split())}. Close brackets and quotes."
        ) from error


def _value(text: str) -> object:
    from omegaconf import OmegaConf  # reads 1e-3 as the number that it is, which YAML 1.1 does not

    value = OmegaConf.from_dotlist([f"value={text}"])["value"]
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _inspect(options: argparse.Namespace) -> None:
    from cyto_dl.bundle import card_text

    print(card_text(options.bundle))


def _doctor(options: argparse.Namespace) -> None:
    from cyto_dl.doctor import report

    report()


if __name__ == "__main__":
    main()
