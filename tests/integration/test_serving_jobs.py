"""A server that reads from and writes to a real object store, and that is killed while it computes a job."""

import signal
import time
from pathlib import Path

import numpy as np
import pytest

from cyto_dl.data.image import read_image, write_image
from cyto_dl.storage import upload
from tests.serving.process import PATIENCE_S, ROOT, started, wait_until_ready

pytestmark = pytest.mark.integration
BUNDLE = str(ROOT / "examples/bundles/nuclei")
JOBS, PREDICT = "/v2/models/first/jobs", "/v1/models/first:predict"
SPACING = (0.5, 0.25)


@pytest.fixture
def arguments(bucket, tmp_path):
    """What the operator says: plates may be read, results written, jobs kept."""
    (tmp_path / "jobs").mkdir()
    words = ["--allow-read", f"s3://{bucket.name}/plates", "--allow-write", f"s3://{bucket.name}/results"]
    return [*words, "--allow-write", str(tmp_path / "results"), "--jobs", str(tmp_path / "jobs")]


def put_image(bucket, tmp_path, repeats):
    image = np.tile(np.random.default_rng(0).integers(0, 255, (1, 256, 256), np.uint8), (1, repeats, repeats))
    write_image(tmp_path / "a.ome.tif", image, spacing_um=SPACING)
    uri = f"s3://{bucket.name}/plates/a.ome.tif"
    upload(tmp_path / "a.ome.tif", uri)
    return uri, (tmp_path / "a.ome.tif").read_bytes()


def until(server, location, is_reached):
    deadline = time.monotonic() + PATIENCE_S
    while not is_reached(job := server.call("GET", location).json()):
        assert time.monotonic() < deadline, job
        time.sleep(0.05)
    return job


def names(bucket, prefix):
    return sorted(each.key.removeprefix(prefix) for each in bucket.objects.filter(Prefix=prefix))


def test_an_image_in_a_bucket_is_predicted_into_a_bucket_and_no_other(bucket, tmp_path, arguments):
    uri, content = put_image(bucket, tmp_path, 1)
    with started(f"first={BUNDLE}", tmp_path / "log", arguments=arguments) as server:
        wait_until_ready(server, "first")
        document = {"image_uri": uri, "output_uri": f"s3://{bucket.name}/results/a/"}
        answer = server.call("POST", PREDICT, json=document)
        assert answer.status_code == 200, answer.text
        sent = server.call("POST", PREDICT, content=content, headers={"Accept": "image/tiff"})
        (output,) = answer.json()["outputs"]
        written = read_image(output["uri"], spatial_dims=2)
        (tmp_path / "sent.ome.tif").write_bytes(sent.content)
        np.testing.assert_array_equal(written.array, read_image(tmp_path / "sent.ome.tif", spatial_dims=2).array)
        assert written.spacing_um == pytest.approx(SPACING)
        for key, address in (("image_uri", f"s3://{bucket.name}/plates2/a"), ("output_uri", f"s3://{bucket.name}/x")):
            refused = server.call("POST", PREDICT, json=document | {key: address})
            assert refused.status_code == 403, refused.text
            assert bucket.name not in refused.text
        missing = server.call("POST", PREDICT, json={"image_uri": f"s3://{bucket.name}/plates/none.tif"})
        assert missing.status_code == 400, missing.text
    assert names(bucket, "results/") == [f"a/{output['name']}.ome.tif"]


# the job that is posted has its result among the jobs
@pytest.mark.parametrize(
    ("place", "ending"), [("bucket", signal.SIGKILL), ("folder", signal.SIGKILL), ("folder", signal.SIGTERM)]
)
def test_a_job_whose_server_ends_is_computed_by_the_next_one(bucket, tmp_path, arguments, place, ending):
    uri, content = put_image(bucket, tmp_path, 2)  # nine windows: some seconds
    output = {"bucket": f"s3://{bucket.name}/results/a", "folder": f"{tmp_path}/results/a"}[place]
    with started(f"first={BUNDLE}", tmp_path / "log", arguments=arguments) as server:
        wait_until_ready(server, "first")
        document = {"image_uri": uri, "output_uri": output}
        location = server.call("POST", JOBS, json=document).headers["location"]
        posted = server.call("POST", JOBS, content=content).headers["location"]  # this one waits
        begun = until(server, location, lambda job: job["progress"]["windows"] > 0)
        server.process.send_signal(ending)
        assert server.process.wait(PATIENCE_S) == (0 if ending == signal.SIGTERM else -ending)
    assert begun["state"] == "running"
    assert visible(bucket, tmp_path) == []
    with started(f"first={BUNDLE}", tmp_path / "log2", arguments=arguments) as server:
        wait_until_ready(server, "first")
        jobs = [
            until(server, each, lambda job: job["state"] not in ("queued", "running")) for each in (location, posted)
        ]
        assert [job["state"] for job in jobs] == ["succeeded", "succeeded"], jobs
        arrays = [result(server, job, tmp_path) for job in jobs]
        listed = server.call("GET", JOBS).json()["jobs"]
    np.testing.assert_array_equal(*arrays)
    assert len(listed) == 2
    assert len(visible(bucket, tmp_path)) == 2


def visible(bucket, tmp_path):
    """Every result, wherever it lies, that somebody could take for a whole one."""
    local = [*tmp_path.glob("results/**/[!.]*.tif"), *tmp_path.glob("jobs/*/results/[!.]*.tif")]
    return [*names(bucket, "results/"), *(str(path) for path in local)]


def result(server, job, tmp_path):
    (output,) = job["outputs"]
    if not output["uri"].startswith("/v2/"):
        return read_image(output["uri"], spatial_dims=2).array
    path = Path(tmp_path / f"{job['id']}.ome.tif")
    path.write_bytes(server.call("GET", output["uri"]).content)
    return read_image(path, spatial_dims=2).array
