"""Jobs and addresses through the client: what `predict` gives, without an open connection."""

import re

import numpy as np
import pytest
import requests

from cyto_dl import cli
from cyto_dl.client import Client
from cyto_dl.data.image import Image, read_image, write_image
from cyto_dl.errors import ConfigError, ImageError
from serving.jobs.folder import JobFolder
from serving.jobs.queue import JobQueue
from serving.limits import DEFAULTS
from serving.references.addresses import Addresses
from tests.client.conftest import listening


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder that clients of the server may name."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def working(place, tmp_path_factory):
    """A server that takes jobs."""
    addresses, folder = Addresses((str(place),), (str(place / "out"),)), JobFolder(tmp_path_factory.mktemp("jobs"))

    def open_jobs(models):
        return JobQueue(folder, models, limits=DEFAULTS, addresses=addresses)

    with listening(2, 3, addresses=addresses, open_jobs=open_jobs) as server:
        yield server


def image_of(dims):
    return np.random.default_rng(0).integers(0, 4000, (1, *(7, 21, 18)[-dims:]), np.uint16)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_job_gives_what_a_prediction_gives(working, dims):
    client = Client(working.http, f"cells_{dims}")
    image = Image(image_of(dims), (0.5, 0.25, 0.25)[-dims:], "a")
    job = client.submit(image, ["seg"], {"overlap": 0.5})
    result = job.result()
    assert job.state == "succeeded"
    assert job.progress[0] == job.progress[1] > 1
    wanted = client.predict(image, ["seg"], {"overlap": 0.5})
    assert list(result) == ["seg"]
    np.testing.assert_array_equal(result["seg"], wanted["seg"])


@pytest.mark.parametrize("dims", [2, 3])
def test_an_address_gives_what_its_image_gives_with_and_without_a_job(working, place, dims):
    client, path = Client(working.http, f"cells_{dims}"), place / f"{dims}.ome.tif"
    write_image(path, image_of(dims))
    wanted = client.predict(image_of(dims))
    for result in (client.predict(str(path)), client.submit(str(path)).result()):
        assert set(result) == {"seg", "distance"}
        for head, array in result.items():
            np.testing.assert_array_equal(array, wanted[head])
    output = f"{place}/out/{dims}"
    written = [ask(str(path), ["seg"], output_uri=output) for ask in (client.predict, client.submit)]
    assert written[0] == written[1].result() == {"seg": f"{output}/seg.ome.tif"}
    np.testing.assert_array_equal(read_image(written[0]["seg"], spatial_dims=dims).array, wanted["seg"])


def test_a_job_is_taken_up_again_by_another_client_until_it_is_forgotten(working):
    first = Client(working.http, "cells_2").submit(image_of(2))
    second = Client(working.http, "cells_2").job(first.id).wait(progress=True)
    assert second.state == "succeeded"
    assert set(second.result()) == {"seg", "distance"}
    second.cancel()
    with pytest.raises(ConfigError, match="no job"):
        first.refresh()


def test_a_job_whose_answer_was_lost_is_not_computed_twice(working, monkeypatch):
    monkeypatch.setattr("cyto_dl.client.patience._FIRST_PAUSE_S", 0.01)
    send, lost = requests.Session.request, []

    def lose_the_first(session, method, url, **content):
        answer = send(session, method, url, **content)
        if method == "POST" and not lost:
            lost.append(answer.json()["id"])
            raise requests.exceptions.ConnectionError("the connection broke")
        return answer

    monkeypatch.setattr(requests.Session, "request", lose_the_first)
    job = Client(working.http, "cells_2").submit(image_of(2))
    assert lost == [job.id]
    listed = requests.get(f"{working.http}/v2/models/cells_2/jobs", timeout=60).json()["jobs"]
    assert [each["id"] for each in listed].count(job.id) == 1
    job.result()


def test_a_job_that_failed_or_was_cancelled_says_so(working, place):
    client = Client(working.http, "cells_2")
    with pytest.raises(ImageError, match=r"job .* failed: .*no file"):
        client.submit(f"{place}/none.tif").result()
    with pytest.raises(ConfigError, match="Ask its operator"):
        client.submit("/etc/passwd")
    with pytest.raises(ConfigError, match="no job"):
        client.job("x")


def test_jobs_and_addresses_are_not_asked_for_over_grpc(working):
    client = Client(working.grpc, "cells_2")
    for ask in (client.submit, client.predict, client.job):
        with pytest.raises(ConfigError, match="http://"):
            ask("/a.tif")


def test_a_server_without_jobs_says_so(served):
    with pytest.raises(ConfigError, match="takes no jobs"):
        Client(served.http, "cells_2").submit(image_of(2))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_command_line_submits_images_and_takes_jobs_up_again(working, place, tmp_path, capsys, dims):
    path, asked = tmp_path / "a.ome.tif", ["predict", "--endpoint", working.http, "--model", f"cells_{dims}", "--job"]
    for each in (path, place / f"b{dims}.ome.tif"):
        write_image(each, image_of(dims), spacing_um=(0.5, 0.25, 0.25)[-dims:])
    cli.main([*asked, str(path), f"file://{place}/b{dims}.ome.tif", "--output", str(tmp_path / "first")])
    (identity,) = re.findall(r"job (\w{32}): .*/a\.ome\.tif", capsys.readouterr().out)
    cli.main([*asked, identity, "--output", str(tmp_path / "second")])
    wanted = Client(working.http, f"cells_{dims}").predict(image_of(dims))
    for name in ("first/{}/a", f"first/{{}}/b{dims}", f"second/{{}}/{identity}"):
        for head, array in wanted.items():
            found = read_image(tmp_path / f"{name.format(head)}.ome.tif", spatial_dims=dims)
            np.testing.assert_array_equal(found.array, array)
            assert found.spacing_um == pytest.approx((0.5, 0.25, 0.25)[-dims:])  # float32 in the file
    with pytest.raises(SystemExit) as end:
        cli.main([*asked, f"file://{place}/none.tif", "--output", str(tmp_path / "third")])
    assert end.value.code == 2
    assert "1 of 1 jobs gave no result" in capsys.readouterr().err
