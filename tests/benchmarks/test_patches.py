"""The benchmark of the input pipeline, small: both pipelines make the same patches, and the result has the figures."""

import json

from benchmarks.speed import patches


def test_the_benchmark_measures_both_pipelines_and_writes_the_ratio(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(patches, "in_a_process_of_its_own", patches.measure)  # a process costs ten seconds of imports
    sizes = ["--shape", "8", "32", "32", "--patch-shape", "4", "16", "16", "--volumes", "1", "2", "--patches", "8"]
    patches.main([*sizes, "--result", str(tmp_path / "patches.json")])
    result = json.loads((tmp_path / "patches.json").read_text())
    speed = {name: of["2"]["patches_per_cpu_second"] for name, of in result["volumes"].items()}
    assert result["ratio"] == speed["cyto_dl"] / speed["monai"] > 0
    assert all(measured["patches"] >= 8 for of in result["volumes"].values() for measured in of.values())
    assert {"rss_anon_growth_bytes", "git_commit", "device", "versions"} <= result.keys()
    assert "ratio" in capsys.readouterr().out
