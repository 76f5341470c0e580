"""Copies are found by their bytes, whatever they are called, and little is read for it."""

import os

import pytest

from cyto_dl.data import copies
from cyto_dl.data.copies import SAMPLE_BYTES, first_copies


@pytest.fixture
def write(tmp_path):
    def make(name, content):
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return make


def test_a_copy_under_another_name_leads_to_the_first_and_other_files_to_themselves(write):
    content = os.urandom(3 * SAMPLE_BYTES)
    first, other, copy = write("a", content), write("b", content[::-1]), write("c", content)
    short = write("d", content[:-1])
    assert first_copies([first, other, copy, short]) == {first: first, other: other, copy: first, short: short}


def test_files_that_differ_in_one_byte_between_the_samples_are_no_copies(write):
    content = bytearray(100 * SAMPLE_BYTES)
    first = write("a", content)
    content[SAMPLE_BYTES + 1] = 1  # the samples are at the beginning and at multiples of 99/7 of their length
    second = write("b", content)
    assert first_copies([first, second]) == {first: first, second: second}


@pytest.mark.parametrize("content", [b"", b"x"])
def test_files_shorter_than_a_sample_are_compared_too(write, content):
    first, second = write("a", content), write("b", content)
    assert first_copies([first, second]) == {first: first, second: first}


def test_links_and_repeated_names_are_copies(write, tmp_path):
    first = write("a", b"image")
    (tmp_path / "link").symlink_to(first)
    assert first_copies([first, first, str(tmp_path / "link")]) == {first: first, str(tmp_path / "link"): first}


def test_only_files_that_may_be_copies_are_read_to_their_end(write, monkeypatch):
    seen = []
    monkeypatch.setattr(copies, "sha256", lambda path: seen.append(path.name) or path.read_bytes())
    same = os.urandom(3 * SAMPLE_BYTES)
    files = [write("a", same), write("b", os.urandom(3 * SAMPLE_BYTES)), write("c", same), write("d", b"short")]
    first_copies(files)
    assert sorted(seen) == ["a", "c"]
