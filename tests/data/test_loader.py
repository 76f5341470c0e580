"""The order of patches, and stopping and resuming in the middle of an epoch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, OnExceptionCheckpoint
from torch.utils.data import Dataset

from cyto_dl.data import loader as loader_module
from cyto_dl.data.loader import PatchSampler, ResumableLoader, RowSampler


@given(
    num_rows=st.integers(1, 7),
    patches_per_image=st.integers(1, 4),
    world_size=st.integers(1, 4),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
)
def test_the_ranks_share_every_patch_of_an_epoch_evenly(num_rows, patches_per_image, world_size, seed, epoch):
    seen = []
    for rank in range(world_size):
        sampler = PatchSampler(num_rows, patches_per_image, seed=seed)
        sampler.rank, sampler.world_size = rank, world_size
        sampler.set_epoch(epoch)
        own = list(sampler)
        assert len(own) == len(sampler)
        seen.append(own)
    every = {(epoch, row, patch) for row in range(num_rows) for patch in range(patches_per_image)}
    assert {index for own in seen for index in own} == every
    assert sum(map(len, seen)) - len(every) < world_size  # what fills up the last round


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = PatchSampler(5, 4, seed=seed)
        sampler.set_epoch(epoch)
        return [index[1:] for index in sampler]

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


@pytest.mark.parametrize(("num_rows", "seen_by_one"), [(5, {0: [0, 2, 4], 1: [1, 3]}), (1, {0: [0], 1: [0]})])
def test_whole_images_are_shared_by_the_ranks_unless_there_are_too_few(monkeypatch, num_rows, seen_by_one):
    for rank, rows in seen_by_one.items():
        monkeypatch.setattr(loader_module, "rank_and_world_size", lambda rank=rank: (rank, 2))
        assert list(RowSampler(num_rows)) == rows


class Indices(Dataset):
    """Gives back the index that it is asked for."""

    def __len__(self):
        return 11

    def __getitem__(self, index):
        return torch.tensor(index if isinstance(index, tuple) else (0, index, 0))


def make_loader(num_workers=0, **changed):
    arguments = {"batch_size": 2, "num_workers": num_workers} | changed
    return ResumableLoader(Indices(), sampler=PatchSampler(11, 1, seed=3), **arguments)


def as_lists(batches):
    return [batch.tolist() for batch in batches]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_done", [0, 1, 5, 6])
def test_a_loaded_position_continues_the_epoch_and_the_next_one_is_whole(num_workers, num_done):
    loader = make_loader(num_workers)
    loader.sampler.set_epoch(1)
    whole = as_lists(loader)
    started = iter(loader)
    for _ in range(num_done):
        next(started)
    resumed = make_loader(num_workers)
    resumed.load_state_dict(loader.state_dict() if num_done else {**loader.state_dict(), "batches": 0})
    resumed.sampler.set_epoch(1)
    assert as_lists(resumed) == whole[num_done:]
    assert len(resumed) == len(whole) == 6
    assert as_lists(resumed) == whole


def test_a_batch_that_was_fetched_but_not_trained_on_comes_again():
    loader = make_loader()
    batches = iter(loader)
    next(batches)
    fetched = next(batches)
    loader.num_unfinished = lambda: 1
    resumed = make_loader()
    resumed.load_state_dict(loader.state_dict())
    assert next(iter(resumed)).tolist() == fetched.tolist()


def test_a_state_that_was_loaded_and_not_used_yet_is_saved_again():
    state = {"epoch": 4, "batches": 3, "num_patches": 11, "batch_size": 2, "seed": 3, "ranks": 1}
    loader = make_loader()
    loader.load_state_dict(state)
    assert loader.state_dict() == state


def test_a_position_in_other_batches_is_not_used(caplog):
    loader = make_loader()
    next(iter(loader))
    resumed = make_loader(batch_size=3)
    resumed.load_state_dict(loader.state_dict())
    assert as_lists(resumed) == as_lists(make_loader(batch_size=3))
    assert "batch_size changed since the checkpoint" in caplog.text


class Remembering(LightningModule):
    """Remembers the batches that it was trained on, and learns something from each."""

    def __init__(self, crash_at=None):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 1)
        self.seen = []
        self.crash_at = crash_at

    def training_step(self, batch, batch_idx):
        if self.crash_at == (self.current_epoch, batch_idx):
            raise RuntimeError("crash")
        self.seen.append((self.current_epoch, batch.tolist()))
        return self.layer(batch.float()).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("valid/loss", 0.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-4)


class StopAfter(Callback):
    """Saves a checkpoint in a hook of a given batch, and stops the training there."""

    def __init__(self, path, epoch, batch):
        self.path, self.at = path, (epoch, batch)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


def fit(folder, module, callbacks=(), *, num_workers=0, ckpt_path=None, **trainer_arguments):
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
        callbacks=list(callbacks),
        **({"max_epochs": 4} | trainer_arguments),
    )
    validation = torch.utils.data.DataLoader([torch.zeros(3)])
    loader = make_loader(num_workers)
    loader.num_unfinished = lambda: (
        trainer.fit_loop.epoch_loop.batch_progress.current.ready
        - trainer.fit_loop.epoch_loop.batch_progress.current.processed
    )
    trainer.fit(module, loader, validation, ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.fixture
def uninterrupted(tmp_path):
    module = Remembering()
    fit(tmp_path, module)
    return module


def equal_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch", [0, 2, 5])  # the first, one in the middle, the last of the epoch
def test_training_resumed_in_the_middle_of_an_epoch_sees_the_same_batches(tmp_path, uninterrupted, num_workers, batch):
    first = Remembering()
    with pytest.raises(SystemExit):  # Lightning's answer to an interrupt
        fit(tmp_path, first, [StopAfter(tmp_path / "stop.ckpt", 2, batch)], num_workers=num_workers)
    second = Remembering()
    fit(tmp_path, second, num_workers=num_workers, ckpt_path=tmp_path / "stop.ckpt")
    assert first.seen + second.seen == uninterrupted.seen
    assert equal_weights(second, uninterrupted)


def test_the_batch_at_which_a_training_crashed_is_trained_on_after_resuming(tmp_path, uninterrupted):
    first = Remembering(crash_at=(2, 3))
    with pytest.raises(RuntimeError, match="crash"):
        fit(tmp_path, first, [OnExceptionCheckpoint(tmp_path, "crash")])
    second = Remembering()
    fit(tmp_path, second, ckpt_path=tmp_path / "crash.ckpt")
    assert first.seen + second.seen == uninterrupted.seen
    assert equal_weights(second, uninterrupted)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    "saving",
    [
        {"save_on_train_epoch_end": True},
        {"save_on_train_epoch_end": False},  # at the end of the validation
        {"every_n_train_steps": 4},
    ],
)
def test_training_resumed_from_the_last_checkpoint_sees_the_same_batches(tmp_path, uninterrupted, num_workers, saving):
    class Killed(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if (trainer.current_epoch, batch_idx) == (3, 1):
                raise KeyboardInterrupt

    checkpoint = ModelCheckpoint(tmp_path, filename="last", enable_version_counter=False, **saving)
    first = Remembering()
    with pytest.raises(SystemExit):
        fit(tmp_path, first, [checkpoint, Killed()], num_workers=num_workers)
    second = Remembering()
    fit(tmp_path, second, num_workers=num_workers, ckpt_path=tmp_path / "last.ckpt")
    num_saved = {4: 16}.get(saving.get("every_n_train_steps"), 18)  # batches before the last checkpoint; 6 an epoch
    assert first.seen[:num_saved] + second.seen == uninterrupted.seen
    assert equal_weights(second, uninterrupted)


def test_overfitting_sees_the_same_batches_in_every_epoch(tmp_path):
    module = Remembering()
    fit(tmp_path, module, overfit_batches=2, max_epochs=3)
    by_epoch = [[batch for epoch, batch in module.seen if epoch == number] for number in range(3)]
    assert by_epoch[0] == by_epoch[1] == by_epoch[2]
