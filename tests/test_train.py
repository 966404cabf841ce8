"""One step, one loop: pure, compiled once, exact when resumed, and it touches nothing that is frozen."""

import dataclasses
import hashlib
import pickle
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from kill_resume import compare

from cnnjax.data.images import Transform
from cnnjax.data.splits import Dataset, Split
from cnnjax.errors import CnnjaxError
from cnnjax.models.chain import Aux, Block, chain, features, rows
from cnnjax.models.layers import Conv, Dense, Dropout, Flatten, Norm
from cnnjax.models.ops import reference_forms
from cnnjax.train import checkpoint, losses, optim, parallel
from cnnjax.train.evaluate import evaluate
from cnnjax.train.feed import CentreCrop, Prepare, stream
from cnnjax.train.journal import NonFinite
from cnnjax.train.loop import fit
from cnnjax.train.metrics import read
from cnnjax.train.parallel import ONE
from cnnjax.train.state import State, create, merge, split, variables
from cnnjax.train.step import BF16, F32, eval_step, train_step

NET = chain(conv1=Conv(4, 3, norm=Norm()), conv2=Conv(4, 3, norm=Norm()), drop=Dropout(0.5), fc3=Dense(3, act=None))
SMALL = chain(fc1=Dense(8, norm=Norm(), dropout=0.2), fc2=Dense(3, act=None))  # for the loop: it compiles in no time
LOSS = losses.cross_entropy()
TX = optax.chain(optax.clip_by_global_norm(1.0), optim.sgd(0.1, momentum=0.9, weight_decay=1e-2))
FRAME = Transform(mean=(0.5,), std=(0.25,))
NONE = frozenset()


