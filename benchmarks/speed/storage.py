"""Upload and download of a checkpoint-sized file through cyto_dl.storage, against plain boto3.

    OMP_NUM_THREADS=1 python benchmarks/speed/storage.py

Both talk to one local S3 server (OpenStack Swift, as the integration tests start it), in turn. Ours also hashes what it
sends and receives, asks the server what it holds, and writes atomically; plain boto3 is upload_file and download_file
with default settings. The ratio is that of the throughputs by wall time; the seconds of CPU are this process's alone.
Writes benchmarks/speed/results/storage.json.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import boto3

from benchmarks.results import write_result
from cyto_dl.storage import upload
from cyto_dl.storage.s3 import describe, download
from tests.integration.object_store import object_store

RESULT = Path(__file__).parent / "results" / "storage.json"
TARGET_RATIO = 0.9
BUCKET = "benchmark"


def run(folder: Path, size_mb: int, repeats: int) -> dict[str, Any]:
    """Medians of the seconds of all four transfers, after the check that both bring the same bytes.

    What is compared takes turns in beginning, because the first transfer after the other direction finds a busy disk.
    """
    source = folder / "source.ckpt"
    source.write_bytes(os.urandom(size_mb * 10**6))
    plain = boto3.client("s3")
    plain.create_bucket(Bucket=BUCKET)
    ours_uri = f"s3://{BUCKET}/ours.ckpt"
    steps: dict[str, Callable[[], object]] = {
        "upload plain": lambda: plain.upload_file(str(source), BUCKET, "plain.ckpt"),
        "upload ours": lambda: upload(source, ours_uri),
        "download plain": lambda: plain.download_file(BUCKET, "plain.ckpt", str(folder / "plain.ckpt")),
        "download ours": lambda: download(describe(ours_uri), folder / "ours.ckpt"),
    }
    upload(source, ours_uri)  # connections, and an object to download, are there before the first measurement
    plain.upload_file(str(source), BUCKET, "plain.ckpt")
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    upload_plain, upload_ours, download_plain, download_ours = steps
    turns = [
        (upload_plain, upload_ours, download_plain, download_ours),
        (upload_ours, upload_plain, download_ours, download_plain),
    ]
    for repeat in range(repeats):
        for name in turns[repeat % 2]:
            seconds[name].append(_seconds(steps[name]))
    assert (folder / "ours.ckpt").read_bytes() == (folder / "plain.ckpt").read_bytes() == source.read_bytes()
    medians = {name: statistics.median(wall for wall, _ in found) for name, found in seconds.items()}
    return {
        "size_mb": size_mb,
        "repeats": repeats,
        "seconds": medians,
        "cpu_seconds": {name: statistics.median(cpu for _, cpu in found) for name, found in seconds.items()},
        "upload_ratio": medians["upload plain"] / medians["upload ours"],
        "download_ratio": medians["download plain"] / medians["download ours"],
        "target_ratio": TARGET_RATIO,
    }


def _seconds(step: Callable[[], object]) -> tuple[float, float]:
    """Of wall time, and of this process's CPU time."""
    start, cpu_start = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - start, time.process_time() - cpu_start


def table(result: dict[str, Any]) -> str:
    """The result for a person."""
    lines = [
        f"{name:16} {seconds:7.2f} s  {result['size_mb'] / seconds:7.1f} MB/s  "
        f"{result['cpu_seconds'][name]:7.2f} s of CPU"
        for name, seconds in result["seconds"].items()
    ]
    ratios = f"upload {result['upload_ratio']:.3f}, download {result['download_ratio']:.3f}"
    return "\n".join([*lines, f"of plain boto3's throughput: {ratios} (target at least {result['target_ratio']})"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the result, show it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=200, help="of the file")
    parser.add_argument("--repeats", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--result", type=Path, default=RESULT)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name, object_store(Path(name) / "store") as store:
        os.environ.update(store.variables)
        result = run(Path(name), chosen.size_mb, chosen.repeats)
    write_result(chosen.result, result)
    print(table(result))


if __name__ == "__main__":
    main()
