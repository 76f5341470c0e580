import asyncio
import dataclasses
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from serving.errors import Busy, Gone, TooSlow
from serving.executor import Device, Executor, SharedNetwork, Work
from tests.serving.conftest import make_predictor

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20  # after which a test that hangs fails instead


class Spy:
    """A network that notes the batches it computes, and waits before the first until it is let go."""

    def __init__(self, network):
        self.network, self.heads, self.batches = network, tuple(network.heads), []
        self.entered, self.go = threading.Event(), threading.Event()
        self.inside = self.most_inside = 0

    def only(self, heads):
        return self

    def __call__(self, windows):
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        self.batches.append(len(windows))
        self.entered.set()
        assert self.go.wait(PATIENCE_S)
        logits = self.network(windows)
        self.inside -= 1
        return logits


def shared(predictor, device, work=None, *, network=None, max_batch=8):
    network = network or predictor.network
    seen = SharedNetwork(network, "cells", max_batch, device, work or Work(PATIENCE_S), tuple(network.heads))
    return dataclasses.replace(predictor, network=seen)


def in_threads(*functions):
    """Starts functions in threads of their own; returns the threads and the list that receives their results."""
    results = [None] * len(functions)

    def keep(index, function):
        results[index] = function()

    threads = [threading.Thread(target=keep, args=pair) for pair in enumerate(functions)]
    for thread in threads:
        thread.start()
    return threads, results


def together(spy, device, functions):
    """The results of functions of which the first is held in the network until all others wait for it."""
    first, first_result = in_threads(functions[0])
    assert spy.entered.wait(PATIENCE_S)
    others, results = in_threads(*functions[1:])
    deadline = time.monotonic() + PATIENCE_S
    while len(device._waiting) < len(others):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    spy.go.set()
    for thread in first + others:
        thread.join(PATIENCE_S)
    return first_result + results


@pytest.mark.parametrize("dims", [2, 3])
def test_an_idle_server_predicts_bit_for_bit_as_the_predictor(image, dims):
    predictor, picture = make_predictor(dims), image(dims)
    got = shared(predictor, Device()).predict(picture)
    for head, wanted in predictor.predict(picture).items():
        np.testing.assert_array_equal(got[head], wanted)


@pytest.mark.parametrize("dims", [2, 3])
def test_windows_of_requests_that_wait_together_are_one_batch(image, dims):
    predictor = make_predictor(dims)
    spy, device = Spy(predictor.network), Device()
    small = [image(dims, seed=seed)[..., :14, :14] for seed in range(4)]  # one window each
    functions = [lambda picture=picture: shared(predictor, device, network=spy).predict(picture) for picture in small]
    results = together(spy, device, functions)
    assert spy.batches == [1, 3]
    assert spy.most_inside == 1
    for picture, result in zip(small, results, strict=True):
        wanted = predictor.predict(picture)
        # batches of other sizes take other algorithms of oneDNN: last bits of float32 logits
        np.testing.assert_allclose(result["distance"], wanted["distance"], atol=1e-5)


def test_a_batch_is_no_larger_than_the_model_says(image):
    predictor = make_predictor(2)
    spy, device = Spy(predictor.network), Device()
    picture = image(2)[..., :14, :14]
    together(spy, device, [lambda: shared(predictor, device, network=spy, max_batch=2).predict(picture)] * 4)
    assert spy.batches == [1, 2, 1]


def test_a_request_that_fails_does_not_take_others_along():
    class Picky:
        heads = ("seg",)

        def __call__(self, windows):
            if (windows < 0).any():
                raise RuntimeError("no")
            return {"seg": windows}

    device, blocked = Device(), Spy(Picky())
    good, bad = torch.ones(1, 1, 4, 4), -torch.ones(1, 1, 4, 4)

    def ask(windows):
        network = SharedNetwork(blocked, "cells", 8, device, Work(PATIENCE_S), ("seg",))
        try:
            return float(network(windows)["seg"].mean())
        except RuntimeError:
            return "failed"

    functions = [lambda windows=windows: ask(windows) for windows in (good, good, bad)]
    assert together(blocked, device, functions) == [1.0, 1.0, "failed"]
    assert blocked.batches == [1, 2, 1, 1]


