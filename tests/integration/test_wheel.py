"""The wheel alone, away from the checkout, trains an experiment of the user's own."""

import sys

import pytest
import yaml

from tests.integration.process import ROOT, run

pytestmark = pytest.mark.integration
PYTHON = sys.executable

# What a scientist writes: a copy of the shipped experiment with other columns and a tiny network.
MINE = """\
# @package _global_
defaults:
  - override /data: im2im/segmentation
  - override /model: im2im/segmentation
  - override /logger: csv
experiment_name: mine
run_name: blobs
source_col: raw
target_col: seg
source_channel: null
target_channel: null
spatial_dims: 2
raw_im_channels: 1
data: {path: "???", patch_shape: [32, 32], patches_per_image: 2, batch_size: 2}
model: {backbone: {filters: [4, 4, 8, 8]}}
optimized_metric: valid/seg/dice
optimized_mode: max
trainer: {max_epochs: 1}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the installed wheel; everything that it needs comes from this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [PYTHON, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    built = run(build)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("cyto_dl-*.whl")
    install = [PYTHON, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder / "site", wheel]
    done = run(install)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def away(installed, tmp_path):
    """Runs Python in an empty folder, where `cyto_dl` is the installed one although an editable one may be there."""
    folder = tmp_path / "project"
    folder.mkdir()

    def python(*words):
        return run([PYTHON, *words], cwd=folder, values={"PYTHONPATH": str(installed)})

    python.folder = folder
    return python


def test_the_package_and_its_configurations_come_from_the_wheel(away, installed):
    code = "import cyto_dl, cyto_dl.config as c; print(cyto_dl.__file__, c.CONFIG_DIR, *c.experiments(), sep='\\n')"
    asked = away("-c", code)
    module, config_dir, *experiments = asked.stdout.splitlines()
    assert module == str(installed / "cyto_dl" / "__init__.py")
    assert config_dir == str(installed / "cyto_dl" / "configs")
    assert "im2im/segmentation" in experiments


def test_the_wheel_holds_the_library_and_nothing_else(installed):
    top_level = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert top_level == {"cyto_dl", "bin"}
    assert (installed / "bin" / "cyto-dl").is_file()
    shipped = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    packaged = installed / "cyto_dl" / "configs"
    assert {path.relative_to(packaged) for path in packaged.rglob("*.yaml")} == shipped
    assert (installed / "cyto_dl" / "evaluation" / "report.html.j2").is_file()


def test_an_experiment_of_ones_own_trains_and_is_tested(away, installed, manifest_folder):
    (away.folder / "my_configs" / "experiment").mkdir(parents=True)
    (away.folder / "my_configs" / "experiment" / "mine.yaml").write_text(MINE)
    manifest = manifest_folder() / "manifest.csv"
    trained = away(
        *["-m", "cyto_dl.cli", "train", "--config-dir", "my_configs", "experiment=mine"],
        *[f"data.path={manifest}", "trainer=cpu"],
    )
    assert trained.returncode == 0, trained.stderr
    (output_dir,) = (path.parent for path in away.folder.glob("logs/**/checkpoints"))
    assert yaml.safe_load((output_dir / "config.yaml").read_text())["trainer"]["max_epochs"] == 1
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "test/metrics.json", "test/report.html"):
        assert (output_dir / name).is_file(), name

    exported = away("-m", "cyto_dl.cli", "export", output_dir, "--output", "bundle")
    assert exported.returncode == 0, exported.stderr
    predicted = away("-m", "cyto_dl.cli", "predict", "bundle", manifest.parent / "raw_3.tif")
    assert predicted.returncode == 0, predicted.stderr
    assert (away.folder / "predictions" / "seg" / "raw_3.ome.tif").is_file()
