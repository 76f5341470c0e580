"""Write a pipeline as the YAML that `kfp pipeline create` and `kfp run create` take."""

from pathlib import Path

from cyto_dl.storage import atomic_path
from pipelines.catalogue import load_pipeline


def compile_pipeline(name: str, path: str | Path) -> Path:
    """Write the pipeline called `name` to `path`: its specification, and what it asks of Kubernetes.

    Raises:
        ConfigError: There is no such pipeline.
    """
    from kfp.compiler import Compiler

    pipeline = load_pipeline(name)
    with atomic_path(path) as temporary:
        Compiler().compile(pipeline, str(temporary))
    return Path(path)
