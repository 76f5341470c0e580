"""What an operator says on the command line: which bundle, which limits."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """The options of `python -m serving`, under the names that they have there."""

    bundle: str
    model_name: str | None
    http_port: int
    grpc_port: int
    engine: str
    allow_target: list[str]
    max_running: int
    max_waiting: int
    timeout_s: int


def parse_arguments(arguments: Sequence[str] | None, description: str | None) -> Settings:
    """The command line; the names with an underscore are those that KServe's manifests use."""
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--bundle", required=True, metavar="PATH", help="the exported model: a folder or s3:// address")
    parser.add_argument("--model_name", metavar="NAME", help="name in the addresses; by default the bundle's")
    parser.add_argument("--http_port", type=int, default=8080, metavar="PORT", help="REST port (default: 8080)")
    parser.add_argument("--grpc_port", type=int, default=8081, metavar="PORT", help="gRPC port (default: 8081)")
    parser.add_argument("--engine", default="torch", help="torch (default), onnxruntime, openvino, openvino-bf16")
    parser.add_argument(
        "--allow-target",
        action="append",
        default=[],
        metavar="DOTTED.NAME",
        help="a class or function of your own that the bundle may use; may be repeated",
    )
    _add_limits(parser.add_argument_group("limits"))
    return Settings(**vars(parser.parse_args(arguments)))


def _add_limits(group: argparse._ArgumentGroup) -> None:
    limits = {
        "--max-running": (4, "requests that are computed at the same time"),
        "--max-waiting": (16, "requests that may wait beside them; further ones are answered with 429"),
        "--timeout-s": (300, "seconds that one request may take"),
    }
    for option, (default, meaning) in limits.items():
        group.add_argument(option, type=_positive, default=default, metavar="N", help=f"{meaning} (default: {default})")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return number