def noise(n: int, *, size: int = 8, classes: int = 3) -> Split:
    """Images of noise around a brightness, and labels that say how bright."""
    random = np.random.default_rng(n)
    label = random.integers(0, classes, n).astype(np.int32)
    image = random.integers(0, 128, (n, size, size, 1)) + (label * (127 // classes))[:, None, None, None]
    return Split(image.astype(np.uint8), label)


DATA = Dataset("noise", noise(50), noise(23), ("dark", "grey", "bright"))


class Lazy:
    """Images that are not all in memory."""

    def __init__(self, images: np.ndarray):
        self.images, self.shape = images, images.shape

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices) -> np.ndarray:
        return self.images[indices]


def batch(n: int = 6) -> dict:
    examples = noise(n)
    return Prepare(FRAME)(None, {"image": jnp.asarray(examples.image), "label": jnp.asarray(examples.label)})


def start(net=NET, tx=TX, *, frozen=NONE, average=False, seed=0) -> State:
    return create(net, tx, jax.random.key(seed), (8, 8, 1), frozen=frozen, average=average)


def advance(state: State, steps: int, net=NET, tx=TX, loss=LOSS, *, key=9, **how) -> tuple[State, dict]:
    how = {"frozen": NONE, "augment": None, "policy": F32, "ema_decay": 0.5, "accumulate": 1, "remat": NONE} | how
    state, metrics = jax.tree.map(jnp.copy, state), {}  # the step is donated what it is given
    for _ in range(steps):
        state, metrics = parallel.advance(ONE, net, tx, loss, jax.random.key(key), state, batch(), steps=1, **how)
    return state, jax.tree.map(lambda leaf: leaf[0], metrics)


def run(folder=None, *, net=SMALL, tx=TX, steps=12, seed=0, data=DATA, **how):
    how = {"transform": FRAME, "batch": 8, "log_every": 3, "eval_every": 6, "save_every": 4} | how
    return fit(net, tx, LOSS, data, steps=steps, seed=seed, folder=folder, **how)


def digest(tree) -> str:
    told = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        told.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return told.hexdigest()


def untimed(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]


# --- the step


@pytest.mark.parametrize("tx", [TX, optax.adam(optim.cosine(1e-3, 9, warmup=2))], ids=["sgd", "adam"])
def test_the_step_is_pure_and_strict_about_ranks_and_dtypes(tx, strict):
    state = start(SMALL, tx, average=True)
    before = digest(state)
    first, again = (advance(state, 2, SMALL, tx) for _ in range(2))
    chex.assert_trees_all_equal(first, again)
    assert digest(state) == before != digest(first[0])
    assert first[0].step == 2 and first[0].step.dtype == jnp.int32
    chex.assert_trees_all_equal_shapes_and_dtypes(first[0], state)


def test_dropout_is_drawn_anew_at_every_step_and_for_every_key():
    def loss_at(step: int, seed: int) -> float:
        return float(advance(start()._replace(step=jnp.int32(step)), 1, key=seed)[1]["loss"])

    assert len({loss_at(0, 0), loss_at(1, 0), loss_at(0, 1)}) == 3
    assert loss_at(5, 5) == loss_at(5, 5)


def test_one_batch_can_be_learnt_by_heart():
    state, _ = advance(start(), 60)
    sums = eval_step(NET, LOSS, variables(state), {**batch(), "mask": jnp.ones(6, bool)})
    assert sums["correct"] == 6


def test_the_update_is_the_gradient_times_the_rate():
    net, tx = chain(fc1=Dense(3, act=None)), optax.sgd(0.5)
    state = start(net, tx)
    examples = batch()
    x = np.asarray(examples["image"]).reshape(6, -1)
    p = np.exp(x @ np.asarray(state.params["fc1"]["kernel"]) + np.asarray(state.params["fc1"]["bias"]))
    excess = p / p.sum(axis=1, keepdims=True) - np.eye(3)[np.asarray(examples["label"])]
    after, metrics = advance(state, 1, net, tx)
    expected = np.asarray(state.params["fc1"]["kernel"]) - 0.5 * x.T @ excess / 6
    chex.assert_trees_all_close(after.params["fc1"]["kernel"], expected.astype(np.float32), atol=1e-5)
    norm = np.sqrt(((x.T @ excess / 6) ** 2).sum() + (excess.mean(axis=0) ** 2).sum())
    chex.assert_trees_all_close(metrics["grad_norm"], np.float32(norm), rtol=1e-4)
    assert metrics["error"] == pytest.approx(100 * np.mean(p.argmax(axis=1) != examples["label"]))


@pytest.mark.parametrize("tx", [TX, optax.adamw(1e-2)], ids=["sgd", "adamw"])
def test_frozen_layers_stay_bit_for_bit_under_decay_momentum_and_clipping(tx):
    frozen = frozenset({"conv1", "drop"})
    state = start(tx=tx, frozen=frozen, average=True)
    after, _ = advance(state, 100, tx=tx, frozen=frozen)
    for part in (lambda s: s.params, lambda s: s.stats, lambda s: s.ema["params"], lambda s: s.ema["batch_stats"]):
        assert digest(part(state)["conv1"]) == digest(part(after)["conv1"])
        assert digest(part(state)["conv2"]) != digest(part(after)["conv2"])
    assert "conv1" not in str(jax.tree_util.tree_flatten_with_path(state.opt_state)[0])


def test_frozen_layers_act_as_in_inference():
    frozen = frozenset({"conv1", "conv2", "drop"})
    state = start(frozen=frozen)
    sums = eval_step(NET, LOSS, variables(state), {**batch(), "mask": jnp.ones(6, bool)})
    assert float(advance(state, 1, frozen=frozen)[1]["loss"]) == pytest.approx(float(sums["loss"]) / 6, rel=1e-5)


def test_the_gradient_norm_does_not_see_frozen_layers():
    net = chain(conv1=Conv(4, 3), fc2=Dense(3, act=None))
    norms = [
        float(advance(start(net, frozen=frozen), 1, net, frozen=frozen)[1]["grad_norm"])
        for frozen in (NONE, frozenset({"conv1"}), frozenset({"fc2"}))
    ]
    assert norms[0] ** 2 == pytest.approx(norms[1] ** 2 + norms[2] ** 2, rel=1e-4) and min(norms) > 0


def test_the_gradient_norms_of_watched_layers_are_told_and_together_make_the_whole():
    net = chain(conv1=Conv(4, 3), conv2=Conv(4, 3), fc3=Dense(3, act=None))
    every = frozenset(start(net).params)
    metrics = advance(start(net), 1, net, watch=every)[1]
    parts = {name: float(metrics[f"grad_norm/{name}"]) for name in every}
    assert all(part > 0 for part in parts.values())
    assert np.sqrt(sum(part**2 for part in parts.values())) == pytest.approx(float(metrics["grad_norm"]), rel=1e-5)
    with pytest.raises(CnnjaxError, match="unknown trained layer 'conv9'\nlegal: "):
        advance(start(net), 1, net, watch=frozenset({"conv9"}))


def test_training_with_frozen_layers_costs_what_training_the_others_alone_costs():
    """The compiled step's operations are those of the frozen layers at inference, and of a step on what they give."""
    net = chain(
        conv1=Conv(16, 3, norm=Norm()), conv2=Conv(16, 3, norm=Norm()), conv3=Conv(16, 3), fc4=Dense(3, act=None)
    )
    examples, frozen = batch(), frozenset({"conv1", "conv2"})
    rest = chain(conv3=Conv(16, 3), fc4=Dense(3, act=None))

    def flops(function, *arguments) -> float:
        return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]

    def step(net, frozen, shape, examples):
        state = create(net, TX, jax.random.key(0), shape, frozen=frozen)
        return flops(partial(train_step, net, TX, LOSS, frozen=frozen), jax.random.key(0), state, examples)

    with reference_forms(True):
        held, free = (step(net, layers, (8, 8, 1), examples) for layers in (frozen, NONE))
        given = variables(start(net))
        before = flops(lambda images: features(net, given, images, "conv2"), examples["image"])
        alone = step(rest, NONE, (4, 4, 16), {**examples, "image": jnp.zeros((6, 4, 4, 16))})
    assert held == pytest.approx(before + alone, rel=0.05)
    assert held < 0.6 * free


