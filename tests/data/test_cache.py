"""The cache gives what would be computed, and notices every change and every damage."""

import multiprocessing
import os
import resource

import numpy as np
import pytest
import torch
from monai.transforms import NormalizeIntensityd, ScaleIntensityd, Spacingd

from cyto_dl.data import cache
from cyto_dl.data.cache import CachedDataset
from cyto_dl.data.image import write_image
from cyto_dl.data.transforms import ReadImaged
from cyto_dl.errors import ImageError


@pytest.fixture
def rows(tmp_path):
    rng = np.random.default_rng(0)
    found = []
    for number in range(2):
        row = {"row": f"m.csv:{number + 2}"}
        for key in "raw", "seg":
            row[key] = str(tmp_path / f"{key}_{number}.ome.tif")
            write_image(row[key], rng.integers(0, 255, (1, 8, 10), dtype=np.uint8), spacing_um=(0.2, 0.1))
        found.append(row)
    return found


class Counting(ScaleIntensityd):
    """Counts how often it is called."""

    num_calls = 0

    def __call__(self, data):
        type(self).num_calls += 1
        return super().__call__(data)


@pytest.fixture(autouse=True)
def start_counting():
    Counting.num_calls = 0


def make(rows, cache_dir, *, transforms=None, **arguments):
    steps = [ReadImaged(["raw", "seg"], 2), Counting("raw", **arguments)] if transforms is None else transforms
    return CachedDataset(rows, steps, source_key="raw", cache_dir=cache_dir)


def equal(one, other):
    same = all(torch.equal(one.tensors[key], other.tensors[key]) for key in one.tensors)
    return same and one.tensors.keys() == other.tensors.keys() and one[1:] == other[1:]


def test_a_cached_sample_equals_the_computed_one_and_is_computed_once(rows, tmp_path):
    computed = make(rows, None)[1]
    for _ in range(2):  # epochs and runs
        dataset = make(rows, tmp_path / "cache")
        assert equal(dataset[1], computed)
        assert equal(dataset[1], computed)
    assert Counting.num_calls == 2
    assert computed.path == rows[1]["raw"]
    assert computed.spacing_um == (0.2, 0.1)
    assert type(computed.tensors["raw"]) is torch.Tensor


def test_without_a_folder_every_access_computes(rows):
    dataset = make(rows, None)
    dataset[0], dataset[0]
    assert Counting.num_calls == 2


def test_the_pixel_size_is_that_after_preprocessing(rows):
    transforms = [ReadImaged(["raw", "seg"], 2), Spacingd(["raw", "seg"], pixdim=[0.1, 0.1])]
    assert make(rows, None, transforms=transforms)[0].spacing_um == pytest.approx((0.1, 0.1))


@pytest.mark.parametrize("key", ["raw", "seg"])
def test_a_changed_file_is_computed_again(rows, tmp_path, key):
    before = make(rows, tmp_path / "cache")[0].tensors[key].clone()
    write_image(rows[0][key], np.full((1, 8, 10), 7, np.uint8))
    after = make(rows, tmp_path / "cache")[0].tensors[key]
    assert Counting.num_calls == 2
    assert not torch.equal(before, after)


def test_a_file_of_equal_size_that_was_written_later_is_computed_again(rows, tmp_path):
    make(rows, tmp_path / "cache")[0]
    stat = os.stat(rows[0]["raw"])
    os.utime(rows[0]["raw"], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    make(rows, tmp_path / "cache")[0]
    assert Counting.num_calls == 2


def test_a_changed_transform_is_computed_again(rows, tmp_path):
    first = make(rows, tmp_path / "cache", minv=0.0, maxv=1.0)[0]
    second = make(rows, tmp_path / "cache", minv=0.0, maxv=2.0)[0]
    assert second.tensors["raw"].max() == 2 * first.tensors["raw"].max()


def test_where_a_row_stands_in_its_table_does_not_matter(rows, tmp_path):
    make(rows, tmp_path / "cache")[0]
    make([rows[1], {**rows[0], "row": "other.csv:3"}], tmp_path / "cache")[1]
    assert Counting.num_calls == 1


def test_arrays_in_memory_are_cached_by_their_content(tmp_path):
    def row(value):
        return {"raw": np.full((8, 10), value), "seg": np.ones((8, 10)), "row": "train[0]"}

    make([row(1)], tmp_path)[0], make([row(1)], tmp_path)[0]
    assert Counting.num_calls == 1
    assert make([row(2)], tmp_path)[0].path == "train[0]"
    assert Counting.num_calls == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: b"x" * len(content),
        lambda content: content[:-10],
    ],
)
def test_a_damaged_cache_file_is_computed_again_and_mended(rows, tmp_path, damage, caplog):
    expected = make(rows, tmp_path / "cache")[0]
    expected = expected._replace(tensors={key: tensor.clone() for key, tensor in expected.tensors.items()})
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert equal(make(rows, tmp_path / "cache")[0], expected)
    assert "is damaged" in caplog.text
    caplog.clear()
    assert equal(make(rows, tmp_path / "cache")[0], expected)
    assert caplog.text == ""


