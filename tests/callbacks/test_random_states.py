"""Random numbers of training steps do not depend on what happens between them, nor on a resume."""

import random

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from cyto_dl.callbacks import AtomicCheckpointIO, RandomStates
from cyto_dl.callbacks.random_states import capture_random_states, restore_random_states


class DrawBetweenSteps(lightning.Callback):
    """Something else that uses the global generators: validation, loggers, iterators."""

    def on_train_batch_start(self, *args):
        draw()

    on_validation_epoch_end = on_train_epoch_end = on_train_epoch_start = on_train_batch_start


def draw():
    return random.random(), random.gauss(0, 1), np.random.normal(size=3).tolist(), torch.rand(3).tolist()


def test_generators_continue_from_captured_states():
    draw()  # an odd number of normal draws: numpy and python keep one for the next call
    np.random.normal()
    states = capture_random_states()
    expected = [draw() for _ in range(3)]
    restore_random_states(states)
    assert [draw() for _ in range(3)] == expected


def test_captured_states_are_plain_data(tmp_path):
    torch.save(capture_random_states(), tmp_path / "states.pt")
    states = torch.load(tmp_path / "states.pt", weights_only=True)
    expected = draw()
    restore_random_states(states)
    assert draw() == expected


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("every", [{"every_n_epochs": 1}, {"every_n_train_steps": 2}])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path, make_model, loader, make_trainer, every, spatial_dims
):
    def train(seed, max_epochs, ckpt_path=None):
        lightning.seed_everything(seed, verbose=False)
        checkpoints = ModelCheckpoint(tmp_path, "{epoch}-{step}", save_top_k=-1, **every)
        trainer = make_trainer(
            checkpoints, RandomStates(), DrawBetweenSteps(), plugins=[AtomicCheckpointIO()], max_epochs=max_epochs
        )
        model = make_model(spatial_dims)
        trainer.fit(model, loader(spatial_dims, patch=16), loader(spatial_dims, num_images=1), ckpt_path=ckpt_path)
        return weights(model)

    expected = train(seed=0, max_epochs=2)
    (checkpoint,) = tmp_path.glob("epoch=0-step=4.ckpt")  # the end of the first epoch
    for path in set(tmp_path.glob("*.ckpt")) - {checkpoint}:
        path.unlink()
    assert torch.equal(train(seed=99, max_epochs=2, ckpt_path=checkpoint), expected)


def test_a_step_draws_the_same_whatever_happens_between_steps(make_model, loader, make_trainer):
    def train(*callbacks):
        lightning.seed_everything(0, verbose=False)
        model = make_model()
        # the first step has no step before it: it begins with the seed
        make_trainer(*callbacks, limit_val_batches=0).fit(model, loader(patch=16))
        return weights(model)

    class DrawAfterSteps(lightning.Callback):
        def on_train_batch_end(self, *args):
            torch.rand(3)

    assert torch.equal(train(RandomStates(), DrawAfterSteps()), train(RandomStates()))
    assert not torch.equal(train(DrawAfterSteps()), train())
