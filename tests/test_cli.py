"""The `cyto-dl` command hands over to hydra so that what starts from its command line still works."""

import sys
from pathlib import Path

import pytest

from cyto_dl import cli


@pytest.mark.parametrize("command", ["train", "eval"])
def test_the_other_processes_of_a_distributed_run_find_the_script_that_hydra_was_given(command, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "argv", ["cyto-dl"])
    monkeypatch.setattr(f"cyto_dl.{command}.main", lambda: seen.extend(sys.argv))
    cli.main([command, "trainer=ddp_sim"])
    assert Path(seen[0]).is_file() and Path(seen[0]).name == f"{command}.py"  # Lightning runs `python argv[0] argv[1:]`
    assert seen[1:] == ["trainer=ddp_sim"]
