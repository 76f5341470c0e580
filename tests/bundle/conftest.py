"""One exported bundle per dimensionality, for tests that read it or damage a copy of it."""

import shutil
from pathlib import Path

import pytest

from cyto_dl.bundle import export_bundle
from tests.bundle.tiny import checkpoint_of, experiment, write_images


@pytest.fixture(scope="session", params=[2, 3], ids=["2d", "3d"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = experiment(write_images(folder, request.param), request.param)
    checkpoint_of(config, folder / "run/checkpoints/best.ckpt")
    return export_bundle(folder / "run", folder / "bundle", metrics={"test/seg/dice": 0.5})


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))
