r"""Train on several nodes of a Kubernetes cluster with Kubeflow Trainer, and wait for the end.

    python -m components.cluster --namespace imaging --image registry.example.org/cyto-dl:0.1.0 --nodes 2 --gpus 4 \
        experiment=im2im/segmentation data.path=s3://images/manifest.csv

Prints the log of the first node; the exit code is the training's. --print writes the TrainJob and starts nothing.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from components.cluster.api import own_namespace
from components.cluster.launcher import run_train_job
from components.cluster.train_job import Nodes, train_job
from cyto_dl.errors import CytoDLError

_POLL_SECONDS = 10  # the whole log is read each time; a training says a few lines a minute


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or print a TrainJob; the exit code."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    nodes = Nodes(options.nodes, options.gpus, options.cpu, options.memory, options.shared_memory, options.volume_claim)
    try:
        job = train_job(options.run, options.namespace, options.image, options.overrides, nodes)
        if options.print:
            import yaml

            _say(yaml.safe_dump(job, sort_keys=False))
            return 0
        return run_train_job(job, poll_s=_POLL_SECONDS, say=_say)
    except CytoDLError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m components.cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    defaults = Nodes(1)
    parser.add_argument("--image", required=True, help="with a tag or a digest")
    parser.add_argument("--nodes", type=int, required=True, help="number of nodes")
    parser.add_argument("--gpus", type=int, default=0, help="per node; 0 trains on processors (default)")
    parser.add_argument("--namespace", default=own_namespace(), help="default: %(default)s")
    parser.add_argument("--run", default="", help="name of the run: the same one finds a job that is still there")
    parser.add_argument("--cpu", default=defaults.cpu, help="per node (default: %(default)s)")
    parser.add_argument("--memory", default=defaults.memory, help="per node (default: %(default)s)")
    parser.add_argument("--shared-memory", default=defaults.shared_memory, help="/dev/shm (default: %(default)s)")
    parser.add_argument("--volume-claim", default="", metavar="NAME", help="ReadWriteMany claim, mounted at /data")
    parser.add_argument("--print", action="store_true", help="write the TrainJob as YAML and start nothing")
    parser.add_argument(
        "overrides", nargs="+", metavar="key=value", help="as for cyto_dl/train.py, experiment=... first"
    )
    return parser.parse_args(arguments)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