def test_a_bit_that_flipped_in_a_cache_file_never_reaches_a_training(rows, tmp_path):
    expected = make(rows, tmp_path / "cache")[0]
    expected = expected._replace(tensors={key: tensor.clone() for key, tensor in expected.tensors.items()})
    (file,) = (tmp_path / "cache").iterdir()
    content = file.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(content), 150):  # also headers, names and padding
        altered = bytearray(content)
        altered[position] ^= 1 << position % 8
        file.write_bytes(altered)
        assert equal(make(rows, tmp_path / "cache")[0], expected), position


def test_the_flipped_bit_of_a_pixel_is_found(rows, tmp_path, caplog):
    pixels = make(rows, tmp_path / "cache")[0].tensors["raw"].numpy().tobytes()
    (file,) = (tmp_path / "cache").iterdir()
    content = bytearray(file.read_bytes())
    content[content.index(pixels) + 3] ^= 1
    file.write_bytes(content)
    make(rows, tmp_path / "cache")[0]
    assert "is damaged (the checksum of its part" in caplog.text


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_what_a_loader_worker_compared_with_its_checksums_the_next_one_does_not(rows, tmp_path, monkeypatch, method):
    make(rows, tmp_path / "cache")[0]
    dataset = make(rows, tmp_path / "cache")
    worker = torch.multiprocessing.get_context(method).Process(target=dataset.__getitem__, args=(0,))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    monkeypatch.setattr(cache, "_compare_checksums", lambda file: pytest.fail("compared again"))
    dataset[0]


def read_all_with_limit(rows, cache_dir, results):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as a full disk does, it ends a file in its middle
    read_all(rows, cache_dir, results)


def test_without_room_on_the_disk_images_are_computed_each_time_and_nothing_is_left_behind(rows, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    worker = context.Process(target=read_all_with_limit, args=(rows, tmp_path / "cache", results))
    worker.start()
    sums = results.get()
    worker.join()
    assert list((tmp_path / "cache").iterdir()) == []
    read_all(rows, tmp_path / "cache", results)
    assert sums == results.get()


def test_a_cache_file_with_python_objects_is_not_loaded(rows, tmp_path, caplog):
    make(rows, tmp_path / "cache")[0]
    (file,) = (tmp_path / "cache").iterdir()
    torch.save({"tensors": os.system}, file)
    assert make(rows, tmp_path / "cache")[0].tensors["raw"].shape == (1, 8, 10)
    assert "is damaged" in caplog.text


def test_nothing_is_left_behind_when_computing_fails(rows, tmp_path):
    broken = [{**rows[0], "seg": str(tmp_path / "text.tif")}]
    (tmp_path / "text.tif").write_text("no image")
    with pytest.raises(ImageError, match=r"text\.tif"):
        make(broken, tmp_path / "cache")[0]
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cached_sample_is_mapped_and_not_read(tmp_path):
    large = np.zeros((64, 512, 512), np.uint8)  # 64 MB as float32
    transforms = [ReadImaged("raw", 3)]
    row = {"raw": large, "row": "train[0]"}
    CachedDataset([row], transforms, source_key="raw", cache_dir=tmp_path)[0]
    dataset = CachedDataset([row], transforms, source_key="raw", cache_dir=tmp_path)
    dataset._file(row, tmp_path)  # hashes the array, which is not what is measured

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    patch = dataset[0].tensors["raw"][:, 10:12, 100:120, 100:120].clone()
    assert patch.shape == (1, 2, 20, 20)
    assert resident() - before < 16e6  # pages around the patch and the reader's own memory, of 64 MB


def read_all(rows, cache_dir, results):
    dataset = CachedDataset(
        rows, [ReadImaged(["raw", "seg"], 2), NormalizeIntensityd("raw")], source_key="raw", cache_dir=cache_dir
    )
    results.put([float(dataset[index].tensors["raw"].sum()) for index in (0, 1) * 10])


def test_processes_that_share_a_folder_do_not_disturb_each_other(rows, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    workers = [context.Process(target=read_all, args=(rows, tmp_path / "cache", results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    sums = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    assert sums[0] == sums[1] == sums[2]
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_transform_that_is_no_monai_class_runs_too(rows, tmp_path):
    def invert(item):
        return {**item, "raw": -item["raw"]}

    transforms = [ReadImaged(["raw", "seg"], 2), invert, NormalizeIntensityd("raw")]
    plain = make(rows, None, transforms=transforms[::2])[0].tensors["raw"]
    inverted = make(rows, tmp_path / "cache", transforms=transforms)[0].tensors["raw"]
    assert torch.allclose(inverted, -plain, atol=1e-6)  # the mean is rounded
