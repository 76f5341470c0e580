"""What a refused run leaves behind: nothing of its own, and everything that was there."""

import logging

import pytest

from cyto_dl.errors import ConfigError
from cyto_dl.run_folder import remove_if_empty, removed_if_refused


def write_and_fail(folder, *, has_begun):
    with removed_if_refused(folder, has_begun=lambda: has_begun):
        (folder / "csv").mkdir(parents=True)
        (folder / "csv" / "metrics.csv").write_text("")
        (folder / "config.yaml").write_text("")
        raise ConfigError("refused")


def test_what_a_refused_run_wrote_goes_and_what_was_there_stays(tmp_path):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ConfigError):
        write_and_fail(tmp_path, has_begun=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ConfigError):
        write_and_fail(tmp_path / "new", has_begun=False)
    assert not (tmp_path / "new").exists()


def test_a_run_that_has_begun_keeps_its_files(tmp_path):
    with pytest.raises(ConfigError):
        write_and_fail(tmp_path, has_begun=True)
    assert {path.name for path in tmp_path.iterdir()} == {"csv", "config.yaml"}


@pytest.fixture
def hydras_folder(tmp_path):
    """A run's folder as hydra makes it, with its log open."""
    folder = tmp_path / "logs" / "train" / "0"
    (folder / ".hydra").mkdir(parents=True)
    handler = logging.FileHandler(folder / "train.log")
    logging.getLogger().addHandler(handler)
    yield folder
    logging.getLogger().removeHandler(handler)
    handler.close()


def test_a_folder_that_only_hydra_wrote_to_goes_with_the_empty_ones_around_it(hydras_folder, tmp_path):
    (hydras_folder.parent / "multirun.yaml").write_text("")
    remove_if_empty(hydras_folder, tmp_path / "logs")
    assert list(tmp_path.iterdir()) == []


def test_folders_outside_of_the_logs_and_folders_with_results_stay(hydras_folder, tmp_path):
    (tmp_path / "logs" / "cache").mkdir()
    (hydras_folder / "config.yaml").write_text("")
    remove_if_empty(hydras_folder, tmp_path / "logs")
    assert hydras_folder.is_dir()
    (hydras_folder / "config.yaml").unlink()
    remove_if_empty(hydras_folder, "elsewhere")
    assert not hydras_folder.exists() and hydras_folder.parent.is_dir()


def test_the_folder_that_a_command_is_given_in_stays(hydras_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(hydras_folder)
    remove_if_empty(hydras_folder, tmp_path / "logs")
    assert hydras_folder.is_dir()
