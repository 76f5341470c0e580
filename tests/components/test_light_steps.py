"""A step that trains and predicts nothing starts without torch: by what is in its process when it has done its work."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "monai", "lightning"}
NETWORK = {"train", "evaluate", "export", "predict"}  # what runs the network
# compare loads the champion where there is one; tests/tracking has register, tests/steps prepare_data
LIGHT = sorted({path.stem for path in (ROOT / "components").glob("*.py")} - NETWORK - {"__init__", "image"})


def loaded(code, folder):
    """The heavy libraries that a process holds after it has run this code."""
    ending = f"\nimport sys; print(json.dumps(sorted({HEAVY} & set(sys.modules))))"
    command = [sys.executable, "-c", f"import json\n{code}{ending}"]
    done = subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("component", LIGHT)
def test_what_a_light_step_imports_holds_no_network(component, tmp_path):
    tree = ast.parse((ROOT / "components" / f"{component}.py").read_text())
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    imports = [ast.unparse(node) for node in function.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports
    assert loaded("\n".join(imports), tmp_path) == []


def test_planning_collecting_and_choosing_load_no_network(tmp_path):
    images = sorted((ROOT / "examples/nuclei/images").glob("*.tif"))[:3]
    pd.DataFrame({"raw": images}).to_csv(tmp_path / "manifest.csv", index=False)
    row = {"index": 0, "path": images[0], "status": "ok", "error": "", "kept": False}
    pd.DataFrame([row]).to_csv(tmp_path / "shard.csv", index=False)
    (tmp_path / "run").mkdir()
    (tmp_path / "metrics.json").write_text('{"valid/seg/dice": 0.5}')
    code = f"""
from cyto_dl.steps import choose_step, collect_step, plan_step

bundle = {str(ROOT / "examples/bundles/nuclei")!r}
assert len(plan_step("manifest.csv", bundle, "out", num_shards=2, plan_dir="plan")) == 2
collect_step(["shard.csv"], "out", table_path="table.csv", metrics_path="counts.json")
choose_step(["run"], ["metrics.json"], [[]], metric="", mode="max", model_dir="best", table_path="variants.csv",
            metrics_path="chosen.json")
"""
    assert loaded(code, tmp_path) == []
    assert (tmp_path / "best").is_dir()
