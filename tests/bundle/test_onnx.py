"""model.onnx gives the numbers of the network, for any batch, or says why it is not there."""

import logging

import numpy as np
import onnxruntime
import pytest
import torch

from cyto_dl.bundle.onnx import export_onnx
from cyto_dl.data.image import Image
from tests.bundle.tiny import ROI, SHAPE, experiment, predictor_of, unet


def image_of(spatial_dims):
    return Image(np.random.default_rng(0).normal(size=(1, *SHAPE[spatial_dims])).astype(np.float32), None, "x")


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_onnx_runtime_gives_the_logits_of_torch_for_other_batches_and_sizes(tmp_path, spatial_dims):
    config = experiment("m.csv", spatial_dims)
    if spatial_dims == 2:  # a U-Net takes 10 s to export; once is enough
        config["model"]["backbone"] = unet(2)
    predictor = predictor_of(config)
    engine = export_onnx(predictor, tmp_path, image_of(spatial_dims))
    assert engine["file"] == "model.onnx"
    assert engine["max_difference"] < 1e-4  # measured on U-Nets: 1e-5 to 8e-5 for logits around 5
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch, factor in [(1, 1), (3, 1), (2, 2)]:
        windows = np.random.default_rng(1).normal(size=(batch, 1, *(factor * side for side in ROI[spatial_dims])))
        found = session.run(["dist"], {"raw": windows.astype(np.float32)})[0]
        with torch.inference_mode():
            expected = predictor.network(torch.from_numpy(windows).float())["dist"].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)  # as above


class Unexportable(torch.nn.Module):
    """Decides by the values that it sees, which a graph cannot hold."""

    def forward(self, images):
        return images.repeat(1, 4, *[1] * (images.ndim - 2)) * (1 if float(images.sum()) > 0 else 2)


def test_a_network_without_onnx_is_no_error_but_a_reason(tmp_path, caplog):
    predictor = predictor_of(experiment("m.csv"))
    predictor.network.backbone = Unexportable()
    with caplog.at_level(logging.WARNING):
        engine = export_onnx(predictor, tmp_path, image_of(2))
    assert set(engine) == {"error"}
    assert engine["error"]
    assert "the bundle has no model.onnx" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_exporting_says_nothing(tmp_path, capfd, recwarn):
    export_onnx(predictor_of(experiment("m.csv")), tmp_path, image_of(2))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