def test_freezing_an_unknown_layer_or_everything_is_refused():
    with pytest.raises(CnnjaxError, match="conv9"):
        start(frozen=frozenset({"conv9"}))
    with pytest.raises(CnnjaxError, match="nothing is left"):
        start(frozen=frozenset(NET.names))


def test_splitting_and_merging_are_inverse():
    params = {"a": 1, "b": 2, "c": 3}
    assert split(params, frozenset({"b", "z"})) == ({"a": 1, "c": 3}, {"b": 2})
    assert merge(*split(params, frozenset({"b"}))) == params


def test_auxiliary_heads_enter_the_loss_and_get_gradients():
    head = Aux("aux", "conv1", Block(rows(flat=Flatten(), out=Dense(3, act=None))))
    net = chain(conv1=Conv(4, 3), fc2=Dense(3, act=None), aux=(head,))
    state = start(net)
    values = {w: advance(state, 1, net, loss=losses.cross_entropy(aux_weight=w)) for w in (0.0, 0.5, 1.0)}
    loss = {w: float(metrics["loss"]) for w, (_, metrics) in values.items()}
    assert loss[1.0] - loss[0.5] == pytest.approx(loss[0.5] - loss[0.0], rel=1e-4) and loss[1.0] > loss[0.0]
    assert digest(values[0.5][0].params["aux"]) != digest(state.params["aux"])
    sums = eval_step(net, LOSS, variables(state), {**batch(), "mask": jnp.ones(6, bool)})
    assert sums["loss"] / 6 == pytest.approx(loss[0.0], rel=1e-4)


def test_bfloat16_computes_in_half_and_keeps_float32_masters():
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Watch:
        def __call__(self, output, labels):
            seen.append(output.logits.dtype)
            return LOSS(output, labels)

    (half, metrics), (full, _) = advance(start(), 1, loss=Watch(), policy=BF16), advance(start(), 1)
    chex.assert_trees_all_equal_shapes_and_dtypes(half, full)
    assert seen == [jnp.float32] and metrics["loss"].dtype == jnp.float32
    chex.assert_trees_all_close(half.params, full.params, atol=2e-2)
    assert digest(half.params) != digest(full.params)
    text = str(jax.make_jaxpr(partial(train_step, NET, TX, LOSS, policy=BF16))(jax.random.key(1), start(), batch()))
    assert "bf16[6,6,6,4]" in text


