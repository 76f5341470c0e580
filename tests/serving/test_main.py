import socket
import subprocess
import sys

import pytest

from cyto_dl.errors import ConfigError
from serving.__main__ import check_ports, main
from serving.settings import RUNNING, parse_arguments


def test_help_needs_neither_torch_nor_kserve():
    script = "import sys, serving.__main__; print(sorted({'torch', 'kserve', 'monai', 'fastapi'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"


def test_the_command_line_knows_kserves_names():
    ports = ["--http_port", "1", "--grpc_port", "2"]
    targets = ["--allow-target", "a.B", "--allow-target", "c.D"]
    options = parse_arguments(["--bundle", "b", "--model_name", "nuclei", *ports, *targets], None)
    assert vars(options) == {
        "bundle": [(None, "b")],
        "model_name": "nuclei",
        "repository": None,
        "http_port": 1,
        "grpc_port": 2,
        "engine": "torch",
        "device": "cpu",
        "allow_target": ["a.B", "c.D"],
        "max_running": RUNNING,
        "max_waiting": 16,
        "timeout_s": 300,
        "drain_s": 0,
        "max_body_mib": 256,
        "max_message_mib": 256,
        "max_buffered_mib": 1024,
        "max_voxels": 256_000_000,
        "allow_read": [],
        "allow_write": [],
        "jobs": None,
        "max_jobs": 100,
        "keep_jobs_h": 24,
        "token_file": None,
        "admin_token_file": None,
        "cors_origin": [],
        "drift": "warn",
        "log_format": "text",
    }


def test_bundles_may_have_names_and_addresses_equals_signs():
    bundles = ["nuclei=runs/a", "s3://models/k=v", "./k=v", "runs/b"]
    options = parse_arguments([word for bundle in bundles for word in ("--bundle", bundle)], None)
    named = [("nuclei", "runs/a"), (None, "s3://models/k=v"), (None, "./k=v"), (None, "runs/b")]
    assert options.bundle == named


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--bundle", "b", "--workers", "4"],
        ["--bundle", "b", "--http_port", "x"],
        ["--bundle", "b", "--max-waiting", "0"],
        ["--bundle", "b", "--drift", "hope"],
        ["--bundle", "a", "--bundle", "b", "--model_name", "both"],
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


def test_a_repository_without_an_operator_is_refused(tmp_path, capsys):
    arguments = ["--bundle", str(tmp_path), "--repository", str(tmp_path), "--http_port", "0", "--grpc_port", "0"]
    assert main(arguments) == 2
    assert "--admin-token-file" in capsys.readouterr().err


def test_a_token_that_can_be_guessed_is_refused_and_not_shown(tmp_path, capsys):
    tokens = tmp_path / "tokens"
    tokens.write_text("sesame\n")
    arguments = ["--bundle", str(tmp_path), "--token-file", str(tokens), "--http_port", "0", "--grpc_port", "0"]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "16" in message
    assert "sesame" not in message
