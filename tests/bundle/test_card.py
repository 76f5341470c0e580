"""The card tells a person what the bundle is."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cyto_dl.bundle import card_text
from cyto_dl.bundle.format import read_document, write_document
from cyto_dl.errors import BundleError


def test_the_card_says_what_goes_in_what_comes_out_and_how_good_it_is(exported):
    text = card_text(exported)
    for part in ("# tiny", "seg (segmentation)", "`sigmoid_rescale`", "| test/seg/dice | 0.5000 |", "seed: 1", "µm"):
        assert part in text


def test_the_readme_shows_the_preview_and_how_to_use_the_model(exported):
    text = (exported / "README.md").read_text()
    assert text.startswith("# tiny\n")
    assert "](preview.png)" in text
    assert "cyto-dl predict . image.tif" in text
    assert 'load_bundle(".")' in text


def test_the_preview_shows_the_input_and_every_head(exported):
    preview = np.asarray(Image.open(exported / "preview.png"))
    assert preview.shape[2] == 3
    assert preview.shape[1] > 3 * 200  # three panels
    assert preview.std() > 10


def test_the_card_of_a_bundle_with_own_code_names_it(bundle):
    document = read_document(bundle)
    write_document(bundle, {**document, "foreign_targets": [{"target": "lab.Net", "package": "lab-tools"}]})
    assert "`lab.Net` of the package lab-tools" in card_text(bundle)


def test_the_card_says_what_a_prediction_is_the_mean_of(bundle):
    document = read_document(bundle)
    members = [{"seed": 1, "checkpoint": {"epoch": 7}}, {"seed": 2, "checkpoint": {"epoch": 9}}]
    document |= {"ensemble": ["weights.safetensors", "weights.safetensors"], "provenance": {"members": members}}
    document["inference"]["augment"] = "flips"
    write_document(bundle, document)
    text = card_text(bundle)
    for part in ("logits of 2 trainings", "augmentation: flips", "member 2: seed 2, checkpoint.epoch 9"):
        assert part in text


def test_the_card_of_a_document_that_makes_no_sense_is_an_error_not_a_crash(bundle):
    write_document(bundle, {**read_document(bundle), "outputs": ["seg"]})
    with pytest.raises(BundleError, match=r"bundle\.yaml is damaged"):
        card_text(bundle)


def test_the_card_builds_nothing(exported):
    code = (
        f"import sys; from cyto_dl.bundle import card_text; card_text({str(exported)!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
