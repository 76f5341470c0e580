"""bundle.yaml is read strictly, and every file is checked."""

import pytest
import yaml

from cyto_dl.bundle.format import read_document, verify_files, write_document
from cyto_dl.errors import BundleError


def rewrite(bundle, **changes):
    document = yaml.safe_load((bundle / "bundle.yaml").read_text())
    (bundle / "bundle.yaml").write_text(yaml.safe_dump({**document, **changes}))


def test_a_document_is_read_as_it_was_written(tmp_path):
    for name in ("weights.safetensors", "sample.npz"):
        (tmp_path / name).write_text(name)
    shared = ["a", "b"]
    keys = ("name", "input", "preprocess", "model", "postprocess", "inference", "outputs")
    written = write_document(tmp_path, {"format_version": 1, **dict.fromkeys(keys, shared)})
    document = read_document(tmp_path)
    assert document == written
    assert set(document["files"]) == {"weights.safetensors", "sample.npz"}
    verify_files(tmp_path, document)


def test_a_folder_without_a_document_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match=r"is not a bundle: it has no bundle.yaml"):
        read_document(tmp_path)


def test_a_newer_format_is_refused_by_name(bundle):
    rewrite(bundle, format_version=2)
    with pytest.raises(BundleError, match=r"has bundle format 2, and this CytoDL reads up to format 1"):
        read_document(bundle)


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "- 1",
        "format_version: one",
        "format_version: 1",
        "a: &x [1]\nb: *x",
        "!!python/object/apply:os.system ['true']",
    ],
    ids=["broken", "a list", "no number", "parts missing", "aliases", "python objects"],
)
def test_a_damaged_document_is_refused(bundle, text):
    (bundle / "bundle.yaml").write_text(text)
    with pytest.raises(BundleError, match=r"bundle\.yaml"):
        read_document(bundle)


@pytest.mark.parametrize("name", ["weights.safetensors", "sample.npz", "model.onnx", "README.md", "preview.png"])
def test_a_truncated_file_is_named(bundle, name):
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match=rf"(?s)damaged.*{name}: truncated or changed"):
        verify_files(bundle, read_document(bundle))


def test_all_missing_files_are_named_at_once(bundle):
    (bundle / "weights.safetensors").unlink()
    (bundle / "sample.npz").unlink()
    with pytest.raises(BundleError, match=r"(?s)sample.npz: missing.*weights.safetensors: missing"):
        verify_files(bundle, read_document(bundle))


def test_a_listed_file_that_was_never_there_is_named(bundle):
    document = read_document(bundle)
    document["files"]["extra.bin"] = "0" * 64
    with pytest.raises(BundleError, match=r"extra.bin: missing"):
        verify_files(bundle, document)


def test_weights_that_no_hash_protects_are_refused(bundle):
    document = read_document(bundle)
    del document["files"]["weights.safetensors"]
    with pytest.raises(BundleError, match=r"weights.safetensors: not listed"):
        verify_files(bundle, document)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b"])
def test_a_file_outside_the_bundle_is_not_even_opened(bundle, name):
    document = read_document(bundle)
    document["files"][name] = "0" * 64
    with pytest.raises(BundleError, match=r"not a file name"):
        verify_files(bundle, document)
