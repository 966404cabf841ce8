"""Checkpoints come back bit for bit, or are refused by name; metrics.jsonl loses at most a half-written line."""

import dataclasses
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnnjax.errors import CnnjaxError
from cnnjax.models.chain import chain
from cnnjax.models.layers import Conv, Dense, Norm
from cnnjax.train import checkpoint, losses, metrics, optim
from cnnjax.train.state import State, create

NET = chain(conv1=Conv(4, 3, norm=Norm()), fc2=Dense(3, act=None))
FACTS = {"settings": {"seed": 0, "batch": 8}, "window": [{"loss": 0.1}]}


@pytest.fixture(scope="module")
def state() -> State:
    """A state with everything that can be in one: statistics, momentum, plateau, averages; no two leaves alike."""
    tx = optax.chain(optim.sgd(0.1, momentum=0.9), optim.plateau())
    made = create(NET, tx, jax.random.key(0), (5, 5, 1), frozen=frozenset(), average=True)
    leaves, tree = jax.tree.flatten(made)
    return jax.tree.unflatten(tree, [leaf if leaf.dtype == bool else leaf + i for i, leaf in enumerate(leaves)])


def like(state: State) -> State:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), state)


def test_what_is_saved_comes_back_bit_for_bit_and_committed_to_its_device(state, tmp_path):
    with checkpoint.opened(tmp_path / "new" / "folder") as saved:
        assert checkpoint.latest(saved) is None
        checkpoint.save(saved, 7, state, FACTS)
    with checkpoint.opened(tmp_path / "new" / "folder") as saved:
        assert checkpoint.latest(saved) == 7
        assert checkpoint.facts(saved, 7) == FACTS
        back = checkpoint.restore(saved, 7, like(state))
    chex.assert_trees_all_equal_structs(back, state)
    chex.assert_trees_all_equal_dtypes(back, state)
    chex.assert_trees_all_equal(back, state)
    assert all(leaf.committed for leaf in jax.tree.leaves(back))


def test_every_kind_of_leaf_keeps_its_bits(tmp_path):
    tree = {"half": jnp.asarray([1.0, 3.14159], jnp.bfloat16), "none": None, "flag": jnp.asarray(True), "empty": {}}
    with checkpoint.opened(tmp_path) as saved:
        checkpoint.save(saved, 0, tree, {})
        chex.assert_trees_all_equal(checkpoint.restore(saved, 0, tree), tree)


def test_a_state_of_one_device_is_restored_on_eight(state, tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), state)
    with checkpoint.opened(tmp_path) as saved:
        checkpoint.save(saved, 1, state, {})
        back = checkpoint.restore(saved, 1, abstract)
    assert all(leaf.sharding == everywhere for leaf in jax.tree.leaves(back))
    chex.assert_trees_all_equal(back, state)


def test_the_newest_checkpoints_stay(state, tmp_path):
    with checkpoint.opened(tmp_path, keep=2) as saved:
        for step in (1, 2, 3):
            checkpoint.save(saved, step, state._replace(step=jnp.int32(step)), {})
        assert checkpoint.latest(saved) == 3
        assert checkpoint.restore(saved, 2, like(state)).step == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def test_the_leftovers_of_a_killed_save_are_neither_seen_nor_kept(state, tmp_path):
    with checkpoint.opened(tmp_path) as saved:
        checkpoint.save(saved, 1, state, {})
    torn = tmp_path / "9.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", torn)
    (torn / "commit_success.txt").unlink()
    with checkpoint.opened(tmp_path) as saved:
        assert checkpoint.latest(saved) == 1
        checkpoint.save(saved, 2, state, {})
    assert not torn.exists()


def changed_leaf(leaf, shape=None, dtype=None):
    return jax.ShapeDtypeStruct(shape or leaf.shape, dtype or leaf.dtype, sharding=leaf.sharding)


