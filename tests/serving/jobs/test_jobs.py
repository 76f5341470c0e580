"""Jobs: taken, computed one after the other, cancelled, kept over the end of a server."""

import asyncio
import dataclasses
import io
import json

import numpy as np
import pytest

from cyto_dl.data.image import read_image, write_image
from cyto_dl.errors import ConfigError
from serving.jobs.folder import QUEUED, RUNNING, JobFolder, new_job
from serving.jobs.queue import MAX_STARTS, computing
from tests.serving.conftest import ask, client_of, make_predictor
from tests.serving.jobs.conftest import JOBS, PATIENCE_S, HeldNetwork, running, until
from tests.serving.wire import npy


def records(tmp_path):
    return [json.loads(path.read_text()) for path in (tmp_path / "jobs").glob("*/job.json")]


def leave_unfinished(tmp_path, content, **changes):
    """What a server that was killed leaves; the job's id."""
    folder = JobFolder(tmp_path / "jobs")
    job = dataclasses.replace(new_job("cells", {"outputs": ["seg"]}), **changes)
    folder.add(job, content)
    return job.id


def test_a_posted_file_is_computed_and_its_results_are_fetched(serve, image, dims, tmp_path):
    server = serve(dims)

    async def talk():
        async with running(server) as client:
            answer = await client.post(JOBS, content=npy(image(dims)), params={"overlap": "0.5"})
            assert answer.status_code == 202, answer.text
            assert answer.headers["location"] == f"{JOBS}/{answer.json()['id']}"
            job = await until(client, answer.headers["location"], "succeeded", "failed")
            which = await client.get(f"{answer.headers['location']}/result")
            files = {each["name"]: (await client.get(each["uri"])).content for each in job["outputs"]}
        return job, which, files

    job, which, files = asyncio.run(talk())
    assert job["progress"]["windows"] == job["progress"]["of"] > 1
    assert which.status_code == 400 and "seg" in which.json()["error"]
    sent = ask(server, "POST", "/v1/models/cells:predict", content=npy(image(dims)), params={"overlap": "0.5"})
    wanted = np.load(io.BytesIO(sent.content))
    for head, content in files.items():
        (tmp_path / f"{head}.ome.tif").write_bytes(content)
        np.testing.assert_array_equal(read_image(tmp_path / f"{head}.ome.tif", spatial_dims=dims).array, wanted[head])
    assert not list((tmp_path / "jobs").glob("*/input"))


def test_an_image_at_an_address_is_computed_into_another(serve, image, tmp_path):
    write_image(tmp_path / "a.ome.tif", image(2))
    document = {"image_uri": f"{tmp_path}/a.ome.tif", "output_uri": f"{tmp_path}/out", "outputs": ["seg"]}

    async def talk():
        async with running(serve()) as client:
            location = (await client.post(JOBS, json=document)).headers["location"]
            job = await until(client, location, "succeeded", "failed")
            return job, (await client.get(f"{location}/result")).status_code

    job, status = asyncio.run(talk())
    assert [each["uri"] for each in job["outputs"]] == [f"{tmp_path}/out/seg.ome.tif"]
    assert (tmp_path / "out/seg.ome.tif").is_file()
    assert status == 409


def test_progress_counts_the_views_of_augmentation(serve, image):
    network = HeldNetwork(make_predictor(2).network)

    async def talk():
        async with running(serve(network=network)) as client:
            location = (await client.post(JOBS, content=npy(image(2)), params={"augment": "flips"})).headers["location"]
            await asyncio.to_thread(network.entered.acquire, timeout=PATIENCE_S)
            begun = (await client.get(location)).json()
            network.released.set()
            return begun, await until(client, location, "succeeded", "failed")

    begun, ended = asyncio.run(talk())
    assert begun["state"] == "running"
    assert begun["progress"] == {"windows": 0, "of": 4 * 4}  # 2 x 2 windows, 4 views
    assert ended["progress"] == {"windows": 16, "of": 16}


def test_a_running_job_and_a_waiting_one_are_cancelled(serve, image, tmp_path):
    network = HeldNetwork(make_predictor(2).network)

    async def talk():
        async with running(serve(network=network)) as client:
            first, second = [(await client.post(JOBS, content=npy(image(2)))).headers["location"] for _ in range(2)]
            await asyncio.to_thread(network.entered.acquire, timeout=PATIENCE_S)
            states = [(await client.delete(location)).json()["state"] for location in (first, second)]
            network.released.set()
            third = (await client.post(JOBS, content=npy(image(2)))).headers["location"]
            job = await until(client, third, "succeeded", "failed")
            listed = (await client.get(JOBS)).json()["jobs"]
            assert (await client.delete(third)).status_code == 200
            told = (await client.get("/metrics")).text
            return states, job, listed, (await client.get(third)).status_code, told

    states, job, listed, status, told = asyncio.run(talk())
    assert states == ["cancelled", "cancelled"]
    assert job["state"] == "succeeded"
    assert [each["state"] for each in listed] == ["cancelled", "cancelled", "succeeded"]
    assert 'cyto_dl_requests_total{model="cells",protocol="job",status="cancelled"} 2.0' in told
    assert status == 404
    assert {each["state"] for each in records(tmp_path)} == {"cancelled"}


