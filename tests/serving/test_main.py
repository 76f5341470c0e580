import subprocess
import sys

import pytest

from serving.__main__ import main, parse_arguments


def test_help_needs_neither_torch_nor_kserve():
    script = "import sys, serving.__main__; print(sorted({'torch', 'kserve', 'monai', 'fastapi'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"


def test_the_command_line_knows_kserves_names():
    ports = ["--http_port", "1", "--grpc_port", "2"]
    targets = ["--allow-target", "a.B", "--allow-target", "c.D"]
    options = parse_arguments(["--bundle", "b", "--model_name", "nuclei", *ports, *targets])
    assert vars(options) == {
        "bundle": "b",
        "model_name": "nuclei",
        "http_port": 1,
        "grpc_port": 2,
        "allow_target": ["a.B", "c.D"],
    }


@pytest.mark.parametrize("arguments", [[], ["--bundle", "b", "--workers", "4"], ["--bundle", "b", "--http_port", "x"]])
def test_a_wrong_command_line_is_exit_code_2(arguments):
    with pytest.raises(SystemExit) as exit_info:
        parse_arguments(arguments)
    assert exit_info.value.code == 2


def test_a_missing_bundle_is_exit_code_2_and_one_message(tmp_path, capsys):
    assert main(["--bundle", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
