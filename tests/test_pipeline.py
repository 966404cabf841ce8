"""Batches as functions of (seed, step)."""

import itertools
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cnnjax.data import pipeline
from cnnjax.data.pipeline import (
    Pipeline,
    batch_indices,
    evaluation_batches,
    evaluation_indices,
    in_memory,
    on_device,
    order,
    take,
)
from cnnjax.data.splits import EncodedImages, Split
from cnnjax.errors import CnnjaxError

ARRAY = Split(
    np.random.default_rng(0).integers(0, 256, (23, 5, 4, 3), np.uint8),
    np.arange(23, dtype=np.int32),
)


@pytest.fixture(scope="module")
def lazy(tmp_path_factory) -> Split:
    """The images of `ARRAY` as files."""
    folder = tmp_path_factory.mktemp("images")
    for i, pixels in enumerate(ARRAY.image):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    files = [str(folder / f"{i}.png") for i in range(len(ARRAY.label))]
    return Split(EncodedImages(files, np.arange(len(files)), "files", size=(5, 4)), ARRAY.label)


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for key in batch:
        assert batch[key].dtype == other[key].dtype
        np.testing.assert_array_equal(batch[key], other[key])


sizes = st.integers(1, 50)
seeds = st.integers(0, 2**63)


def test_the_order_is_the_same_on_every_machine_and_numpy():
    assert order(0, 0, 8).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]
    assert order(7, 3, 8).tolist() == [7, 1, 6, 0, 4, 2, 3, 5]


@settings(deadline=None)
@given(seed=seeds, epoch=st.integers(0, 10**6), n=sizes)
def test_an_epoch_visits_every_example_once(seed, epoch, n):
    assert sorted(order(seed, epoch, n)) == list(range(n))