def test_the_averages_start_fast_and_then_follow_with_the_decay():
    state = start(average=True)
    ema = np.asarray(state.ema["params"]["fc3"]["bias"])
    for step in range(5):
        state, _ = advance(state, 1, ema_decay=0.3)
        keep = min(0.3, (1 + step) / (10 + step))
        ema = keep * ema + (1 - keep) * np.asarray(state.params["fc3"]["bias"])
        chex.assert_trees_all_close(state.ema["params"]["fc3"]["bias"], ema, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_equal(variables(state), state.ema)
    assert digest(state.ema["batch_stats"]) != digest(state.stats)


def test_a_network_without_statistics_has_none():
    state, _ = advance(start(chain(fc1=Dense(3, act=None)), average=True), 1, chain(fc1=Dense(3, act=None)))
    assert state.stats == {} and state.ema["batch_stats"] == {}


# --- evaluation


@pytest.mark.parametrize("lazy", [False, True])
def test_evaluation_counts_every_example_once_with_a_ragged_last_batch(lazy):
    state = start(seed=4)
    examples = DATA.test._replace(image=Lazy(DATA.test.image)) if lazy else DATA.test
    scores = [
        evaluate(NET, LOSS, variables(state), examples, prepare=Prepare(FRAME), batch=size) for size in (1, 8, 23, 50)
    ]
    images = Prepare(FRAME)(None, {"image": jnp.asarray(DATA.test.image)})["image"]
    output = NET.apply(variables(state), images)
    wrong = int((np.argmax(output.logits, axis=1) != DATA.test.label).sum())
    for score in scores:
        assert score["count"] == 23 and score["error5"] == 0
        assert score["error"] == pytest.approx(100 * wrong / 23) and wrong > 0
        assert score["loss"] == pytest.approx(float(LOSS(output, jnp.asarray(DATA.test.label)).mean()), rel=1e-5)


def test_the_best_five_are_counted_and_ties_are_no_gift(strict):
    net = chain(fc1=Dense(9, act=None))
    zero = {"params": {"fc1": {"kernel": jnp.zeros((9, 9)), "bias": jnp.zeros(9)}}}
    identity = {"params": {"fc1": {"kernel": jnp.eye(9), "bias": jnp.zeros(9)}}}
    images = jnp.tile(jnp.arange(9.0), (4, 1)).reshape(4, 3, 3, 1)
    examples = {"image": images, "label": jnp.array([8, 4, 3, 8]), "mask": jnp.array([True, True, True, False])}
    sums = eval_step(net, LOSS, identity, examples)
    assert (sums["count"], sums["correct"], sums["correct5"]) == (3, 1, 2)
    assert eval_step(net, LOSS, zero, examples)["correct"] == 0


def test_a_lesion_is_scored_without_training():
    state = start(seed=4)
    examples = {**batch(), "mask": jnp.ones(6, bool)}
    whole, lesion = (eval_step(NET, LOSS, variables(state), examples, skip=frozenset(s)) for s in ((), ("drop",)))
    assert whole["loss"] == lesion["loss"]
    with pytest.raises(CnnjaxError, match="conv1"):
        eval_step(NET, LOSS, variables(state), examples, skip=frozenset({"conv1"}))


# --- what reaches the step


def test_a_set_on_the_device_and_a_lazy_one_give_the_same_batches():
    prepare = jax.jit(Prepare(FRAME))
    how = {"batch": 20, "start": 3, "stop": 7}  # 50 / 20: across the ends of epochs
    split = DATA.train._replace(image=Lazy(DATA.train.image))
    lazy = [prepare(None, examples) for _, examples in stream(split, seeds=(1,), **how)]
    assert len(lazy) == 4
    for chunk in (1, 2):
        resident = []
        for span, examples in stream(DATA.train, seeds=(1,), chunk=chunk, **how):
            for step in range(len(span)):
                resident.append(prepare(None, {**examples, "index": examples["index"][step]}))
        chex.assert_trees_all_equal(resident, lazy)
    both = [examples["index"] for _, examples in stream(DATA.train, seeds=(4, 1), **how)]
    resident = [prepare(None, {**examples, "index": index[0, 1]}) for index in both]
    chex.assert_trees_all_equal(resident, lazy)


def test_a_lazy_set_trains_to_the_same_bits():
    lazy = DATA._replace(train=DATA.train._replace(image=Lazy(DATA.train.image)))
    assert digest(run(data=lazy).state) == digest(run().state)


def crop(key, batch):
    top, left = jax.random.randint(key, (2,), 0, 3)
    return {
        **batch,
        "image": jax.lax.dynamic_slice_in_dim(jax.lax.dynamic_slice_in_dim(batch["image"], top, 6, 1), left, 6, 2),
    }


def test_augmentation_sees_pixels_and_where_it_crops_evaluation_sees_the_centre():
    seen = []

    def augment(key, batch):
        seen.append((batch["image"].dtype, batch["image"].shape))
        return crop(key, batch)

    done = run(augment=augment)
    assert set(seen) == {(np.dtype("uint8"), (n, 8, 8, 1)) for n in (1, 8)}
    centre = DATA.test._replace(image=DATA.test.image[:, 1:7, 1:7])
    score = evaluate(SMALL, LOSS, variables(done.state), centre, prepare=Prepare(FRAME), batch=8)
    assert score == pytest.approx(done.metrics)
    with pytest.raises(CnnjaxError):
        CentreCrop((9, 8))(None, {"image": jnp.zeros((1, 8, 8, 1))})


# --- the loop


def test_fit_learns_and_tells():
    told = []
    done = run(steps=60, log_every=20, eval_every=30, on_log=told.append, tx=optax.adam(1e-2))
    assert told == done.history
    assert [(row["step"], "test" in row) for row in told] == [
        (20, False),
        (30, True),
        (40, False),
        (60, False),
        (60, True),
    ]
    assert done.metrics == told[-1]["test"] and done.metrics["count"] == 23
    assert done.metrics["error"] < 40 and told[-2]["train"]["loss"] < 0.8 * told[0]["train"]["loss"]
    assert done.state.step == 60 and told[0]["epoch"] == 20 * 8 / 50
    assert set(told[0]["time"]) == {
        "seconds",
        "images_per_second",
        "data_wait_percent",
        "compile_seconds",
        "memory_mb",
    }


def test_the_same_seed_gives_the_same_metrics_and_another_seed_others(tmp_path):
    runs = {name: run(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))}
    files = {name: untimed(read(tmp_path / name / "metrics.jsonl")) for name in runs}
    assert files["a"] == files["b"] != files["c"]
    assert files["a"] == untimed(runs["a"].history) == untimed(run().history)
    assert digest(runs["a"].state) == digest(runs["b"].state) != digest(runs["c"].state)
    first = [run(seed=seed, tx=optax.set_to_zero(), steps=1).state.params["fc1"]["kernel"] for seed in (0, 1)]
    assert digest(first[0]) != digest(first[1])  # weights too, and not only the order of the examples


