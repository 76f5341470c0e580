"""`cyto-dl predict --endpoint`: the files, the table and the exit codes of a local prediction, without torch."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from cyto_dl import cli
from cyto_dl.data.image import read_image, write_image
from cyto_dl.inference import predict_images
from tests.client.conftest import TOKEN
from tests.serving.process import free_ports


@pytest.fixture
def images(tmp_path):
    """Writes two images of a number of dimensions."""

    def write(dims):
        rng, paths = np.random.default_rng(0), [tmp_path / f"{name}.ome.tif" for name in ("a", "b")]
        for path in paths:
            shape = (1, *(7, 21, 18)[-dims:])
            write_image(path, rng.integers(0, 4000, shape, np.uint16), spacing_um=(0.5, 0.25, 0.25)[-dims:])
        return paths

    return write


def ended(capsys, *arguments):
    """The exit code of a command, and what it said."""
    with pytest.raises(SystemExit) as end:
        cli.main(["predict", *map(str, arguments)])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return end.value.code, said


@pytest.mark.parametrize("dims", [2, 3])
def test_a_server_gives_the_files_and_the_table_of_a_local_prediction(served, images, tmp_path, capsys, dims):
    paths, name = images(dims), f"cells_{dims}"
    local = predict_images(served.predictors[name], paths, tmp_path / "local", progress=False)
    remote = tmp_path / "remote"
    cli.main(["predict", "--endpoint", served.http, "--model", name, *map(str, paths), "--output", str(remote)])
    assert f"2 of 2 images predicted into {remote}" in capsys.readouterr().out
    table = pd.read_csv(remote / "predictions.csv", keep_default_na=False)
    assert list(table) == list(local)
    for head in ("seg", "distance"):
        for path, other in zip(table[head], local[head], strict=True):
            got, wanted = (read_image(each, spatial_dims=dims) for each in (path, other))
            assert got.spacing_um == wanted.spacing_um and got.array.dtype == wanted.array.dtype
            np.testing.assert_array_equal(got.array, wanted.array)


def test_it_imports_no_torch_and_its_options_may_stand_anywhere(served, images, tmp_path):
    first, second = images(2)
    program = "import sys; from cyto_dl.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    arguments = [
        "predict",
        first,
        "--endpoint",
        served.http,
        second,
        "--output",
        tmp_path / "out",
        "--model",
        "cells_2",
    ]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True)
    assert (tmp_path / "out/seg/a.ome.tif").is_file() and (tmp_path / "out/seg/b.ome.tif").is_file()


def test_a_manifest_is_read_by_the_name_of_the_models_input(served, images, tmp_path):
    pd.DataFrame({"raw": [path.name for path in images(2)]}).to_csv(tmp_path / "images.csv", index=False)
    manifest = ["--manifest", str(tmp_path / "images.csv"), "--output", str(tmp_path / "out")]
    cli.main(["predict", "--endpoint", served.http, "--model", "cells_2", *manifest])
    assert len(list((tmp_path / "out/seg").iterdir())) == 2


def test_an_image_that_the_server_refuses_is_a_failed_row_and_the_others_go_on(served, images, tmp_path, capsys):
    good, bad = images(2)[0], tmp_path / "bad.npy"
    np.save(bad, np.full((20, 20), np.nan, np.float32))
    output = ["--output", tmp_path / "out"]
    code, said = ended(capsys, "--endpoint", served.http, "--model", "cells_2", bad, good, *output)
    assert code == 2 and "1 of 2 images could not be predicted" in said and "bad.npy: raw: " in said
    assert (tmp_path / "out/seg/a.ome.tif").is_file()


def test_a_token_comes_from_a_file(guarded, images, tmp_path, capsys):
    token, paths, output = tmp_path / "token", images(2), ["--output", str(tmp_path / "out")]
    token.write_text(f"{TOKEN}\n")
    cli.main(["predict", "--endpoint", guarded.http, "--token-file", str(token), *map(str, paths), *output])
    assert "2 of 2" in capsys.readouterr().out
    assert ended(capsys, "--endpoint", guarded.http, *paths, *output)[0] == 2
    token.write_text("two words")
    code, said = ended(capsys, "--endpoint", guarded.http, "--token-file", token, *paths, *output)
    assert code == 2 and "must hold one token" in said and "words" in said and "two words" not in said


def test_a_server_that_is_not_there_ends_with_the_code_of_the_unreachable(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cyto_dl.client.patience.time.sleep", lambda _: None)
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    code, said = ended(capsys, "--endpoint", url, *images(2), "--output", tmp_path / "out")
    assert code == 3 and f"{url} cannot be reached" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--endpoint", "http://host"], "give images or --manifest"),
        (["--endpoint", "http://host", "a.tif", "--device", "cuda"], "leave out --device: the server has chosen it"),
        (["--endpoint", "host:8080", "a.tif"], "begins with http://"),
        (["bundle", "a.tif", "--model", "nuclei"], "leave out --model: it is for --endpoint"),
        (["bundle", "a.tif", "--token-file", "token"], "leave out --token-file"),
        (["--endpoint", "http://host", "a.tif", "--token-file", "no/such"], "no/such cannot be read"),
        ([], "give a bundle or --endpoint"),
    ],
)
def test_options_that_do_not_go_together_are_refused(capsys, arguments, says):
    code, said = ended(capsys, *arguments)
    assert code == 2 and says in said
