"""Only what a user can do nothing about is silent, by module and words."""

import warnings

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from cyto_dl.callbacks import ignore_known_warnings

SAID_BY = {
    "lightning.pytorch.utilities._pytree": "`isinstance(treespec, LeafSpec)` is deprecated, use ...",
    "lightning.pytorch.loops.fit_loop": "The number of training batches (2) is smaller than the logging interval ...",
    "lightning.pytorch.callbacks.model_checkpoint": "Checkpoint directory /runs/a exists and is not empty.",
}


@pytest.fixture
def shown():
    """What warnings a process shows after it has learnt which to ignore."""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        ignore_known_warnings()
        yield shown


def test_a_training_that_goes_on_in_its_folder_shows_none_of_them(tmp_path, make_model, loader, make_trainer, shown):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    trainer = make_trainer(ModelCheckpoint(tmp_path / "checkpoints"), logger=CSVLogger(tmp_path), log_every_n_steps=50)
    trainer.fit(make_model(), loader(patch=16), loader(num_images=1))
    said = [str(warning.message) for warning in shown]
    assert not [text for text in said if text.startswith(tuple(each[:20] for each in SAID_BY.values()))], said


@pytest.mark.parametrize("module", SAID_BY)
def test_another_module_and_other_words_are_heard(module, shown):
    for each in SAID_BY:
        warnings.warn_explicit("something else", UserWarning, "a.py", 1, module=each)
    warnings.warn_explicit(SAID_BY[module], FutureWarning, "a.py", 2, module="lab.transforms")
    assert len(shown) == len(SAID_BY) + 1