def test_a_checkpoint_of_another_network_is_refused_with_the_differences(state, tmp_path):
    changed = like(state)
    changed.params["conv1"]["kernel"] = changed_leaf(changed.params["conv1"]["kernel"], shape=(5, 5, 1, 4))
    changed.params["fc2"]["bias"] = changed_leaf(changed.params["fc2"]["bias"], dtype=jnp.bfloat16)
    changed.params["fc3"] = {"bias": changed.params["fc2"]["bias"]}
    del changed.stats["conv1"]
    with checkpoint.opened(tmp_path) as saved:
        checkpoint.save(saved, 4, state, {})
        with pytest.raises(CnnjaxError) as error:
            checkpoint.restore(saved, 4, changed)
    lines = str(error.value).split("\n")
    assert lines[0].startswith("checkpoint 4 in ")
    assert lines[1:] == [
        "  missing: params.fc3.bias",
        "  unexpected: stats.conv1.norm.mean, stats.conv1.norm.var",
        "  different: params.conv1.kernel: have float32[3, 3, 1, 4], want float32[5, 5, 1, 4], "
        "params.fc2.bias: have float32[3], want bfloat16[3]",
    ]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CnnjaxError, match="file"), checkpoint.opened(folder):
            pass


def test_settings_that_differ_are_named(tmp_path):
    now = {"net": NET, "batch": 8, "frozen": frozenset({"fc2"}), "loss": losses.cross_entropy()}
    saved = checkpoint.fingerprint(now)
    checkpoint.check(tmp_path, json.loads(json.dumps(saved)), saved)
    wider = chain(conv1=Conv(5, 3, norm=Norm()), fc2=Dense(3, act=None))
    changes = {"net": wider, "batch": 16, "frozen": frozenset(), "loss": losses.cross_entropy(label_smoothing=0.1)}
    names = [
        "net.layers.0.module.features: saved 4, now 5",
        "batch: saved 8, now 16",
        "frozen.0: saved 'fc2', now None",
    ]
    for (key, value), name in zip(changes.items(), [*names, "loss.options.0.1: saved 0.0, now 0.1"], strict=True):
        with pytest.raises(CnnjaxError) as error:
            checkpoint.check(tmp_path, saved, checkpoint.fingerprint({**now, key: value}))
        assert str(error.value) == f"{tmp_path} holds a run with other settings:\n  {name}"
    with pytest.raises(CnnjaxError) as error:
        checkpoint.check(tmp_path, saved, {})
    assert len(str(error.value).split("\n")) == 5


def named(x: float) -> float:
    return x


def test_a_fingerprint_holds_no_addresses_and_no_defaults():
    @dataclasses.dataclass(frozen=True)
    class Record:
        function: object
        thing: object
        value: float = 1.0

    told = checkpoint.fingerprint({"r": Record(named, object())})
    assert told == {"r": "Record", "r.function": "named", "r.thing": "<object object>"}
    assert checkpoint.fingerprint({"r": Record(named, (1, None), 2.0)})["r.value"] == 2.0


def test_rows_are_on_the_disk_when_append_returns_and_a_half_written_one_is_none(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert metrics.read(path) == metrics.rewind(path, 5) == []
    rows = [{"step": step, "train": {"loss": 0.1 * step}} for step in (2, 4, 6)]
    for i, row in enumerate(rows, start=1):
        metrics.append(path, row)
        assert metrics.read(path) == rows[:i]
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines()[-1]) + 1):
        path.write_bytes(whole[:-cut])
        assert metrics.read(path) == rows[:2]
    assert metrics.rewind(path, 10) == rows[:2]
    metrics.append(path, rows[2])
    assert path.read_bytes() == whole


def test_rewinding_drops_what_came_after_the_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (2, 4, 4, 6):
        metrics.append(path, {"step": step})
    assert metrics.rewind(path, 4) == metrics.read(path) == [{"step": 2}, {"step": 4}, {"step": 4}]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(CnnjaxError, match="line 2"):
        metrics.read(path)


def test_a_row_never_holds_what_json_has_no_word_for(tmp_path):
    with pytest.raises(ValueError):
        metrics.append(tmp_path / "metrics.jsonl", {"step": 1, "train": {"loss": np.nan}})
