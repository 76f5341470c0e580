"""The command `python -m pipelines`: list, compile, run and submit pipelines, and ask how a run goes.

Exit codes: 0 success; 1 a run failed; 2 wrong arguments; 3 the server cannot be reached; 75: the run has not
ended, ask again later with `status` (EX_TEMPFAIL of sysexits.h). A local run whose step ended
with one of CytoDL's errors ends with that error's code (2 for a wrong manifest, 4 for a training that diverged).
"""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cyto_dl.errors import ConfigError, CytoDLError

if TYPE_CHECKING:
    from pipelines.remote import RemoteRun, Server

_ARGUMENTS_HELP = "the pipeline's arguments; lists as JSON: overrides='[\"trainer=gpu\"]'"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("pipelines").setLevel(logging.INFO)
    options = parse_words(argv)
    try:
        code: int = options.command(options)
        return code
    except CytoDLError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130  # as a shell reports SIGINT


def parse_words(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, and the pipeline's arguments wherever they stand.

    argparse takes only those before the first option: `submit training --host ... manifest=...` would be refused.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if rest and ("arguments" not in options or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.arguments += rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines", description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="show the pipelines and their arguments")
    listing.set_defaults(command=_list)

    compiling = commands.add_parser("compile", help="write YAML for `kfp pipeline create` and `kfp run create`")
    compiling.add_argument("pipeline", nargs="?", help="name from `list`")
    compiling.add_argument("--all", action="store_true", help="every pipeline, to OUTPUT/<name>.yaml")
    compiling.add_argument("--output", help="file, or folder with --all (default: <name>.yaml here)")
    _add_target(compiling)
    compiling.set_defaults(command=_compile)

    running = commands.add_parser("run", help="run on this machine, without a cluster")
    running.add_argument("pipeline", help="name from `list`")
    running.add_argument("arguments", nargs="*", metavar="name=value", help=_ARGUMENTS_HELP)
    running.add_argument("--workspace", default="runs", help="receives a folder for this run (default: ./runs)")
    running.set_defaults(command=_run)

    submitting = commands.add_parser("submit", help="run on a Kubeflow Pipelines server, and wait")
    submitting.add_argument("pipeline", help="name from `list`, or a compiled YAML file")
    submitting.add_argument("arguments", nargs="*", metavar="name=value", help=_ARGUMENTS_HELP)
    submitting.add_argument("--cron", help="let the server run it by this clock, e.g. '0 30 2 * * *': nightly, in UTC")
    submitting.add_argument("--experiment", default="CytoDL", help="groups runs on the server (default: CytoDL)")
    submitting.add_argument("--timeout", type=float, default=86400, help="seconds to wait for the run (default: a day)")
    submitting.add_argument("--poll", type=float, default=5, help="seconds between two questions (default: 5)")
    _add_server(submitting)
    _add_target(submitting)
    submitting.set_defaults(command=_submit)

    asking = commands.add_parser("status", help="show how a run on a server goes")
    asking.add_argument("run", help="the run's id: the end of the address that `submit` printed")
    _add_server(asking)
    asking.set_defaults(command=_status)
    return parser


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", help="container image of the steps (default: $CYTO_DL_IMAGE)")
    parser.add_argument("--gpus", type=int, help="GPUs of the steps that run the network (default: $CYTO_DL_GPUS or 0)")


def _add_server(parser: argparse.ArgumentParser) -> None:
    environment = os.environ.get
    parser.add_argument("--host", default=environment("KF_PIPELINES_ENDPOINT"), help="default: $KF_PIPELINES_ENDPOINT")
    parser.add_argument("--namespace", help="of a multi-user installation")
    parser.add_argument("--token", default=environment("KF_PIPELINES_TOKEN"), help="default: $KF_PIPELINES_TOKEN")


def _list(options: argparse.Namespace) -> int:
    from pipelines.catalogue import PIPELINES, describe, load_pipeline

    for name in PIPELINES:
        print(f"{name}: {describe(load_pipeline(name))}")
    return 0


def _compile(options: argparse.Namespace) -> int:
    from pipelines.catalogue import PIPELINES
    from pipelines.compiler import compile_pipeline

    if bool(options.pipeline) == options.all:
        raise ConfigError(f"name one pipeline ({', '.join(PIPELINES)}) or give --all.")
    _choose_target(options)
    if options.all:
        outputs = {name: Path(options.output or ".") / f"{name}.yaml" for name in PIPELINES}
    else:
        outputs = {options.pipeline: Path(options.output or f"{options.pipeline}.yaml")}
    for name, output in outputs.items():
        print(compile_pipeline(name, output))
    return 0


def _run(options: argparse.Namespace) -> int:
    from pipelines.catalogue import load_pipeline, parse_arguments
    from pipelines.local import run_locally

    pipeline = load_pipeline(options.pipeline)
    arguments = parse_arguments(pipeline, options.arguments)
    summary = run_locally(pipeline, arguments, workspace=options.workspace)
    print(f"\n{summary}")
    if summary.terminated:
        print("\nSIGTERM ended the run; the steps that ran were told", file=sys.stderr)
    elif summary.failure:
        failure = summary.failure
        error = f"{failure.error.rpartition('.')[2]}: " if failure.error else ""
        print(f"\nstep {failure.step} failed: {error}{failure.message}", file=sys.stderr)
    return summary.exit_code


def _submit(options: argparse.Namespace) -> int:
    from pipelines.remote import schedule, submit

    server = _server(options)
    with tempfile.TemporaryDirectory() as folder:
        package, arguments = _package(options, Path(folder))
        if options.cron:
            number = schedule(package, arguments, server, experiment=options.experiment, cron=options.cron)
            print(f"scheduled: {server.host.rstrip('/')}/#/recurringrun/details/{number}")
            return 0
        try:
            run = submit(
                package,
                arguments,
                server,
                experiment=options.experiment,
                timeout_s=options.timeout,
                poll_s=options.poll,
            )
        except TimeoutError as error:
            print(error, file=sys.stderr)
            return os.EX_TEMPFAIL
    return _tell(run)


def _status(options: argparse.Namespace) -> int:
    from pipelines.remote import find_run

    return _tell(find_run(options.run, _server(options)))


def _server(options: argparse.Namespace) -> "Server":
    from pipelines.remote import Server

    if not options.host:
        raise ConfigError("no server is named: give --host, or set KF_PIPELINES_ENDPOINT.")
    return Server(options.host, namespace=options.namespace, token=options.token)


def _tell(run: "RemoteRun") -> int:
    """Print a run's state; the exit code that it stands for."""
    print(f"{run.state.lower()}: {run.link}")
    if run.error:
        print(run.error, file=sys.stderr)
    if not run.has_ended:
        return os.EX_TEMPFAIL
    return 0 if run.state == "SUCCEEDED" else 1


def _package(options: argparse.Namespace, folder: Path) -> "tuple[Path, dict[str, object]]":
    """The compiled pipeline to submit, and its arguments checked: the server would refuse them only in a pod."""
    from kfp.components import load_component_from_file

    from pipelines.catalogue import load_pipeline, parse_arguments
    from pipelines.compiler import compile_pipeline

    if Path(options.pipeline).suffix in (".yaml", ".yml"):
        if not Path(options.pipeline).is_file():
            raise ConfigError(f"{options.pipeline} does not exist; `python -m pipelines compile` writes it.")
        package = Path(options.pipeline)
        return package, parse_arguments(load_component_from_file(str(package)), options.arguments)
    _choose_target(options)
    arguments = parse_arguments(load_pipeline(options.pipeline), options.arguments)
    return compile_pipeline(options.pipeline, folder / f"{options.pipeline}.yaml"), arguments


def _choose_target(options: argparse.Namespace) -> None:
    """Image and GPUs are read when the pipeline's modules are imported, so they are set before that."""
    if options.image:
        os.environ["CYTO_DL_IMAGE"] = options.image
    if options.gpus is not None:
        if options.gpus < 0:
            raise ConfigError(f"--gpus {options.gpus}: give 0 or more.")
        os.environ["CYTO_DL_GPUS"] = str(options.gpus)
