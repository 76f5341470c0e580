"""A real object store for the tests of trainings on S3 and a bucket in it for each of them; a real browser."""

import os
import tempfile

import boto3
import pytest
from playwright.sync_api import Error, sync_playwright

from tests.integration.object_store import object_store

CHROMIUM = "/usr/bin/chromium"  # Debian's: the machine's fonts and no download at test time
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]  # root, a small /dev/shm, no graphics card


@pytest.fixture(scope="module")
def chromium():
    """A headless browser."""
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        except Error as error:
            pytest.fail(f"{CHROMIUM} does not start; apt-get install chromium fonts-dejavu-core. {error}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """An object store; who stops it or changes its key restores it."""
    with object_store(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture
def bucket(store, monkeypatch, tmp_path):
    """A bucket of the test's own, which this process can reach."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in (store.variables | {"CYTO_DL_S3_RETRY_S": "60", "TMPDIR": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers the keys of the test before
    monkeypatch.setattr(tempfile, "tempdir", None)  # so that it looks at TMPDIR
    name = f"runs-{len(boto3.client('s3').list_buckets()['Buckets'])}"
    boto3.client("s3").create_bucket(Bucket=name)
    return boto3.resource("s3").Bucket(name)
