import socket
import subprocess
import sys

import pytest

from cyto_dl.errors import ConfigError
from serving.__main__ import check_ports, main
from serving.settings import parse_arguments


def test_help_needs_neither_torch_nor_kserve():
    script = "import sys, serving.__main__; print(sorted({'torch', 'kserve', 'monai', 'fastapi'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"


def test_the_command_line_knows_kserves_names():
    ports = ["--http_port", "1", "--grpc_port", "2"]
    targets = ["--allow-target", "a.B", "--allow-target", "c.D"]
    options = parse_arguments(["--bundle", "b", "--model_name", "nuclei", *ports, *targets], None)
    assert vars(options) == {
        "bundle": "b",
        "model_name": "nuclei",
        "http_port": 1,
        "grpc_port": 2,
        "engine": "torch",
        "allow_target": ["a.B", "c.D"],
        "max_running": 4,
        "max_waiting": 16,
        "timeout_s": 300,
    }


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--bundle", "b", "--workers", "4"],
        ["--bundle", "b", "--http_port", "x"],
        ["--bundle", "b", "--max-waiting", "0"],
    ],
)
def test_a_wrong_command_line_is_exit_code_2(arguments):
    with pytest.raises(SystemExit) as exit_info:
        parse_arguments(arguments, None)
    assert exit_info.value.code == 2


@pytest.fixture
def free_port():
    with socket.create_server(("", 0)) as listener:
        return listener.getsockname()[1]


def test_a_port_that_is_taken_is_reported_before_the_bundle_is_read(tmp_path, capsys):
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        assert main(["--bundle", str(tmp_path / "nowhere"), "--http_port", str(port)]) == 2
    assert f"--http_port {port}" in capsys.readouterr().err


@pytest.mark.parametrize("port", [-1, 65536])
def test_what_is_no_port_is_refused(port):
    with pytest.raises(ConfigError, match=f"--grpc_port {port}"):
        check_ports(grpc_port=port)


def test_the_two_ports_must_differ(free_port):
    with pytest.raises(ConfigError, match="--grpc_port"):
        check_ports(http_port=free_port, grpc_port=free_port)


def test_a_missing_bundle_is_exit_code_2_and_one_message(tmp_path, capsys):
    assert main(["--bundle", str(tmp_path / "nowhere"), "--http_port", "0", "--grpc_port", "0"]) == 2
    assert "nowhere" in capsys.readouterr().err