def test_every_epoch_and_every_seed_has_its_own_order():
    orders = {order(seed, epoch, 100).tobytes() for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


def test_every_example_may_come_at_every_place():
    orders = np.stack([order(seed, 0, 5) for seed in range(2000)])
    for place in range(5):  # 400 each are expected, with a standard deviation of 18
        assert np.abs(np.bincount(orders[:, place], minlength=5) - 400).max() < 100


def test_an_order_cannot_be_changed_by_who_asked_for_it():
    with pytest.raises(ValueError, match="read-only"):
        order(0, 0, 8)[0] = 3


@settings(deadline=None)
@given(seed=seeds, batch=sizes, n=sizes, steps=st.integers(1, 30))
def test_the_batches_are_the_epochs_laid_end_to_end(seed, batch, n, steps):
    stream = np.concatenate([batch_indices(seed, step, batch, n) for step in range(steps)])
    epochs = [order(seed, epoch, n) for epoch in range(-(-steps * batch // n))]
    assert stream.dtype == np.int32
    np.testing.assert_array_equal(stream, np.concatenate(epochs)[: steps * batch])


@settings(max_examples=30, deadline=None)
@given(seed=seeds, steps=st.permutations(range(20)))
def test_a_batch_does_not_depend_on_what_was_asked_before(seed, steps):
    train = Pipeline(ARRAY, batch=7, seed=seed)
    expected = [train.batch(step) for step in range(20)]
    again = Pipeline(ARRAY, batch=7, seed=seed)
    for step in steps:
        assert_same(again.batch(step), expected[step])


def test_a_batch_holds_the_images_and_labels_of_its_indices():
    train = Pipeline(ARRAY, batch=7, seed=3)
    batch = train.batch(4)
    assert batch["image"].shape == (7, 5, 4, 3) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (7,) and batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["label"], train.indices(4))
    np.testing.assert_array_equal(batch["image"], ARRAY.image[train.indices(4)])


@pytest.mark.parametrize("start, stop", [(0, 9), (5, 9), (9, 9), (1000, 1003)])
def test_iterating_from_any_step_gives_the_batches_of_these_steps(start, stop, lazy):
    for split in (ARRAY, lazy):
        found = list(Pipeline(split, batch=7, seed=1).iterate(start, stop))
        assert len(found) == stop - start
        for step, batch in zip(range(start, stop), found, strict=True):
            assert_same(batch, Pipeline(ARRAY, batch=7, seed=1).batch(step))


def test_the_batches_are_the_same_for_every_number_of_workers(lazy):
    expected = [Pipeline(ARRAY, batch=6, seed=1).batch(step) for step in range(2, 8)]
    for workers in (1, 2):
        with_workers = Pipeline(lazy, batch=6, seed=1, workers=workers).iterate(2, 8)
        for batch, other in zip(with_workers, expected, strict=True):
            assert_same(batch, other)
    assert not multiprocessing.active_children()


def test_workers_leave_no_complaints_when_the_program_ends(lazy, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
import numpy as np
from cnnjax.data.pipeline import Pipeline
from cnnjax.data.splits import EncodedImages, Split

if __name__ == "__main__":
    images = EncodedImages({list(lazy.image.items)}, np.arange(23), "files", size=(5, 4))
    batches = list(Pipeline(Split(images, np.arange(23)), batch=6, seed=1, workers=1).iterate(0, 3))
    print(len(batches))
""")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    found = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, env=environment)
    assert (found.stdout, found.stderr) == ("3\n", "")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_does_not_decode_stops_the_stream_with_its_name(workers, lazy, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    items = list(lazy.image.items)
    items[11] = str(tmp_path / "bad.jpg")
    damaged = Split(EncodedImages(items, np.arange(23), "files", size=(5, 4)), lazy.label)
    with pytest.raises(CnnjaxError, match=r"cannot decode the image .*bad\.jpg"):
        list(Pipeline(damaged, batch=6, seed=1, workers=workers).iterate(0, 4))


def test_a_stream_that_is_closed_early_leaves_no_threads(lazy):
    before = threading.active_count()
    stream = Pipeline(lazy, batch=6, seed=1).iterate(0, 10_000)
    assert len(list(itertools.islice(stream, 3))) == 3
    assert threading.active_count() > before
    stream.close()
    for _ in range(100):
        if threading.active_count() <= before:
            return
        time.sleep(0.05)
    raise AssertionError(threading.enumerate())


def test_a_stream_decodes_ahead_only_as_much_as_memory_allows(lazy, monkeypatch):
    monkeypatch.setattr(pipeline, "AHEAD", 1)
    decoded = []
    stream = Pipeline(lazy, batch=6, seed=1)
    whole = stream.batch
    monkeypatch.setattr(stream, "batch", lambda step: decoded.append(step) or whole(step))
    batches = stream.iterate(0, 100)
    next(batches)
    time.sleep(0.2)
    batches.close()
    assert len(decoded) <= 4


@pytest.mark.parametrize(
    "options, words",
    [({"batch": 0}, "batch must be at least 1, got 0"), ({"seed": -1}, "seed"), ({"workers": -2}, "workers")],
)
def test_a_senseless_pipeline_is_refused(options, words):
    with pytest.raises(CnnjaxError, match=words):
        Pipeline(ARRAY, **{"batch": 4, "seed": 0, **options})
    with pytest.raises(CnnjaxError, match="batch must be at least 1"):
        evaluation_batches(ARRAY, 0)


@settings(deadline=None)
@given(n=sizes, batch=sizes)
def test_evaluation_sees_every_example_exactly_once(n, batch):
    split = Split(np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1), np.arange(1, n + 1, dtype=np.int32))
    batches = list(evaluation_batches(split, batch))
    assert len(batches) == -(-n // batch)
    for found in batches:
        assert {key: (value.shape, value.dtype) for key, value in found.items()} == {
            "image": ((batch, 1, 1, 1), np.uint8),
            "label": ((batch,), np.int32),
            "mask": ((batch,), bool),
        }
        assert not found["image"][~found["mask"]].any() and not found["label"][~found["mask"]].any()
    mask = np.concatenate([found["mask"] for found in batches])
    np.testing.assert_array_equal(np.concatenate([found["label"] for found in batches])[mask], split.label)
    np.testing.assert_array_equal(np.concatenate([found["image"] for found in batches])[mask], split.image)


@settings(deadline=None)
@given(n=sizes, batch=sizes)
def test_evaluation_on_the_device_sees_the_same_examples(n, batch):
    pairs = list(evaluation_indices(n, batch))
    seen = np.concatenate([indices[mask] for indices, mask in pairs])
    np.testing.assert_array_equal(seen, np.arange(n))
    assert all(indices.shape == mask.shape == (batch,) and indices.dtype == np.int32 for indices, mask in pairs)
    assert all(indices.min() >= 0 and indices.max() < n for indices, _ in pairs)


def test_evaluation_of_files_is_that_of_an_array(lazy):
    for batch, other in zip(evaluation_batches(lazy, 10), evaluation_batches(ARRAY, 10), strict=True):
        assert_same(batch, other)


def test_what_the_device_gathers_is_what_the_host_does():
    train, device = Pipeline(ARRAY, batch=9, seed=0), on_device(ARRAY)
    gather = jax.jit(take)
    for step in range(5):
        assert_same(gather(device, train.indices(step)), train.batch(step))
    assert gather._cache_size() == 1


def test_a_split_can_be_put_on_all_devices():
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    device = on_device(ARRAY, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    assert device.image.is_fully_replicated and len(device.label.devices()) == jax.device_count()
    assert_same(take(device, np.array([3, 1])), {"image": ARRAY.image[[3, 1]], "label": ARRAY.label[[3, 1]]})


def test_only_arrays_are_in_memory(lazy):
    assert in_memory(ARRAY) and not in_memory(lazy)