def test_requests_are_answered_while_a_job_is_computed(serve, image):
    """The windows of a request do not wait for the end of a job: only for the job's window that is computed."""
    network = HeldNetwork(make_predictor(2).network)
    large = np.tile(image(2), (1, 4, 4))

    server = serve(network=network)

    async def talk():
        async with running(server) as client:
            location = (await client.post(JOBS, content=npy(large))).headers["location"]
            await asyncio.to_thread(network.entered.acquire, timeout=PATIENCE_S)
            request = asyncio.create_task(client.post("/v1/models/cells:predict", content=npy(image(2))))
            async with asyncio.timeout(PATIENCE_S):
                while not server.executor.device._waiting:  # its windows wait behind the job's
                    await asyncio.sleep(0.01)
            network.released.set()
            answer = await request
            return answer.status_code, (await client.get(location)).json()["progress"]

    status, progress = asyncio.run(talk())
    assert status == 200
    assert progress["windows"] < progress["of"]


@pytest.mark.parametrize("state", [QUEUED, RUNNING])
def test_a_job_that_a_killed_server_left_is_computed_anew(serve, image, tmp_path, state):
    identity = leave_unfinished(tmp_path, npy(image(2)), state=state, num_starts=1)
    (tmp_path / "jobs" / identity / ".results.x").mkdir()  # what it was writing
    (tmp_path / "jobs" / ("0" * 32)).mkdir()  # a job that its client never heard of

    async def talk():
        async with running(serve()) as client:
            job = await until(client, f"{JOBS}/{identity}", "succeeded", "failed")
            return job, (await client.get(job["outputs"][0]["uri"])).status_code

    job, status = asyncio.run(talk())
    assert (job["state"], status) == ("succeeded", 200)
    folders = [path for path in (tmp_path / "jobs").iterdir() if path.is_dir()]
    assert [path.name for path in folders] == [identity]
    assert sorted(path.name for path in folders[0].iterdir()) == ["job.json", "results"]


def test_a_job_that_ends_the_server_again_and_again_fails(serve, image, tmp_path):
    identity = leave_unfinished(tmp_path, npy(image(2)), state=RUNNING, num_starts=MAX_STARTS)

    async def talk():
        async with running(serve()) as client:
            return await until(client, f"{JOBS}/{identity}", "succeeded", "failed")

    job = asyncio.run(talk())
    assert job["state"] == "failed"
    assert "3 times" in job["error"]


def test_a_server_that_stops_in_good_order_leaves_its_job_to_the_next(serve, image, tmp_path):
    network = HeldNetwork(make_predictor(2).network)

    async def begin():
        async with running(serve(network=network)) as client:
            location = (await client.post(JOBS, content=npy(image(2)))).headers["location"]
            await asyncio.to_thread(network.entered.acquire, timeout=PATIENCE_S)
            return location

    async def go_on(location):
        async with running(serve()) as client:
            return await until(client, location, "succeeded", "failed")

    location = asyncio.run(begin())
    network.released.set()
    assert [(each["state"], each["num_starts"]) for each in records(tmp_path)] == [("queued", 0)]
    assert asyncio.run(go_on(location))["state"] == "succeeded"


def test_a_server_that_is_about_to_stop_answers_requests_and_computes_no_more_jobs(serve, image, tmp_path):
    network = HeldNetwork(make_predictor(2).network)

    async def talk():
        server = serve(network=network)
        async with client_of(server) as client, computing(server.jobs) as stop_jobs:
            first = (await client.post(JOBS, content=npy(image(2)))).headers["location"]
            await asyncio.to_thread(network.entered.acquire, timeout=PATIENCE_S)
            stop_jobs()
            network.released.set()
            second = (await client.post(JOBS, content=npy(image(2)))).headers["location"]
            assert (await client.post("/v1/models/cells:predict", content=npy(image(2)))).status_code == 200
            return [(await client.get(location)).json()["state"] for location in (first, second)]

    assert asyncio.run(talk()) == ["queued", "queued"]
    assert [(each["state"], each["num_starts"]) for each in records(tmp_path)] == [("queued", 0)] * 2


