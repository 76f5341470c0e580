"""The input pipeline against MONAI's: random patches of cached 3-D volumes, as patches per second of CPU time.

    python benchmarks/speed/patches.py

Both pipelines read the same volumes, normalise them, keep the result on disk and then cut one random patch out of each
volume in turn: `DataframeDatamodule` with a cache, and MONAI's PersistentDataset with RandSpatialCropd. One process,
no workers, for each; the caches are filled in another, so that what is measured is an epoch after the first. Memory is
RssAnon of /proc/self/status, what a process holds beyond files that are mapped: it must not grow with the number of
volumes. Writes benchmarks/speed/results/patches.json.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import DataLoader, PersistentDataset
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, NormalizeIntensityd, RandSpatialCropd

from benchmarks.results import write_result
from cyto_dl.data import DataframeDatamodule, ReadImaged
from cyto_dl.data.loader import PatchSampler

RESULT = Path(__file__).parent / "results" / "patches.json"
TARGET_RATIO = 10
NUM_PATCHES = {"cyto_dl": 2000, "monai": 80}  # a few seconds each
BATCH_SIZE = 4


def cyto_dl_batches(volumes: Sequence[str], patch_shape: Sequence[int], cache_dir: str) -> Iterator[Any]:
    """Epoch after epoch of this library's training batches."""
    data = DataframeDatamodule(
        path={"train": [{"raw": path} for path in volumes]},
        columns={"raw": "raw"},
        transforms={"load": [ReadImaged("raw", 3)], "preprocess": [NormalizeIntensityd("raw")]},
        patch_shape=patch_shape,
        batch_size=BATCH_SIZE,
        cache_dir=cache_dir,
    )
    data.setup("fit")
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, PatchSampler)
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)
        yield from loader


def monai_batches(volumes: Sequence[str], patch_shape: Sequence[int], cache_dir: str) -> Iterator[Any]:
    """Epoch after epoch of MONAI's."""
    transforms = [
        LoadImaged("raw", reader="NumpyReader"),
        EnsureChannelFirstd("raw", channel_dim="no_channel"),
        NormalizeIntensityd("raw"),
        RandSpatialCropd("raw", roi_size=patch_shape, random_size=False),
    ]
    dataset = PersistentDataset([{"raw": path} for path in volumes], Compose(transforms), cache_dir=cache_dir)
    loader = DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True)
    while True:
        yield from loader


PIPELINES = {"cyto_dl": cyto_dl_batches, "monai": monai_batches}


def rss_anon() -> int:
    """The memory of this process that no file stands for, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def measure(
    pipeline: str, volumes: Sequence[str], patch_shape: Sequence[int], cache_dir: str, num: int
) -> dict[str, float]:
    """CPU seconds for at least `num` patches after every volume was seen once, and the most memory while at it."""
    batches = PIPELINES[pipeline](volumes, patch_shape, cache_dir)
    for _ in range(-(-len(volumes) // BATCH_SIZE)):
        next(batches)
    done, memory, start = 0, rss_anon(), time.process_time()
    while done < num:
        patches = next(batches)["raw"]
        assert patches.shape[1:] == (1, *patch_shape)
        done += len(patches)
        memory = max(memory, rss_anon())
    return {"patches": done, "cpu_seconds": time.process_time() - start, "rss_anon_bytes": memory}


def write_volumes(folder: Path, number: int, shape: Sequence[int]) -> list[str]:
    """Volumes of noise as .npy, ZYX uint16; what they hold does not matter to either pipeline."""
    rng = np.random.default_rng(0)
    paths = [folder / f"volume_{index}.npy" for index in range(number)]
    for path in paths:
        np.save(path, rng.integers(0, 2**16, shape, dtype=np.uint16))
    return [str(path) for path in paths]


def in_a_process_of_its_own(pipeline: str, *arguments: Any) -> dict[str, float]:
    """What `measure` returns there."""
    command = [sys.executable, __file__, "--measure", json.dumps([pipeline, *arguments])]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def run(shape: Sequence[int], patch_shape: Sequence[int], nums: Sequence[int], patches: dict[str, int]) -> dict:
    """Both pipelines on every number of volumes."""
    found: dict[str, Any] = {pipeline: {} for pipeline in PIPELINES}
    with tempfile.TemporaryDirectory() as folder:
        volumes = write_volumes(Path(folder), max(nums), shape)
        for pipeline, num in itertools.product(PIPELINES, sorted(nums, reverse=True)):
            arguments = (volumes[:num], patch_shape, f"{folder}/{pipeline}")
            if num == max(nums):
                in_a_process_of_its_own(pipeline, *arguments, 0)  # fills the cache
            measured = in_a_process_of_its_own(pipeline, *arguments, patches[pipeline])
            measured["patches_per_cpu_second"] = measured["patches"] / measured["cpu_seconds"]
            found[pipeline][str(num)] = measured
    speed = {pipeline: of[str(max(nums))]["patches_per_cpu_second"] for pipeline, of in found.items()}
    memory = [of["rss_anon_bytes"] for of in found["cyto_dl"].values()]
    return {
        "shape": list(shape),
        "patch_shape": list(patch_shape),
        "volumes": found,
        "ratio": speed["cyto_dl"] / speed["monai"],
        "target_ratio": TARGET_RATIO,
        "rss_anon_growth_bytes": max(memory) - min(memory),
    }


def table(result: dict[str, Any]) -> str:
    """The result for a person."""
    lines = [f"{'pipeline':10} {'volumes':>8} {'patches per CPU second':>23} {'RssAnon':>10}"]
    for pipeline, of in result["volumes"].items():
        for num, measured in of.items():
            speed, memory = measured["patches_per_cpu_second"], measured["rss_anon_bytes"] / 1e6
            lines.append(f"{pipeline:10} {num:>8} {speed:>23.1f} {memory:>7.0f} MB")
    lines.append(f"ratio {result['ratio']:.1f} (target {result['target_ratio']})")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the result and print it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(64, 512, 512), help="of a volume, ZYX")
    parser.add_argument("--patch-shape", type=int, nargs=3, default=(16, 64, 64))
    parser.add_argument("--volumes", type=int, nargs="+", default=(4, 16), help="how many")
    parser.add_argument("--patches", type=int, help="at least this many of each pipeline")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.measure:
        print(json.dumps(measure(*json.loads(chosen.measure))))
        return
    patches = dict.fromkeys(PIPELINES, chosen.patches) if chosen.patches else NUM_PATCHES
    result = run(chosen.shape, chosen.patch_shape, chosen.volumes, patches)
    write_result(chosen.result, result)
    print(table(result))


if __name__ == "__main__":
    main()
