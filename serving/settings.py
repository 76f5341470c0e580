"""What an operator says on the command line: which bundles, which limits, who may ask."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cyto_dl.errors import ConfigError
from cyto_dl.processors import num_processors
from serving.identity import check_name

# With more than there are processors they only wait for each other; with one a small image would wait for a volume.
RUNNING = max(2, min(4, num_processors()))

# As cyto_dl.bundle.engines lists them, which imports torch.
ENGINES = ("torch", "torch-mixed", "onnxruntime", "openvino", "openvino-bf16", "auto")
_NAMED = re.compile(r"(?:([^/=:]*)=)?(.+)")  # a path may have a "=" too, behind its first slash
_ORIGIN = re.compile(r"https?://[^/]+|\*")
_LARGEST_MESSAGE_MIB = 2047  # gRPC counts bytes in 32 bits


@dataclass(frozen=True)
class Settings:
    """The options of `python -m serving`, under the names that they have there."""

    bundle: list[tuple[str | None, str]]  # name, if one is given, and address
    model_name: str | None
    repository: str | None
    http_port: int
    grpc_port: int
    engine: str
    device: str
    allow_target: list[str]
    max_running: int
    max_waiting: int
    timeout_s: int
    drain_s: int
    max_body_mib: int
    max_message_mib: int
    max_buffered_mib: int
    max_voxels: int
    allow_read: list[str]
    allow_write: list[str]
    jobs: str | None
    max_jobs: int
    keep_jobs_h: int
    token_file: str | None
    admin_token_file: str | None
    cors_origin: list[str]
    drift: str
    log_format: str


def parse_arguments(arguments: Sequence[str] | None, description: str | None = None) -> Settings:
    """The command line; the names with an underscore are those that KServe's manifests use."""
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_models(parser.add_argument_group("models"))
    parser.add_argument("--http_port", type=int, default=8080, metavar="PORT", help="REST port (default: 8080)")
    parser.add_argument("--grpc_port", type=int, default=8081, metavar="PORT", help="gRPC port (default: 8081)")
    _add_limits(parser.add_argument_group("limits"))
    _add_files(parser.add_argument_group("files"))
    _add_access(parser.add_argument_group("access"))
    _add_observation(parser.add_argument_group("observation"))
    settings = Settings(**vars(parser.parse_args(arguments)))
    if settings.model_name and len(settings.bundle) > 1:
        parser.error("--model_name names one bundle; with several write --bundle NAME=PATH")
    if settings.repository and not settings.admin_token_file:
        parser.error("--repository needs --admin-token-file: who has one of its tokens loads and unloads models")
    if settings.max_message_mib > _LARGEST_MESSAGE_MIB:
        parser.error(f"--max-message-mib is {_LARGEST_MESSAGE_MIB} at most: gRPC takes no larger messages")
    return settings


def _add_models(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--bundle",
        required=True,
        action="append",
        type=_named,
        metavar="[NAME=]PATH",
        help="an exported model: a folder or s3:// address, and its name in the addresses; may be repeated",
    )
    group.add_argument(
        "--model_name", type=_name, metavar="NAME", help="name of the one bundle; by default the bundle's own"
    )
    group.add_argument(
        "--repository", metavar="PATH", help="folder or s3:// prefix whose bundles may be loaded over the network"
    )
    engines = f"{', '.join(ENGINES)} (default: torch)"
    group.add_argument("--engine", default="torch", choices=ENGINES, metavar="ENGINE", help=engines)
    group.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1")
    group.add_argument(
        "--allow-target",
        action="append",
        default=[],
        type=_dotted,
        metavar="DOTTED.NAME",
        help="a class or function of your own that the bundles may use; may be repeated",
    )


def _add_limits(group: argparse._ArgumentGroup) -> None:
    limits = {
        "--max-running": (RUNNING, "requests that are computed at the same time"),
        "--max-waiting": (16, "requests that may wait beside them; further ones are answered with 429"),
        "--timeout-s": (300, "seconds that one request may take"),
        "--max-body-mib": (256, "size of a request over REST; a larger one is answered with 413"),
        "--max-message-mib": (256, "size of a message over gRPC, in either direction"),
        "--max-buffered-mib": (1024, "size of all requests that are received and answered at the moment, together"),
        "--max-voxels": (256_000_000, "voxels of one request, channels included"),
    }
    for option, (default, meaning) in limits.items():
        group.add_argument(option, type=_positive, default=default, metavar="N", help=f"{meaning} (default: {default})")
    group.add_argument(
        "--drain-s", type=_natural, default=0, metavar="N",
        help="seconds that new requests are still taken after SIGTERM, while it says that it is not ready (default: 0)",
    )  # fmt: skip


def _add_files(group: argparse._ArgumentGroup) -> None:
    for option, what in (("--allow-read", "that clients may name as images"), ("--allow-write", "for results")):
        group.add_argument(
            option, action="append", default=[], metavar="PREFIX",
            help=f"a folder or s3:// prefix {what}; may be repeated; none by default",
        )  # fmt: skip
    group.add_argument("--jobs", metavar="PATH", help="folder that keeps jobs and their results; none: no jobs")
    group.add_argument(
        "--max-jobs", type=_positive, default=100, metavar="N", help="jobs that may wait and run (default: 100)"
    )
    group.add_argument(
        "--keep-jobs-h", type=_positive, default=24, metavar="N", help="hours that results are kept (default: 24)"
    )


def _add_access(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--token-file", metavar="PATH", help="tokens of which a client needs one, one a line")
    group.add_argument("--admin-token-file", metavar="PATH", help="tokens that allow to load and unload models")
    group.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        type=_origin,
        metavar="ORIGIN",
        help="a page elsewhere that may ask from a browser, as https://viewer.example.org; may be repeated",
    )


def _add_observation(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--drift",
        default="warn",
        choices=["accept", "warn", "refuse"],
        help="what to do with an image unlike those of the training: count it, say so (default), or refuse it",
    )
    group.add_argument("--log-format", default="text", choices=["text", "json"], help="lines for people, or JSON")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number") from None


def _natural(text: str) -> int:
    if (number := _whole(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} must be 0 or more")
    return number


def _positive(text: str) -> int:
    if (number := _whole(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return number


def _name(text: str) -> str:
    try:
        return check_name(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _named(text: str) -> tuple[str | None, str]:
    found = _NAMED.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError("it must be PATH or NAME=PATH")
    return None if found[1] is None else _name(found[1]), found[2]


def _dotted(text: str) -> str:
    if "." not in text or not all(part.isidentifier() for part in text.split(".")):
        raise argparse.ArgumentTypeError(f"'{text}' is no dotted name, as lab.postprocessing.watershed")
    return text


def _origin(text: str) -> str:
    if not _ORIGIN.fullmatch(text):
        raise argparse.ArgumentTypeError(f"'{text}' is no origin, as https://viewer.example.org")
    return text
