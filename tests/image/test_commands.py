"""What a user or KServe starts in the image, in read-only containers under a user id that it does not know."""

import numpy as np
import pytest
import tifffile
import yaml

from cyto_dl.data import read_image
from tests.image.containers import ROOT, ask

pytestmark = pytest.mark.integration
BUNDLE = ROOT / "examples/bundles/nuclei"
IMAGE = ROOT / "examples/nuclei/images/0a7d30b25235.tif"
HEAD = "objects"
TINY = [
    "data.patches_per_image=2",
    "data.batch_size=2",
    "model.backbone.filters=[4,4,8,8]",
    "trainer.max_epochs=1",
]


def test_doctor_finds_what_steps_and_server_need(image):
    table = image.run("cyto-dl", "doctor")
    for library in ("torch", "lightning", "monai", "mlflow", "kfp", "kserve", "onnxruntime"):
        assert f"│ {library}" in table


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_training_leaves_its_checkpoint_where_it_may_write(image, shared_folder, manifest_folder, spatial_dims):
    folder = manifest_folder(spatial_dims)
    patch = f"data.patch_shape={[16, 32, 32][-spatial_dims:]}".replace(" ", "")
    data = [f"data.path={folder / 'manifest.csv'}", "target_col=seg", f"spatial_dims={spatial_dims}"]
    logs = f"paths.log_dir={shared_folder / 'logs'}"
    image.run("cyto-dl", "train", "experiment=im2im/segmentation", *data, *TINY, patch, logs, folder=shared_folder)
    assert list((shared_folder / "logs").rglob("*.ckpt"))


def started_by_kserve():
    """The command of deploy/runtime's container, for a model called nuclei."""
    runtime = yaml.safe_load((ROOT / "deploy/runtime/cluster-serving-runtime.yaml").read_text())
    (container,) = runtime["spec"]["containers"]
    return [word.replace("{{.Name}}", "nuclei") for word in [*container["command"], *container["args"]]]


@pytest.mark.parametrize("command", [[], started_by_kserve()], ids=["as the image says", "as KServe says"])
def test_a_server_answers_what_the_command_predicts_to_the_last_bit(image, shared_folder, command):
    picture = read_image(IMAGE, spatial_dims=2).array
    np.save(shared_folder / "image.npy", picture)
    tifffile.imwrite(shared_folder / "image.tif", picture[0])
    output = shared_folder / "predictions"
    bundle = "/app/examples/bundles/nuclei"
    image.run("cyto-dl", "predict", bundle, shared_folder / "image.tif", "--output", output, folder=shared_folder)
    (file,) = (output / HEAD).iterdir()
    wanted = tifffile.imread(file)
    assert wanted.max() > 5  # nuclei, not background
    with image.server(BUNDLE, *command, model="nuclei") as address:
        np.testing.assert_array_equal(np.squeeze(ask(address, "nuclei", HEAD, picture)), np.squeeze(wanted))
