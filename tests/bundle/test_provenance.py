"""Provenance names data and versions, and nothing that is secret."""

import hashlib
import json

import torch

from cyto_dl.bundle.provenance import git_commit, manifest_sha256, provenance


def test_it_names_versions_manifest_and_the_mlflow_run(tmp_path):
    (tmp_path / "manifest.csv").write_text("raw,split\n")
    remembered = {"run_id": "0123", "tracking_uri": "http://anna:swordfish@mlflow"}
    (tmp_path / "mlflow.json").write_text(json.dumps(remembered))
    config = {"experiment_name": "nuclei", "seed": 7, "data": {"path": str(tmp_path / "manifest.csv")}}
    origin = provenance(config, run_dir=tmp_path)
    assert origin["packages"]["torch"] == torch.__version__
    assert origin["manifest_sha256"] == hashlib.sha256(b"raw,split\n").hexdigest()
    assert origin["mlflow_run"] == "0123"
    assert "swordfish" not in json.dumps(origin)


def test_an_image_names_its_commit_in_the_environment(monkeypatch):
    monkeypatch.setenv("CYTO_DL_GIT_COMMIT", "abc123")
    assert git_commit() == "abc123"


def test_the_commit_outside_a_checkout_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")  # no git
    assert git_commit() == "unknown"


def test_a_folder_of_split_files_has_one_hash_that_follows_each_of_them(tmp_path):
    (tmp_path / "train.csv").write_text("raw\n")
    before = manifest_sha256(tmp_path)
    (tmp_path / "test.csv").write_text("raw\n")
    assert manifest_sha256(tmp_path) != before
    assert manifest_sha256([{"raw": "in memory"}]) is None