def test_all_steps_seeds_and_resumptions_share_one_compilation(tmp_path):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: (
            compiled.append(event) if event == "/jax/core/compile/backend_compile_duration" else None
        )
    )
    tx = optax.chain(optax.adam(1e-3), optim.plateau())
    for seed, steps in ((0, 6), (0, 9)):  # whatever starting and resuming need is compiled now
        run(tmp_path / str(seed), seed=seed, tx=tx, steps=steps, ema_decay=0.9)
    assert compiled
    compiled.clear()
    for seed, steps in ((1, 6), (1, 9), (2, 9)):
        run(tmp_path / str(seed), seed=seed, tx=tx, steps=steps, ema_decay=0.9)
    assert not compiled


def test_resuming_compiles_no_second_step(tmp_path):
    tx = optax.adam(1e-3)
    before = parallel.one_step._cache_size()
    for steps in (4, 8):
        run(tmp_path, tx=tx, steps=steps)
    assert parallel.one_step._cache_size() == before + 1


def test_a_run_stopped_at_any_step_ends_with_the_same_bits(tmp_path):
    """With momentum, plateau, averages, dropout and statistics; rows and saves fall on different steps."""
    tx = optax.chain(optim.sgd(optim.step_decay(0.1, (5,)), momentum=0.9), optim.plateau())
    how = {"tx": tx, "ema_decay": 0.9, "steps": 9, "log_every": 4, "eval_every": 3, "save_every": 2}
    whole = run(tmp_path / "whole", **how)

    class Stop(Exception):
        pass

    def stop_at(step):
        def on_log(row):
            if row["step"] == step:
                raise Stop

        return on_log

    for step in (3, 4, 6, 8, 9):  # where rows are written
        with pytest.raises(Stop):
            run(tmp_path / str(step), **how, on_log=stop_at(step))
        (tmp_path / str(step) / "metrics.jsonl").open("a").write('{"step": 99, "trai')
        resumed = run(tmp_path / str(step), **how)
        assert digest(resumed.state) == digest(whole.state)
        assert untimed(resumed.history) == untimed(whole.history)
        assert untimed(read(tmp_path / str(step) / "metrics.jsonl")) == untimed(whole.history)


def test_a_run_saved_at_every_step_goes_on_from_each_to_the_same_bits(tmp_path):
    whole = run(steps=8)
    for first in range(1, 8):
        folder = tmp_path / str(first)
        run(folder, steps=first)
        assert digest(run(folder, steps=8).state) == digest(whole.state)


