"""`cyto-dl predict --endpoint URL --job`: every image as a job, whose id is told so that it can be taken up again."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from cyto_dl.client.client import Client
from cyto_dl.client.jobs import RemoteJob
from cyto_dl.errors import ConfigError, ImageError
from cyto_dl.inference.batch import image_files, unique_stems

_ID = re.compile("[0-9a-f]{32}")


def predict_jobs(client: Client, words: Sequence[str], output: str, *, say: Callable[[str], object]) -> None:
    """Submit all images, then wait for one after the other; results go to `output`/HEAD/NAME.ome.tif.

    Args:
        client: Of the server, over REST.
        words: Addresses (with ://), which the server reads; ids of jobs; other words are files or folders of this
            machine, which are sent.
        output: Local folder; or an address, where the server writes OUTPUT/NAME/HEAD.ome.tif.
        say: Is given a line for every job that has begun, and for every result.

    Raises:
        ImageError: Jobs failed; the others' results are there.
        ConfigError, EndpointError: As `Client.submit`.
    """
    sources = [each for word in words for each in ([word] if _is_known(word) else image_files([word]))]
    if "://" in output and (known := [each for each in sources if _ID.fullmatch(each)]):
        raise ConfigError(f"--output {output}: where the results of job {known[0]} go was said when it was submitted.")
    jobs: list[tuple[RemoteJob, str]] = []
    for source, name in zip(sources, unique_stems(sources), strict=True):
        jobs.append((_begun(client, source, f"{output.rstrip('/')}/{name}" if "://" in output else None), name))
        say(f"job {jobs[-1][0].id}: {source}")
    failed = []
    for job, name in jobs:
        try:
            for place in job.save(output, name, progress=True).values():
                say(place)
        except ImageError as error:
            failed.append(str(error))
    if failed:
        raise ImageError(f"{len(failed)} of {len(jobs)} jobs gave no result: {failed[0]}")


def _is_known(word: str) -> bool:
    return "://" in word or (_ID.fullmatch(word) is not None and not Path(word).exists())


def _begun(client: Client, source: str, output_uri: str | None) -> RemoteJob:
    if "://" in source:
        return client.submit(source, output_uri=output_uri)
    if _is_known(source):
        return client.job(source)
    return client.submit(client.read(source), output_uri=output_uri)