def test_a_job_that_is_cancelled_tells_how_far_it_was(serve, image):
    network = HeldNetwork(make_predictor(2).network)
    network.released.set()

    async def talk():
        async with running(serve(network=network)) as client:
            location = (await client.post(JOBS, content=npy(image(2)))).headers["location"]
            await asyncio.to_thread(network.entered.acquire, timeout=PATIENCE_S)
            network.released.clear()  # some batch after the first is held
            told = (await client.delete(location)).json()["progress"]
            network.released.set()
            return told, (await client.get(location)).json()["progress"]

    told, later = asyncio.run(talk())
    assert later["windows"] == told["windows"]
    assert later["of"] is None  # it is not known any more


def test_a_job_whose_model_is_gone_is_reported(serve, image, tmp_path):
    identity = leave_unfinished(tmp_path, npy(image(2)))

    async def talk():
        async with running(serve(serves=False)) as client:
            return await until(client, f"{JOBS}/{identity}", "succeeded", "failed")

    job = asyncio.run(talk())
    assert (job["state"], "not served" in job["error"]) == ("failed", True)


def test_a_job_that_fails_says_why_and_shows_no_path(serve, image, tmp_path):
    write_image(tmp_path / "stack.tif", np.zeros((1, 3, 20, 20), np.uint8))
    (tmp_path / "out").write_text("a file where the folder should be")
    write_image(tmp_path / "a.tif", image(2))

    async def talk():
        async with running(serve()) as client:
            jobs = []
            for document in (
                {"image_uri": f"{tmp_path}/none.tif"},
                {"image_uri": f"{tmp_path}/stack.tif"},
                {"image_uri": f"{tmp_path}/a.tif", "output_uri": f"{tmp_path}/out"},
            ):
                location = (await client.post(JOBS, json=document)).headers["location"]
                jobs.append(await until(client, location, "succeeded", "failed"))
            return jobs

    missing, stack, unwritable = asyncio.run(talk())
    assert [job["state"] for job in (missing, stack, unwritable)] == ["failed"] * 3
    assert "no file" in missing["error"]
    assert "2-D" in stack["error"]
    assert "(id " in unwritable["error"]
    assert str(tmp_path) not in json.dumps([missing, stack, unwritable])


def test_more_jobs_than_may_wait_are_refused(serve, image):
    async def talk():
        async with client_of(serve(max_jobs=2)) as client:  # nobody computes them
            return [await client.post(JOBS, content=npy(image(2))) for _ in range(3)]

    answers = asyncio.run(talk())
    assert [answer.status_code for answer in answers] == [202, 202, 429]
    assert int(answers[2].headers["retry-after"]) > 0


def test_results_expire(serve, image, tmp_path):
    identity = leave_unfinished(tmp_path, None, state="succeeded", changed=0.0)

    async def talk():
        async with running(serve()) as client:
            async with asyncio.timeout(PATIENCE_S):
                while (await client.get(f"{JOBS}/{identity}")).status_code != 404:
                    await asyncio.sleep(0.01)

    asyncio.run(talk())
    assert records(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "status", "named"),
    [
        ({"json": {"instances": [[[1]]]}}, 400, "image_uri"),
        ({"json": {"image_uri": "/etc/passwd"}}, 403, "image_uri"),
        ({"json": {"image_uri": "{}/a.tif", "output_uri": "/etc"}}, 403, "output_uri"),
        ({"json": {"image_uri": "{}/a.tif", "outputs": ["no"]}}, 400, "outputs"),
        ({"json": {"image_uri": "{}/a.tif", "x": 1}}, 400, "x"),
        ({"content": b"no image"}, 400, "body"),
        ({"content": npy(np.zeros((1, 9, 9), np.uint8)), "params": {"timeout_s": "3"}}, 400, "timeout_s"),
        ({"content": npy(np.zeros((1, 9, 9), np.uint8)), "headers": {"X-Outputs": "no"}}, 400, "outputs"),
    ],
)
def test_a_wrong_job_is_refused_at_once(serve, tmp_path, content, status, named):
    if uri := content.get("json", {}).get("image_uri"):
        content["json"]["image_uri"] = uri.format(tmp_path)
    answer = ask(serve(), "POST", JOBS, **content)
    assert answer.status_code == status, answer.text
    assert named in answer.json()["error"]
    assert records(tmp_path) == []


def test_there_are_no_jobs_without_a_folder_for_them(send, image):
    answer = send("POST", "/v2/models/cells_2/jobs", content=npy(image(2)))
    assert answer.status_code == 403
    assert send("GET", "/v2/models/cells_2/jobs").status_code == 403


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_job_that_nobody_sent_is_404(serve, method):
    assert ask(serve(), method, f"{JOBS}/{'0' * 32}").status_code == 404


def test_a_folder_that_cannot_be_written_ends_the_start(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--jobs"):
        JobFolder(tmp_path / "file" / "jobs")