@pytest.mark.long
def test_a_run_killed_by_sigkill_ends_like_one_that_was_not():
    hits, torn, same = compare(3)
    assert hits == 3 and torn >= 1 and same


def test_a_finished_run_is_not_run_again(tmp_path):
    first = run(tmp_path)
    stamp = (tmp_path / "metrics.jsonl").read_bytes()
    again = run(tmp_path, on_log=lambda row: pytest.fail("a row was written"))
    assert again.metrics == first.metrics and again.history == first.history
    assert digest(again.state) == digest(first.state) and (tmp_path / "metrics.jsonl").read_bytes() == stamp


def test_a_folder_with_other_settings_is_refused(tmp_path):
    run(tmp_path, steps=6)
    wider = chain(fc1=Dense(9, norm=Norm(), dropout=0.2), fc2=Dense(3, act=None))
    for how, named in (
        ({"seed": 1}, "seed: saved 0, now 1"),
        ({"batch": 10}, "batch: saved 8, now 10"),
        ({"frozen": frozenset({"fc1"})}, "frozen.0: saved None, now 'fc1'"),
        ({"policy": BF16}, "policy.compute"),
        ({"ema_decay": 0.5}, "ema_decay"),
        ({"transform": Transform()}, "transform"),
        ({"net": wider}, "net.layers.0.module.features: saved 8, now 9"),
        ({"data": DATA._replace(train=noise(51))}, "data.train"),
        ({"tx": optax.adam(1e-3)}, "opt_state"),
        ({"steps": 5}, "6 steps"),
    ):
        with pytest.raises(CnnjaxError) as error:
            run(tmp_path, **{"steps": 6, **how})
        assert named in str(error.value) and len(str(error.value).split("\n")) <= 5
    assert run(tmp_path, steps=7).state.step == 7


def test_a_loss_that_is_not_finite_stops_the_run_and_the_last_finite_checkpoint_stays(tmp_path):
    tx = optax.chain(optim.sgd(optim.piecewise((0.01, 1e30), (7,))))
    with pytest.raises(NonFinite) as error:
        run(tmp_path, tx=tx, steps=40, log_every=10, eval_every=None, save_every=4)
    assert 8 <= error.value.step <= 10 and f"step {error.value.step}" in str(error.value)
    with checkpoint.opened(tmp_path / "checkpoints") as saved:
        newest = checkpoint.latest(saved)
        like = jax.device_put(start(SMALL, tx), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
        kept = checkpoint.restore(saved, newest, like)
    assert newest in (4, 8) and newest <= error.value.step
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)  # as it comes from another process
    chex.assert_tree_all_finite((kept.params, kept.stats))
    with pytest.raises(NonFinite) as again:
        run(tmp_path, tx=tx, steps=40, log_every=10, eval_every=None, save_every=4)
    assert again.value.step == error.value.step


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
    """A step's loss and gradient are those before its update: they do not show that the update ruined everything."""
    tx = optax.chain(optax.scale(1e38), optax.scale(1e38))
    with pytest.raises(NonFinite, match="a parameter is not finite at step 1"):
        run(tmp_path, tx=tx, steps=4, log_every=1, eval_every=None, save_every=1)
    assert len(read(tmp_path / "metrics.jsonl")) == 1
    with checkpoint.opened(tmp_path / "checkpoints") as saved:
        assert checkpoint.latest(saved) is None


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_without_a_logit_is_refused_before_training(part, label):
    labels = getattr(DATA, part).label.copy()
    labels[7] = label
    data = DATA._replace(**{part: getattr(DATA, part)._replace(label=labels)})
    with pytest.raises(CnnjaxError) as error:
        run(data=data, on_log=lambda row: pytest.fail("it trained"))
    assert f"label {label} of example 7" in str(error.value) and "0 to 2" in str(error.value)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch": 0}, {"log_every": 0}, {"eval_every": 0}, {"save_every": -1}])
def test_a_count_below_one_is_refused(wrong):
    with pytest.raises(CnnjaxError, match=next(iter(wrong))):
        run(**wrong)


def test_the_plateau_hears_of_evaluations_in_the_loop():
    tx = optax.chain(optim.sgd(1e-6), optim.plateau(patience=1))  # nothing improves
    state = run(tx=tx, steps=12, eval_every=3).state
    assert state.opt_state[1].rule.scale == pytest.approx(0.01)
