"""`cyto-dl doctor`: what of the environment is there, and what to do about what is not."""

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from cyto_dl import __version__

_TIMEOUT_S = 5
_PACKAGES = ("torch", "lightning", "monai", "hydra-core", "pandas", "mlflow", "boto3", "kfp", "kserve", "onnxruntime")
_EXTRAS = {"kfp": "pipelines", "kserve": "serving"}


class Finding(NamedTuple):
    """One thing that was looked at: whether it is there, and what was seen or is to be done."""

    name: str
    present: bool
    detail: str


def report() -> None:
    """Print the findings as a table."""
    import rich
    from rich.table import Table

    table = Table(title=f"CytoDL {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for column in ("what", "there", "detail"):
        table.add_column(column)
    for finding in examine():
        table.add_row(finding.name, "yes" if finding.present else "no", finding.detail)
    rich.print(table)


def examine() -> Iterator[Finding]:
    """Look at packages, processors, MLflow, S3 and disk, one after the other. Nothing is changed."""
    yield from (_package(name) for name in _PACKAGES)
    yield _gpu()
    yield _mlflow()
    yield _s3()
    free = shutil.disk_usage(".").free / 1e9
    yield Finding("disk", free > 5, f"{free:.0f} GB free in this folder")  # a cache of volumes needs gigabytes


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, version(name))
    except PackageNotFoundError:
        return Finding(
            name, False, f"pip install 'cyto-dl[{_EXTRAS[name]}]'" if name in _EXTRAS else "pip install cyto-dl"
        )


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return Finding("GPU", True, f"{names}: trainer=gpu")
    if torch.backends.mps.is_available():
        return Finding("GPU", True, "Apple GPU: trainer=mps")
    return Finding("GPU", False, f"training runs on {os.cpu_count()} processors: trainer=cpu")


def _mlflow() -> Finding:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        return Finding("MLflow", False, "MLFLOW_TRACKING_URI is not set: logger=mlflow writes logs/mlflow.db")
    if not uri.startswith("http"):
        return Finding("MLflow", True, uri)
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=_TIMEOUT_S).raise_for_status()
    except requests.RequestException as error:
        return Finding("MLflow", False, f"{uri} does not answer: {type(error).__name__}. Is the server running?")
    return Finding("MLflow", True, uri)


def _s3() -> Finding:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3", "AWS")
    if boto3.Session().get_credentials() is None:
        return Finding("S3", False, "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to use s3://")
    try:
        quick = Config(connect_timeout=_TIMEOUT_S, read_timeout=_TIMEOUT_S, retries={"max_attempts": 1})
        boto3.client("s3", config=quick).list_buckets()
    except (BotoCoreError, ClientError) as error:
        return Finding("S3", False, f"{endpoint}: {error}")
    return Finding("S3", True, endpoint)
