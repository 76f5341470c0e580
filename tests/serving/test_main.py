import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cyto_dl.bundle import engines
from cyto_dl.errors import ConfigError
from serving.__main__ import choose_ports, main
from serving.settings import ENGINES, RUNNING, parse_arguments

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--max-running", "x"], "'x' is no whole number"),
        (["--drain-s", "soon"], "'soon' is no whole number"),
        (["--max-message-mib", "2048"], "--max-message-mib is 2047 at most"),
        (["--model_name", "a/b"], "'a/b' cannot name a model"),
        (["--bundle", "bad name=runs/a"], "'bad name' cannot name a model"),
        (["--bundle", "=runs/a"], "'' cannot name a model"),
        (["--cors-origin", "viewer.example.org"], "'viewer.example.org' is no origin"),
        (["--allow-target", "not a name"], "'not a name' is no dotted name"),
        (["--engine", "torhc"], "choose from"),
        (["--repository", "models"], "--repository needs --admin-token-file"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_accepted(arguments, says, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse_arguments(["--bundle", "b", *arguments], None)
    assert exit_info.value.code == 2
    assert says in capsys.readouterr().err


def test_the_engines_are_those_that_bundles_know():
    assert (*engines.ENGINES, engines.AUTO) == ENGINES


def test_what_is_not_there_is_said_before_torch_is_imported(tmp_path):
    bundle = str(ROOT / "examples/bundles/nuclei")
    code = (
        "import sys\nfrom serving.__main__ import main\n"
        "print(main(sys.argv[1:]), 'torch' in sys.modules, 'kserve' in sys.modules)\n"
    )
    (tmp_path / "file").touch()
    for arguments, says in (
        (["--bundle", str(tmp_path / "nowhere")], "nowhere"),
        (["--bundle", bundle, "--bundle", bundle], "two bundles have the same name"),
        (["--bundle", bundle, "--token-file", str(tmp_path / "none")], "none"),
        (["--bundle", bundle, "--allow-read", "data"], "--allow-read"),
        (["--bundle", bundle, "--jobs", str(tmp_path / "file" / "jobs")], "jobs"),
    ):
        command = [sys.executable, "-c", code, *arguments, "--http_port", "0", "--grpc_port", "0"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert ended.stdout.split()[:2] == ["2", "False"], ended.stdout
        assert says in ended.stderr, arguments


def test_a_faulty_start_is_told_in_json_where_the_log_is(tmp_path):
    arguments = ["--bundle", str(tmp_path / "nowhere"), "--http_port", "0", "--grpc_port", "0", "--log-format", "json"]
    ended = subprocess.run([sys.executable, "-m", "serving", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    (line,) = (ended.stdout + ended.stderr).splitlines()
    assert (json.loads(line)["level"], "nowhere" in line) == ("ERROR", True)


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
        choose_ports(grpc_port=port)


def test_the_two_ports_must_differ(free_port):
    with pytest.raises(ConfigError, match="--grpc_port"):
        choose_ports(http_port=free_port, grpc_port=free_port)


def test_a_missing_bundle_is_exit_code_2_and_one_message(tmp_path, capsys):
    assert main(["--bundle", str(tmp_path / "nowhere"), "--http_port", "0", "--grpc_port", "0"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_port_0_becomes_a_port_that_is_free():
    chosen = choose_ports(http_port=0, grpc_port=0)
    assert min(chosen.values()) > 0
    assert chosen["http_port"] != chosen["grpc_port"]


def test_a_token_that_can_be_guessed_is_refused_and_not_shown(tmp_path, capsys):
    tokens = tmp_path / "tokens"
    tokens.write_text("sesame\n")
    arguments = ["--bundle", str(tmp_path), "--token-file", str(tokens), "--http_port", "0", "--grpc_port", "0"]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "16" in message
    assert "sesame" not in message
