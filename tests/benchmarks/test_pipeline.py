"""The probe of the pipeline's benchmark tells what a process cost and loaded; the table marks what it should not."""

import json
import os
import subprocess
import sys

from benchmarks.speed.pipeline import PROBE, ROOT, table

STEP = ["--function_to_execute", "collect"]  # as KFP's executor is told


def test_a_process_says_its_step_its_time_and_its_libraries(tmp_path):
    environment = os.environ | {"PYTHONPATH": f"{PROBE}{os.pathsep}{ROOT}", "CYTO_DL_PROBE": str(tmp_path)}
    subprocess.run(
        [sys.executable, "-c", "sum(range(10**6)); import cyto_dl, pandas", *STEP], env=environment, check=True
    )
    (found,) = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    assert (found["step"], found["libraries"]) == ("collect", ["pandas"])
    assert 0 < found["start_cpu_seconds"] < found["cpu_seconds"]


def test_a_process_without_the_variable_writes_nothing(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "CYTO_DL_PROBE"}
    environment["PYTHONPATH"] = str(PROBE)
    subprocess.run([sys.executable, "-c", "pass"], env=environment, cwd=tmp_path, check=True)
    assert not list(tmp_path.iterdir())


def test_the_table_marks_a_light_step_that_loads_torch():
    def step(name):
        return {"step": name, "cpu_seconds": 1.0, "start_cpu_seconds": 0.1, "libraries": ["torch"]}

    of = {"cpu_seconds": 3.0, "ratio": 0.9, "overhead_cpu_seconds": 0.3, "launcher_cpu_seconds": 0.1}
    shown = table({"training": of | {"steps": [step("train")]}, "batch_prediction": of | {"steps": [step("collect")]}})
    marked = [line.split()[0] for line in shown.splitlines() if "TORCH IN A LIGHT STEP" in line]
    assert marked == ["collect"]
