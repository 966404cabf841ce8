"""Checkpoints come back bit for bit or not at all; metrics.jsonl loses at most a half-written line."""

import contextlib
import dataclasses
import errno
import json
import random
import resource
import shutil
import subprocess
import sys

import chex
import corrupt
import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnnjax.errors import CnnjaxError
from cnnjax.models.chain import chain
from cnnjax.models.layers import Conv, Dense, Norm
from cnnjax.train import checkpoint, fingerprint, losses, manifest, metrics, optim
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


def test_a_state_goes_from_one_device_to_eight_and_back(state, tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), state)
    with checkpoint.opened(tmp_path) as saved:
        checkpoint.save(saved, 1, state, {})
        on_eight = checkpoint.restore(saved, 1, abstract)
        checkpoint.save(saved, 2, on_eight, {})
        back = checkpoint.restore(saved, 2, like(state))
    assert all(leaf.sharding == everywhere for leaf in jax.tree.leaves(on_eight))
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(back))
    chex.assert_trees_all_equal(on_eight, state)
    chex.assert_trees_all_equal(back, state)


def test_a_state_that_lies_in_eight_parts_comes_back_on_one_device(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    parts = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = {"kernel": jnp.arange(48.0).reshape(16, 3)}
    with checkpoint.opened(tmp_path) as saved:
        checkpoint.save(saved, 1, jax.device_put(whole, parts), {})
        back = checkpoint.restore(saved, 1, like(whole))
    assert len(back["kernel"].devices()) == 1
    chex.assert_trees_all_equal(back, whole)


def test_the_newest_checkpoints_stay(state, tmp_path):
    with checkpoint.opened(tmp_path, keep=2) as saved:
        for step in (1, 2, 3):
            checkpoint.save(saved, step, state._replace(step=jnp.int32(step)), {})
        assert checkpoint.latest(saved) == 3
        assert checkpoint.restore(saved, 2, like(state)).step == 2
    assert there(tmp_path) == ["2", "3"]


def test_the_best_checkpoint_stays_beside_the_newest(tmp_path):
    with checkpoint.opened(tmp_path, keep=2, best="error") as saved:
        for step, error in enumerate((5.0, 3.0, None, 3.0, 4.0, None), start=1):
            checkpoint.save(saved, step, {"a": jnp.zeros(())}, {"error": error})
        assert checkpoint.best(saved) == 2
    assert there(tmp_path) == ["2", "5", "6"]
    with checkpoint.opened(tmp_path, keep=1, best="error") as saved:
        checkpoint.save(saved, 7, {"a": jnp.zeros(())}, {"error": 2.0})
    assert there(tmp_path) == ["7"]
    assert checkpoint.best(checkpoint.Checkpoints(tmp_path / "no such folder")) is None


@pytest.mark.parametrize("name", ["9.partial", "9.partial.orbax-checkpoint-tmp"])
def test_the_leftovers_of_a_killed_save_are_neither_seen_nor_kept(name, tmp_path):
    tree = {"a": jnp.zeros(())}
    with checkpoint.opened(tmp_path) as saved:
        checkpoint.save(saved, 1, tree, {})
    shutil.copytree(tmp_path / "1", tmp_path / name)
    assert checkpoint.latest(checkpoint.Checkpoints(tmp_path)) == 1
    with checkpoint.opened(tmp_path) as saved:
        assert checkpoint.latest(saved) == 1
        checkpoint.save(saved, 9, tree, {})
    assert there(tmp_path) == ["1", "9"]


def test_a_save_that_is_killed_before_its_manifest_is_written_is_no_checkpoint(tmp_path, monkeypatch):
    """Orbax is done with it then, and it may be whole or torn: what was saved before is certain to be whole."""

    def killed(folder):
        raise SystemExit

    tree = {"a": jnp.zeros(())}
    with checkpoint.opened(tmp_path) as saved:
        checkpoint.save(saved, 1, tree, {})
        monkeypatch.setattr(manifest, "write", killed)
        with pytest.raises(SystemExit):
            checkpoint.save(saved, 2, tree, {})
    monkeypatch.undo()
    with checkpoint.opened(tmp_path) as saved:
        assert checkpoint.latest(saved) == 1
        checkpoint.save(saved, 2, tree, {})
        assert checkpoint.latest(saved) == 2


def there(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


# --- what the disk does to them


@pytest.fixture(scope="module")
def two(state, tmp_path_factory):
    """A folder with the checkpoints 1 and 2."""
    folder = tmp_path_factory.mktemp("two")
    with checkpoint.opened(folder) as saved:
        for step in (1, 2):
            checkpoint.save(saved, step, state._replace(step=jnp.int32(step)), FACTS)
    return folder


def test_every_damage_to_a_file_is_seen(two, tmp_path):
    random.seed(0)
    for what, how, path in corrupt.damages(two / "2", flips=50):
        folder = tmp_path / "copy"
        shutil.copytree(two / "2", folder)
        assert manifest.damage(folder) is None
        how(folder / path)
        assert manifest.damage(folder), f"{path}, {what}, passes for whole"
        shutil.rmtree(folder)
    assert manifest.damage(two / "2") is None


def test_every_damage_to_the_manifest_is_seen(two, tmp_path):
    """Also where a letter becomes a capital, and the SHA-256 stays the same number."""
    folder = tmp_path / "2"
    shutil.copytree(two / "2", folder)
    for byte in range((folder / manifest.NAME).stat().st_size):
        corrupt.flip(folder / manifest.NAME, 8 * byte + 5)
        assert manifest.damage(folder), byte
        corrupt.flip(folder / manifest.NAME, 8 * byte + 5)
    assert manifest.damage(folder) is None


def test_files_that_were_not_there_are_seen(two, tmp_path):
    shutil.copytree(two / "2", tmp_path / "2")
    (tmp_path / "2" / "state" / "more").write_text("")
    assert manifest.damage(tmp_path / "2") == "state/more is not in MANIFEST.sha256"


def test_the_manifest_is_what_sha256sum_checks(two):
    if shutil.which("sha256sum") is None:
        pytest.skip("there is no sha256sum")
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", manifest.NAME], cwd=two / "2", check=True)


def test_a_damaged_checkpoint_is_set_aside_in_one_line_and_the_one_before_is_used(state, two, tmp_path, capfd):
    folder = tmp_path / "copy"
    shutil.copytree(two, folder)
    corrupt.flip(folder / "2" / "facts.json", 100)
    with checkpoint.opened(folder) as saved:
        assert checkpoint.latest(saved) == 1 and checkpoint.latest(saved) == 1
        assert capfd.readouterr().err == f"warning: {folder}/2 is damaged and passed over: facts.json has changed\n"
        assert there(folder) == ["1", "2.corrupt"]
        assert checkpoint.restore(saved, 1, like(state)).step == 1
        with pytest.raises(CnnjaxError, match="no whole checkpoint 2"):
            checkpoint.restore(saved, 2, like(state))
        checkpoint.save(saved, 2, state, {})
    corrupt.flip(folder / "2" / "facts.json", 0)
    with checkpoint.opened(folder) as saved:
        assert checkpoint.latest(saved) == 1 and there(folder) == ["1", "2.corrupt"]
        (folder / "1" / manifest.NAME).unlink()
    with checkpoint.opened(folder) as saved:
        assert checkpoint.latest(saved) is None and there(folder) == ["1.corrupt", "2.corrupt"]


def test_what_is_only_read_may_be_read_only(state, two, tmp_path, capfd):
    with read_only(tmp_path) as (outside, folder):
        shutil.copytree(two, outside, dirs_exist_ok=True)
        corrupt.flip(outside / "2" / "state" / "_METADATA", 0)
        saved = checkpoint.Checkpoints(folder)
        assert checkpoint.latest(saved) == 1 and there(folder) == ["1", "2"]
        assert checkpoint.restore(saved, 1, like(state)).step == 1
        assert capfd.readouterr().err.count("\n") == 1
        with pytest.raises(CnnjaxError) as error, checkpoint.opened(folder):
            pass
        assert str(error.value) == f"cannot keep checkpoints in {folder}: Read-only file system"


@contextlib.contextmanager
def read_only(folder):
    """(a folder, the same as a file system that nobody can write to, not even root)."""
    outside, inside = folder / "outside", folder / "inside"
    outside.mkdir()
    inside.mkdir()
    for options in (["--bind", outside, inside], ["-o", "remount,bind,ro", inside]):
        done = subprocess.run(["mount", *map(str, options)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this user cannot mount: {done.stderr.strip()}")
    try:
        yield outside, inside
    finally:
        subprocess.run(["umount", str(inside)], check=True)


def test_a_full_disk_costs_the_new_checkpoint_and_no_other(state, tmp_path, capfd, caplog):
    with checkpoint.opened(tmp_path) as saved:
        checkpoint.save(saved, 1, state, FACTS)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(checkpoint.NotSaved) as error:
                checkpoint.save(saved, 2, state, FACTS)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert capfd.readouterr().err == "" and caplog.records == []
        assert str(error.value).split("\n") == [
            f"cannot save checkpoint 2 in {tmp_path}: File too large",
            "checkpoint 1 is there, and the same command goes on from it",
        ]
        assert error.value.exit_code == 74 and there(tmp_path) == ["1"]
        chex.assert_trees_all_equal(checkpoint.restore(saved, 1, like(state)), state)
        checkpoint.save(saved, 2, state, FACTS)
    assert checkpoint.latest(checkpoint.Checkpoints(tmp_path)) == 2


def test_it_is_said_how_much_room_there_is_and_how_much_is_needed(state, tmp_path, monkeypatch):
    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifest, "write", full)
    with checkpoint.opened(tmp_path) as saved, pytest.raises(checkpoint.NotSaved) as error:
        checkpoint.save(saved, 2, {"a": jnp.zeros(750_000)}, {})
    assert "No space left on device; it needs about 3.0 MB, " in str(error.value)
    assert "MB are free" in str(error.value) and there(tmp_path) == []


def test_what_is_no_fault_of_the_disk_is_not_called_one(tmp_path):
    with checkpoint.opened(tmp_path) as saved, pytest.raises(TypeError):
        checkpoint.save(saved, 1, {"a": jnp.zeros(())}, {"set": {1}})


def test_two_processes_cannot_keep_checkpoints_in_one_folder(tmp_path):
    code = (
        "import pathlib, sys; from cnnjax.train.checkpoint import opened; opened(pathlib.Path(sys.argv[1])).__enter__()"
    )
    with checkpoint.opened(tmp_path):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert f"CnnjaxError: another process keeps its checkpoints in {tmp_path}" in done.stderr


@pytest.mark.long
def test_a_command_goes_on_after_every_damage_and_comes_to_the_same_end():
    counts = corrupt.compare(flips=5)
    assert len(counts) == 5 and all(good == done > 0 for good, done in counts.values()), counts


# --- other versions


def test_the_golden_checkpoint_is_read_bit_for_bit():
    assert sum(path.stat().st_size for path in golden.FOLDER.rglob("*")) < 100_000
    facts, back = golden.read(golden.FOLDER)
    assert facts == golden.FACTS
    chex.assert_trees_all_equal_structs(back, golden.state())
    chex.assert_trees_all_equal(back, golden.state())


def test_what_another_version_cannot_read_is_said_in_a_line(two, tmp_path, state):
    shutil.copytree(two / "2", tmp_path / "2")
    (tmp_path / "2" / "state" / "_METADATA").write_text("{}")
    manifest.write(tmp_path / "2")
    with pytest.raises(CnnjaxError, match="cannot read") as error:
        checkpoint.restore(checkpoint.Checkpoints(tmp_path), 2, like(state))
    assert "\n" not in str(error.value)


# --- what does not fit


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
    saved = fingerprint.of(now)
    fingerprint.check(tmp_path, json.loads(json.dumps(saved)), saved)
    wider = chain(conv1=Conv(5, 3, norm=Norm()), fc2=Dense(3, act=None))
    changes = {"net": wider, "batch": 16, "frozen": frozenset(), "loss": losses.cross_entropy(label_smoothing=0.1)}
    names = [
        "net.layers.0.module.features: saved 4, now 5",
        "batch: saved 8, now 16",
        "frozen.0: saved 'fc2', now None",
    ]
    for (key, value), name in zip(changes.items(), [*names, "loss.options.0.1: saved 0.0, now 0.1"], strict=True):
        with pytest.raises(CnnjaxError) as error:
            fingerprint.check(tmp_path, saved, fingerprint.of({**now, key: value}))
        assert str(error.value) == f"{tmp_path} holds a run with other settings:\n  {name}"
    with pytest.raises(CnnjaxError) as error:
        fingerprint.check(tmp_path, saved, {})
    assert len(str(error.value).split("\n")) == 5


def named(x: float) -> float:
    return x


def test_a_fingerprint_holds_no_addresses_and_no_defaults():
    @dataclasses.dataclass(frozen=True)
    class Record:
        function: object
        thing: object
        value: float = 1.0

    told = fingerprint.of({"r": Record(named, object())})
    assert told == {"r": "Record", "r.function": "named", "r.thing": "<object object>"}
    assert fingerprint.of({"r": Record(named, (1, None), 2.0)})["r.value"] == 2.0


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
