"""Images, manifests and bundles in a real S3 object store, through the commands and functions that users call."""

import shutil
import sys
import tempfile

import boto3
import numpy as np
import pandas as pd
import pytest
import tifffile

from cyto_dl.bundle import export_bundle, load_bundle
from cyto_dl.bundle.checkpoint import read_checkpoint
from cyto_dl.config import compose_experiment
from cyto_dl.data import read_image
from cyto_dl.errors import ManifestError, StorageError
from cyto_dl.inference import predict_images
from cyto_dl.steps import prepare_step
from cyto_dl.storage import localize
from cyto_dl.storage import upload as upload_file
from cyto_dl.train import train
from tests.bundle.tiny import checkpoint_of, experiment, write_images
from tests.integration.object_store import object_store
from tests.integration.process import run
from tests.serving.process import free_ports
from tests.test_train import assert_same_weights, overrides_for

pytestmark = pytest.mark.integration
CYTO_DL = [sys.executable, "-m", "cyto_dl.cli"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with object_store(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture
def bucket(store, monkeypatch, tmp_path):
    """A bucket of the test's own, which this process can reach; copies of objects live in a folder of its own."""
    for name in ("AWS_CA_BUNDLE", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in store.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CYTO_DL_S3_RETRY_S", "1")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers the keys of the test before
    (tmp_path / "copies").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "copies"))
    monkeypatch.setattr(tempfile, "tempdir", None)  # so that it looks at TMPDIR
    client = boto3.client("s3")
    name = f"lab-{len(client.list_buckets()['Buckets'])}"
    client.create_bucket(Bucket=name)
    return boto3.resource("s3").Bucket(name)


def upload(folder, bucket, prefix):
    """Put every file of a folder into a bucket; returns the address."""
    for file in folder.rglob("*"):
        if file.is_file():
            bucket.upload_file(str(file), f"{prefix}/{file.relative_to(folder).as_posix()}")
    return f"s3://{bucket.name}/{prefix}"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The folder of a bundle, and the folder with the images that it is for."""
    folder = tmp_path_factory.mktemp("bundle")
    config = experiment(write_images(folder))
    return export_bundle(checkpoint_of(config, folder / "run" / "best.ckpt"), folder / "bundle")


def test_a_training_on_images_in_the_store_is_that_on_local_ones(bucket, manifest_folder, tmp_path):
    folder, results = manifest_folder(), {}
    address = upload(folder, bucket, "blobs")
    shutil.copytree(folder, tmp_path / "local")
    shutil.rmtree(folder)
    for place, manifest in {"s3": f"{address}/manifest.csv", "local": tmp_path / "local" / "manifest.csv"}.items():
        given = [*overrides_for(tmp_path, cache_dir=tmp_path / f"cache-{place}"), f"data.path={manifest}"]
        results[place] = train(compose_experiment(given, output_dir=tmp_path / place / "run"))
    assert results["s3"] == results["local"]
    assert "test/seg/dice" in results["s3"]
    assert_same_weights(
        *(read_checkpoint(tmp_path / place / "run" / "checkpoints" / "last.ckpt")["state_dict"] for place in results)
    )


def test_loader_workers_read_from_the_store(bucket, manifest_folder, tmp_path):
    address = upload(manifest_folder(), bucket, "blobs")
    given = [*overrides_for(tmp_path), f"data.path={address}/manifest.csv", "data.num_workers=2", "test=false"]
    assert np.isfinite(train(compose_experiment(given, output_dir=tmp_path / "run"))["valid/seg/dice"])


@pytest.mark.parametrize("name", ["", "/manifest.csv"], ids=["folder of split files", "one file"])
def test_a_manifest_in_the_store_is_prepared_for_a_pipeline(bucket, manifest_folder, tmp_path, name):
    folder = manifest_folder()
    if not name:
        table = pd.read_csv(folder / "manifest.csv")
        for split, rows in table.groupby("split"):
            rows.drop(columns="split").to_csv(folder / f"{split}.csv", index=False)
        (folder / "manifest.csv").unlink()
    address = upload(folder, bucket, "blobs")
    measured = prepare_step(
        f"{address}{name}", str(tmp_path / "dataset"), source_col="raw", target_cols=["seg"], spatial_dims=2
    )
    assert measured["splits"] == {"train": 2, "valid": 1, "test": 1}
    prepared = pd.read_csv(tmp_path / "dataset" / "manifest.csv")
    assert prepared["raw"].str.startswith(f"{address}/raw_").all()


def test_a_missing_object_and_a_copy_in_another_split_are_said_together(bucket, manifest_folder, tmp_path):
    folder = manifest_folder()
    (folder / "raw_0.tif").unlink()
    shutil.copy(folder / "raw_1.tif", folder / "raw_3.tif")
    address = upload(folder, bucket, "blobs")
    with pytest.raises(ManifestError) as caught:
        prepare_step(
            f"{address}/manifest.csv", str(tmp_path / "out"), source_col="raw", target_cols=["seg"], spatial_dims=2
        )
    assert f"manifest.csv:2: {address}/raw_0.tif" in str(caught.value)
    assert f"train (manifest.csv:3: {address}/raw_1.tif), test (manifest.csv:5: {address}/raw_3.tif)" in str(
        caught.value
    )


def test_a_bundle_in_the_store_is_loaded_and_shown_like_a_local_one(bucket, bundle, store):
    address = upload(bundle, bucket, "models/tiny")
    image = read_image(bundle.parent / "raw_0.ome.tif", spatial_dims=2)
    expected = load_bundle(bundle).predict(image)
    for head, array in load_bundle(address).predict(image).items():
        np.testing.assert_array_equal(array, expected[head])

    shown = run([*CYTO_DL, "inspect", address], values=store.variables)
    assert (shown.returncode, shown.stdout) == (0, run([*CYTO_DL, "inspect", bundle]).stdout)


def test_images_in_the_store_are_predicted_with_a_bundle_in_the_store(bucket, bundle, store, tmp_path):
    images = tmp_path / "images"
    write_images(images)
    address, images_address = upload(bundle, bucket, "models/tiny"), upload(images, bucket, "images")
    command = [
        *CYTO_DL,
        "predict",
        address,
        "--manifest",
        f"{images_address}/manifest.csv",
        "--output",
        tmp_path / "out",
    ]
    predicted = run(command, values=store.variables)

    assert predicted.returncode == 0, predicted.stderr
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert table["path"].tolist() == [f"{images_address}/raw_{number}.ome.tif" for number in range(3)]
    expected = load_bundle(bundle).predict(read_image(images / "raw_2.ome.tif", spatial_dims=2))
    np.testing.assert_array_equal(tifffile.imread(table["seg"][2]), np.squeeze(expected["seg"]))


@pytest.mark.parametrize(
    ("address", "variables", "says"),
    [
        ("s3://{bucket}/tiny", {"AWS_SECRET_ACCESS_KEY": "a-wrong-secret"}, "SignatureDoesNotMatch"),
        ("s3://{bucket}/tiny", {"AWS_ACCESS_KEY_ID": "lab:nobody"}, "SignatureDoesNotMatch"),
        ("s3://{bucket}/tiny", {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:{port}"}, "Could not connect"),
        ("s3://{bucket}/tiny", {"AWS_ENDPOINT_URL_S3": "127.0.0.1"}, "Invalid endpoint"),
        ("s3://{bucket}/absent", {}, "nothing at this address"),
        ("s3://no-such-bucket/tiny", {}, "NoSuchBucket"),
    ],
    ids=["secret", "user", "port", "endpoint", "key", "bucket"],
)
def test_what_cannot_be_reached_is_one_message_without_keys(bucket, store, address, variables, says):
    bucket.put_object(Key="tiny/bundle.yaml", Body=b"name: tiny")
    (port,) = free_ports(1)
    address = address.format(bucket=bucket.name)
    given = store.variables | {name: value.format(port=port) for name, value in variables.items()}
    given |= {"CYTO_DL_S3_RETRY_S": "1"}
    ended = run([*CYTO_DL, "inspect", address], values=given)

    assert ended.returncode == 3, ended.stderr
    *repeated, message = ended.stderr.splitlines()
    assert len(repeated) == (says == "Could not connect"), "a failure that may pass is announced once"
    kind, _, text = message.partition(": ")
    assert kind in ("StorageError", "RefusedError", "NothingThereError")
    assert text.startswith(address)
    assert says in message
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        assert given[name] not in ended.stdout + ended.stderr


def test_an_image_that_is_absent_is_a_failed_row_of_a_prediction(bucket, bundle, tmp_path):
    images = tmp_path / "images"
    write_images(images)
    address = upload(images, bucket, "images")
    paths = [f"{address}/raw_0.ome.tif", f"{address}/absent.ome.tif", f"{address}/raw_1.ome.tif"]
    table = predict_images(load_bundle(bundle), paths, tmp_path / "out", progress=False)
    assert table["status"].tolist() == ["ok", "failed", "ok"]
    assert "there is nothing at this address" in table["error"][1]


def test_copies_of_many_images_keep_within_their_bound(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("CYTO_DL_SCRATCH_GB", "2e-5")  # 20 kB, two and a half images
    images = np.random.default_rng(0).integers(0, 255, (6, 1, 64, 64), np.uint16)
    for number, image in enumerate(images):
        np.save(tmp_path / f"{number}.npy", image)
        bucket.upload_file(str(tmp_path / f"{number}.npy"), f"{number}.npy")
    for number, image in enumerate(images):
        read = read_image(f"s3://{bucket.name}/{number}.npy", spatial_dims=2)
        np.testing.assert_array_equal(read.array, image)
        assert sum(copy.stat().st_size for copy in (tmp_path / "copies").rglob("*.npy")) <= 20_000


def test_an_image_that_is_absent_stops_a_training_before_its_first_step(bucket, manifest_folder, tmp_path):
    address = upload(manifest_folder(), bucket, "blobs")
    bucket.Object("blobs/raw_1.tif").delete()
    given = [*overrides_for(tmp_path), f"data.path={address}/manifest.csv"]
    with pytest.raises(ManifestError, match=f"{address}/raw_1.tif: there is nothing"):
        train(compose_experiment(given, output_dir=tmp_path / "run"))
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_an_object_of_several_parts_is_whole_and_one_altered_byte_in_it_is_found(bucket, tmp_path):
    content = bytearray(np.random.default_rng(0).bytes(40 * 10**6))  # three parts are sent, five are received
    (tmp_path / "large.ckpt").write_bytes(content)
    address = f"s3://{bucket.name}/large.ckpt"
    sent = upload_file(tmp_path / "large.ckpt", address)
    assert sent.etag.endswith('-3"')
    assert localize(address).read_bytes() == content
    content[30 * 10**6] ^= 1
    bucket.put_object(Key="large.ckpt", Body=bytes(content), Metadata={"sha256": sent.sha256})
    with pytest.raises(StorageError, match="its SHA-256 is not the one"):
        localize(address)


@pytest.mark.parametrize("key", ["cell #1.npy", "50%?/µm+1.npy"])
def test_a_key_may_hold_any_letter(bucket, key):
    bucket.put_object(Key=key, Body=b"content")
    assert localize(f"s3://{bucket.name}/{key}").read_bytes() == b"content"


def test_an_object_that_changes_is_brought_again_and_one_that_does_not_is_not(bucket):
    address = f"s3://{bucket.name}/a/table.csv"
    bucket.put_object(Key="a/table.csv", Body=b"one")
    before = localize(address)
    changed_ns = before.stat().st_mtime_ns
    assert localize(address) == before and before.stat().st_mtime_ns == changed_ns
    bucket.put_object(Key="a/table.csv", Body=b"two")
    assert localize(address).read_bytes() == b"two"
    assert before.read_bytes() == b"one"  # who reads it is not disturbed


@pytest.mark.parametrize("place", ["../../../../escaped", "/{folder}/escaped"])
def test_an_object_never_leaves_the_folder_of_copies(bucket, tmp_path, place):
    bucket.put_object(Key="models/tiny/bundle.yaml", Body=b"name: tiny")
    bucket.put_object(Key=f"models/tiny/{place.format(folder=tmp_path)}", Body=b"elsewhere")
    with pytest.raises(StorageError, match="cannot be a path"):
        localize(f"s3://{bucket.name}/models/tiny")
    assert not list(tmp_path.rglob("escaped"))
