"""What is told of jobs: to a client that asks twice, to the metrics and to the log."""

import asyncio

from tests.serving.conftest import client_of, make_predictor
from tests.serving.jobs.conftest import JOBS, PATIENCE_S, running, until
from tests.serving.wire import npy


def test_a_job_of_an_id_that_is_here_already_is_not_taken_again(serve, image):
    identity, content = "0123456789abcdef" * 2, npy(image(2))

    async def talk():
        async with client_of(serve(max_jobs=1)) as client:
            asked = [client.post(JOBS, content=content, headers={"X-Job-Id": identity}) for _ in range(3)]
            answers = await asyncio.gather(*asked)
            other = await client.post(JOBS, content=content, headers={"X-Job-Id": identity, "X-Outputs": "seg"})
            image_of_another = npy(image(2) + 1)
            another = await client.post(JOBS, content=image_of_another, headers={"X-Job-Id": identity})
            forged = await client.post(JOBS, content=content, headers={"X-Job-Id": "../x"})
            return answers, (other, another), forged, (await client.get(JOBS)).json()["jobs"]

    answers, other, forged, listed = asyncio.run(talk())
    assert {(answer.status_code, answer.json()["id"]) for answer in answers} == {(202, identity)}
    assert [each["id"] for each in listed] == [identity]
    for refused in (*other, forged):
        assert (refused.status_code, "X-Job-Id" in refused.json()["error"]) == (400, True)


def test_metrics_and_log_tell_of_jobs_as_of_requests(serve, image, dims, caplog):
    caplog.set_level("INFO")
    network = make_predictor(dims).network
    training = {"p1": 0, "p50": 10, "p99": 20}
    size = {"min": [1] * dims, "max": [64] * dims}
    metadata = {"fingerprint": {"columns": {"raw": {"intensity": training, "size": size}}}}
    server = serve(dims, network=network, metadata=metadata)

    async def talk():
        async with running(server) as client:
            answer = await client.post(JOBS, content=npy(image(dims)), headers={"X-Request-Id": "mine"})
            await until(client, answer.headers["location"], "succeeded", "failed")
            async with asyncio.timeout(PATIENCE_S):
                while 'protocol="job"' not in (told := (await client.get("/metrics")).text):
                    await asyncio.sleep(0.01)
            return told

    told = asyncio.run(talk())
    assert 'cyto_dl_jobs{model="cells",state="succeeded"} 1.0' in told
    assert 'cyto_dl_requests_total{model="cells",protocol="job",status="succeeded"} 1.0' in told
    assert 'cyto_dl_request_seconds_count{model="cells",protocol="job",status="succeeded"} 1.0' in told
    assert "cyto_dl_wait_seconds_count" not in told  # what requests wait is not what jobs do
    assert 'cyto_dl_drift_score_count{model="cells",quantity="intensity"} 1.0' in told
    assert f'cyto_dl_voxels_total{{model="cells"}} {float(image(dims).size)}' in told
    lines = [record for record in caplog.records if record.__dict__.get("request_id") == "mine"]
    states = [record.fields["state"] for record in lines if "state" in record.fields]
    assert states == ["queued", "running", "succeeded"]
    (ended,) = [record.fields for record in lines if record.fields.get("protocol") == "job"]
    assert ended["version"] == "0123456789ab"
    assert ended["windows"] > 1
    assert "intensity" in ended["drift"]
