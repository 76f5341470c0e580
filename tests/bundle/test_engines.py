"""Other engines give torch's predictions, within what rounding in another order makes of them."""

import subprocess
import sys

import numpy as np
import openvino
import pytest
import yaml

from cyto_dl.bundle import load_bundle
from cyto_dl.bundle.engines import ENGINES, PACKAGES, choose_engine
from cyto_dl.bundle.format import read_document, write_document
from cyto_dl.bundle.sample import read_sample
from cyto_dl.data.image import read_image
from cyto_dl.errors import BundleError, ConfigError

HAS_BFLOAT16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
OTHERS = [engine for engine in ENGINES if engine != "torch" and (HAS_BFLOAT16 or engine != "openvino-bf16")]
OF_ONNX = [engine for engine in OTHERS if engine in PACKAGES]
ATOL = 1e-4  # measured on U-Nets: logits around 5 differ by 1e-5 to 8e-5
ATOLS = dict.fromkeys(["openvino-bf16", "torch-mixed"], 5e-2)  # 8 bits of values up to 4, through two layers


@pytest.mark.parametrize("engine", OTHERS)
def test_an_engine_predicts_what_torch_predicts(exported, engine):
    reference, predictor = load_bundle(exported), load_bundle(exported, engine=engine)
    image = read_image(exported.parent / "raw_2.ome.tif", **reference.input.load)
    expected, found = reference.predict_with_activations(image), predictor.predict_with_activations(image)
    for head in reference.outputs:
        atol = ATOLS.get(engine, ATOL)
        np.testing.assert_allclose(found.activations[head], expected.activations[head], atol=atol)
    difference = np.abs(found.images["seg"].astype(int) - expected.images["seg"]).max()
    assert difference <= 1 + 255 * ATOLS.get(engine, 0)  # grey values are rounded
    again = predictor.predict(image)
    assert all(again[head].tobytes() == found.images[head].tobytes() for head in again)


@pytest.mark.parametrize("engine", OTHERS)
def test_an_engine_computes_only_the_heads_that_are_asked_for(exported, engine):
    predictor = load_bundle(exported, engine=engine)
    image = read_image(exported.parent / "raw_2.ome.tif", **predictor.input.load)
    prediction = predictor.predict(image, heads=["dist"])
    assert list(prediction) == ["dist"]
    np.testing.assert_array_equal(prediction["dist"], predictor.predict(image)["dist"])


@pytest.mark.parametrize("engine", OTHERS)
def test_an_engine_runs_every_view_of_a_window(bundle, engine):
    document = read_document(bundle)
    document["inference"] |= {"augment": "rotations", "roi_size": [*document["inference"]["roi_size"][:-1], 24]}
    write_document(bundle, document)
    reference, predictor = (load_bundle(bundle, engine=each, replay=False) for each in ("torch", engine))
    shape = {2: (1, 40, 48), 3: (1, 12, 40, 48)}[reference.input.spatial_dims]
    image = np.random.default_rng(0).integers(0, 999, shape).astype(np.uint16)
    atol = ATOLS.get(engine, ATOL)
    np.testing.assert_allclose(predictor.predict(image)["dist"], reference.predict(image)["dist"], atol=atol)


@pytest.mark.parametrize("engine", OTHERS)
def test_a_sample_that_does_not_fit_the_network_is_noticed_by_an_engine_too(bundle, engine):
    with np.load(bundle / "sample.npz") as archive:
        arrays = dict(archive)
    arrays["image/dist"] = arrays["image/dist"] + np.float32(1)
    np.savez(bundle / "sample.npz", **arrays)
    write_document(bundle, read_document(bundle))
    with pytest.raises(BundleError, match="does not repeat the predictions"):
        load_bundle(bundle, engine=engine)


@pytest.mark.parametrize("engine", OF_ONNX)
def test_a_bundle_without_onnx_says_why(bundle, engine):
    (bundle / "model.onnx").unlink()
    engines = {"onnx": {"error": "an operator that ONNX lacks"}}
    write_document(bundle, {**read_document(bundle), "engines": engines})
    with pytest.raises(BundleError, match=rf"no model.onnx for {engine} \(an operator that ONNX lacks\)"):
        load_bundle(bundle, engine=engine)


@pytest.mark.parametrize("engine", OF_ONNX)
def test_a_damaged_network_of_an_engine_is_a_bundle_error(bundle, engine):
    (bundle / "model.onnx").write_bytes(b"garbage")
    write_document(bundle, read_document(bundle))
    with pytest.raises(BundleError, match=rf"{engine} cannot load .*model.onnx"):
        load_bundle(bundle, engine=engine)


