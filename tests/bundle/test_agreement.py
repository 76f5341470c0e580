"""At export every engine is compared with torch on the sample, and one beyond its tolerance is refused."""

from dataclasses import replace
from importlib.metadata import version

import pytest
import torch

from cyto_dl.bundle import load_bundle
from cyto_dl.bundle.agreement import measure_engines
from cyto_dl.bundle.format import read_document
from cyto_dl.bundle.sample import read_sample

ATOL = 1e-4  # measured on U-Nets: logits around 5 differ by 1e-5 to 8e-5


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_export_records_how_closely_and_how_fast_an_engine_computes(exported, engine):
    measured = read_document(exported)["engines"]["measured"]
    assert measured["torch"] == {"version": version("torch"), "speed": 1.0}
    assert set(measured[engine]) == {"version", "speed", "max_difference", "changed_labels"}
    assert measured[engine]["version"] == version(engine)
    assert measured[engine]["speed"] > 0
    assert measured[engine]["max_difference"] < ATOL
    assert measured[engine]["changed_labels"] == 0.0


class Shifted(torch.nn.Module):
    """The network of a bundle, with logits that are higher by `shift`."""

    def __init__(self, network, shift):
        super().__init__()
        self.network, self.shift, self.heads = network, shift, network.heads

    def forward(self, windows):
        return {head: logits + self.shift for head, logits in self.network(windows).items()}


@pytest.mark.parametrize("shift", [1.0, float("nan")])
def test_an_engine_beyond_its_tolerance_is_refused(exported, shift):
    predictor = load_bundle(exported)
    predictor = replace(predictor, network=Shifted(predictor.network, shift))
    measured = measure_engines(predictor, exported, read_sample(exported / "sample.npz").image)
    for engine in ("onnxruntime", "openvino"):
        assert "logits differ from torch by up to" in measured[engine]["refused"]


def test_an_engine_that_cannot_run_the_network_is_refused_without_a_path(bundle):
    predictor = load_bundle(bundle)
    (bundle / "model.onnx").write_bytes(b"garbage")
    measured = measure_engines(predictor, bundle, read_sample(bundle / "sample.npz").image)
    for engine in ("onnxruntime", "openvino"):
        assert list(measured[engine]) == ["refused"]
        assert measured[engine]["refused"].startswith(f"{engine} cannot load model.onnx")
        assert str(bundle) not in measured[engine]["refused"]


def test_an_engine_that_changes_labels_is_refused_though_its_logits_are_close(exported):
    predictor = load_bundle(exported)
    predictor = replace(
        predictor,
        network=Shifted(predictor.network, 5e-4),  # half of what logits may differ
        outputs={**predictor.outputs, "seg": {"kind": "segmentation", "activation": "sigmoid", "values": "labels"}},
        postprocess={**predictor.postprocess, "seg": lambda logits: (logits * 1e4).int()},
    )
    measured = measure_engines(predictor, exported, read_sample(exported / "sample.npz").image)
    assert "of the pixels change sides" in measured["onnxruntime"]["refused"]
