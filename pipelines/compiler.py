"""Write a pipeline as the YAML that `kfp pipeline create` and `kfp run create` take."""

from pathlib import Path

from cyto_dl.errors import ConfigError
from cyto_dl.storage import atomic_path
from pipelines.catalogue import load_pipeline


def compile_pipeline(name: str, path: str | Path) -> Path:
    """Write the pipeline called `name` to `path`: its specification, and what it asks of Kubernetes.

    Raises:
        ConfigError: There is no such pipeline, or its image may become another one.
    """
    from kfp.compiler import Compiler

    from components.image import IMAGE

    pipeline = load_pipeline(name)
    if not _is_fixed(IMAGE):
        raise ConfigError(
            f"image '{IMAGE}': give it a tag other than latest, or a digest, with --image or CYTO_DL_IMAGE, e.g. "
            "registry.example.org/cyto-dl:0.1.0. What runs would change behind the pipeline's back."
        )
    with atomic_path(path) as temporary:
        Compiler().compile(pipeline, str(temporary))
    return Path(path)


def _is_fixed(image: str) -> bool:
    """Whether an image's name has a digest or a tag that is not `latest`; a colon before a slash begins a port."""
    tag = image.rpartition("/")[2].partition(":")[2]
    return "@sha256:" in image or tag not in ("", "latest")