def test_an_unknown_engine_is_refused_with_the_choices(exported):
    choices = "torch, torch-mixed, onnxruntime, openvino, openvino-bf16, auto"
    with pytest.raises(ConfigError, match=f"engine is 'tensorrt'; choose one of {choices}"):
        load_bundle(exported, engine="tensorrt")


def test_an_engine_on_a_gpu_is_refused(exported):
    with pytest.raises(
        ConfigError, match=r"runs on the CPU, not on cuda\. Choose device cpu, or engine torch or torch-m"
    ):
        load_bundle(exported, engine="onnxruntime", device="cuda")


def test_an_engine_that_is_not_installed_is_named_with_its_extra(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)  # import then raises ImportError
    with pytest.raises(ConfigError, match=r"openvino is not installed: pip install 'cyto-dl\[openvino\]'"):
        load_bundle(exported, engine="openvino")


def test_half_precision_on_a_processor_without_it_is_refused(exported, monkeypatch):
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "INT8"])
    with pytest.raises(ConfigError, match="does not compute in bf16: choose engine openvino"):
        load_bundle(exported, engine="openvino-bf16")


def test_the_document_says_how_closely_onnx_runtime_agrees(exported):
    engine = yaml.safe_load((exported / "bundle.yaml").read_text())["engines"]["onnx"]
    assert 0 <= engine["max_difference"] < ATOL


def with_measured(bundle, measured):
    document = read_document(bundle)
    document["engines"]["measured"] = measured
    write_document(bundle, document)
    return document


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [
        ({}, "torch"),  # a bundle of an earlier version
        ({"torch": {"speed": 1.0}, "onnxruntime": {"speed": 1.5}, "openvino": {"speed": 1.3}}, "onnxruntime"),
        ({"onnxruntime": {"speed": 1.5, "refused": "it differs"}, "openvino": {"speed": 1.3}}, "openvino"),
        ({"openvino-bf16": {"speed": 3.0}}, "torch"),  # half precision is for who asks for it
        ({"openvino": {"speed": 1.02}}, "torch"),
        ({"onnxruntime": {"refused": "cannot run it"}}, "torch"),
    ],
)
def test_auto_is_the_fastest_engine_that_agrees(measured, chosen):
    assert choose_engine("auto", {"engines": {"onnx": {}, "measured": measured}}) == chosen


def test_auto_passes_over_an_engine_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(PACKAGES, "openvino", "an_engine_that_nobody_wrote")
    measured = {"openvino": {"speed": 2.0}, "onnxruntime": {"speed": 1.5}}
    assert choose_engine("auto", {"engines": {"measured": measured}}) == "onnxruntime"


def test_auto_is_torch_on_a_gpu():
    assert choose_engine("auto", {"engines": {"measured": {"openvino": {"speed": 2.0}}}}, "cuda") == "torch"


def test_a_bundle_is_loaded_with_the_engine_that_auto_means(bundle):
    with_measured(bundle, {"torch": {"speed": 1.0}, "openvino": {"speed": 1.5}})
    found, expected = (load_bundle(bundle, engine=engine) for engine in ("auto", "openvino"))
    assert found.network.engine == "openvino"
    image = read_sample(bundle / "sample.npz").image
    assert found.predict(image)["dist"].tobytes() == expected.predict(image)["dist"].tobytes()


def test_an_engine_that_the_bundle_refuses_is_not_loaded(bundle):
    with_measured(bundle, {"openvino": {"speed": 1.5, "refused": "logits differ from torch by up to 0.3"}})
    with pytest.raises(BundleError, match=r"refuses engine openvino: logits differ from torch by up to 0\.3"):
        load_bundle(bundle, engine="openvino")


_SIGNAL_AFTER_ENGINES = """
import faulthandler, gc, pathlib, signal, sys
from cyto_dl.bundle.engines import start_engine

faulthandler.enable()  # as pytest does: the stack for handlers that a core replaces
signal.signal(signal.SIGTERM, lambda number, frame: print("handled"))
path, *heads = sys.argv[1:]
networks = [start_engine("openvino", pathlib.Path(path), heads) for _ in range(2)]
while networks:
    networks.pop(0)
    gc.collect()
signal.raise_signal(signal.SIGTERM)
"""


def test_a_process_handles_signals_after_its_engines_are_gone(exported):
    command = [sys.executable, "-c", _SIGNAL_AFTER_ENGINES, exported / "model.onnx", "seg", "dist"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr
