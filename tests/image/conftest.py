"""The image under test: `make test-image` builds it and says which it is."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.containers import Image


@pytest.fixture(scope="session")
def image() -> Image:
    engine, name = os.environ.get("CYTO_DL_CONTAINER_ENGINE"), os.environ.get("CYTO_DL_IMAGE")
    if not engine or not name:
        pytest.fail("these tests need an image: run `make test-image`, which builds it with docker or podman")
    return Image(engine, name)


@pytest.fixture
def shared_folder(image: Image, tmp_path: Path) -> Iterator[Path]:
    """A folder that containers write to under their own user id, and that pytest can remove afterwards."""
    tmp_path.chmod(0o777)
    yield tmp_path
    image.open_to_all(tmp_path)


@pytest.fixture(scope="session")
def socket(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the engine takes orders from KFP's DockerRunner; podman does so only when it is asked to."""
    if Path(image.engine).name != "podman":
        yield os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        return
    file = tmp_path_factory.mktemp("podman") / "podman.sock"
    service = subprocess.Popen([image.engine, "system", "service", "--time=0", f"unix://{file}"])
    try:
        while not file.exists():
            assert service.poll() is None, "podman system service ended by itself"
            time.sleep(0.1)
        yield f"unix://{file}"
    finally:
        service.terminate()
        service.wait()
