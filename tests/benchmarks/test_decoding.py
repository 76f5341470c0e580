"""The benchmark of decoding, small: both ways give the same objects, and the result has the figures."""

import json

import numpy as np
import pytest

from benchmarks.speed import decoding

SMALL = ["--shape", "16", "64", "64", "--objects", "12", "--repeats", "1"]


def test_the_benchmark_measures_both_ways_and_writes_the_ratio(tmp_path, capsys):
    decoding.main([*SMALL, "--result", str(tmp_path / "decoding.json")])
    result = json.loads((tmp_path / "decoding.json").read_text())
    assert result["ratio"] == result["decode_instances_cpu_s"] / result["plain_chain_cpu_s"] > 0
    assert result["num_objects"] > result["num_components"]  # some touch
    assert {"git_commit", "device", "versions"} <= result.keys()
    assert "ratio" in capsys.readouterr().out


def test_the_benchmark_stops_where_the_objects_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "decode_instances", lambda logits, min_size: np.zeros(logits.shape[1:], np.uint32))
    with pytest.raises(AssertionError, match="different objects"):
        decoding.main([*SMALL, "--result", str(tmp_path / "decoding.json")])