def test_a_small_image_does_not_wait_for_a_large_one(image):
    predictor = make_predictor(2)
    spy, device = Spy(predictor.network), Device()
    large, small = np.tile(image(2), (1, 8, 8)), image(2)[..., :14, :14]
    order = []
    threads, _ = in_threads(
        lambda: order.append(("large", shared(predictor, device, network=spy).predict(large))[0]),
        lambda: (
            spy.entered.wait(PATIENCE_S)
            and order.append(("small", shared(predictor, device, network=spy).predict(small))[0])
        ),
    )
    assert spy.entered.wait(PATIENCE_S)
    spy.go.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert order == ["small", "large"]


def test_work_stops_between_windows_when_it_is_cancelled_or_late(image):
    predictor, device = make_predictor(2), Device()
    cancelled = Work(PATIENCE_S)
    cancelled.cancel()
    with pytest.raises(Gone):
        shared(predictor, device, cancelled).predict(image(2))
    with pytest.raises(TooSlow, match="longer than 0 s"):
        shared(predictor, device, Work(0)).predict(image(2))
    done = Work(PATIENCE_S)
    shared(predictor, device, done).predict(image(2))
    assert done.num_windows == 4
    assert 0 < done.network_s < done.elapsed_s


def test_one_request_too_many_is_refused_and_told_when_to_come_again():
    executor, gate = Executor(max_running=1, max_waiting=1), threading.Event()

    async def talk():
        running = [asyncio.create_task(executor.run(Work(PATIENCE_S), lambda: gate.wait(PATIENCE_S))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="try again in") as refused:
            await executor.run(Work(PATIENCE_S), lambda: True)
        gate.set()
        assert await asyncio.gather(*running) == [True, True]
        assert await executor.run(Work(PATIENCE_S), lambda: True)
        return refused.value.retry_after_s

    assert asyncio.run(talk()) >= 1
    assert executor.num_admitted == 0


def test_a_caller_that_goes_away_stops_its_work_and_keeps_its_place_until_then():
    executor, entered, gate = Executor(max_running=1, max_waiting=1), threading.Event(), threading.Event()
    work = Work(PATIENCE_S)

    def compute():
        entered.set()
        gate.wait(PATIENCE_S)
        work.check()

    async def talk():
        task = asyncio.create_task(executor.run(work, compute))
        await asyncio.to_thread(entered.wait, PATIENCE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert executor.num_admitted == 1
        with pytest.raises(Gone):
            work.check()
        gate.set()
        while executor.num_admitted:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(talk(), PATIENCE_S))


@pytest.mark.parametrize("given", [0, 12])
def test_a_thread_that_computes_lowers_its_priority_and_never_raises_it(given):
    """Only root may raise it: the server of a container that was started with a lower one could not compute."""
    code = (
        f"import asyncio, os, threading\nos.nice({given})\nfrom serving.executor import Executor, Work\n"
        "executor, work = Executor(max_running=1, max_waiting=1), Work(60)\n"
        "niceness = lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())\n"
        "print(asyncio.run(executor.run(work, niceness)), niceness())\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    computing, others = map(int, ended.stdout.split())
    assert computing == max(10, others)
    assert others >= given


def test_a_device_that_is_closed_has_computed_what_waited_and_takes_no_more():
    device, predictor = Device(), make_predictor(2)
    network = SharedNetwork(predictor.network, "cells", 4, device, Work(60), tuple(predictor.network.heads))
    assert set(network(torch.zeros(1, 1, 16, 16))) == {"seg", "distance"}
    device.close()
    with pytest.raises(Gone, match="the server ends"):
        network(torch.zeros(1, 1, 16, 16))
