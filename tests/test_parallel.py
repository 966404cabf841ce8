"""One step, however it is launched: the same numbers on one device, on eight, mapped, and in two processes."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from narrow import narrow
from test_train import DATA, FRAME, LOSS, SMALL, Lazy, run

from cnnjax.data.augment import Compose, RandomCrop, RandomFlip
from cnnjax.errors import CnnjaxError
from cnnjax.models.alexnet import alexnet
from cnnjax.models.chain import chain
from cnnjax.models.googlenet import googlenet
from cnnjax.models.layers import Conv, Dense, Norm
from cnnjax.models.resnet import cifar_resnet, resnet
from cnnjax.train import optim, parallel
from cnnjax.train.feed import Prepare
from cnnjax.train.journal import NonFinite
from cnnjax.train.loop import fit, fit_many
from cnnjax.train.losses import cross_entropy
from cnnjax.train.parallel import Launch
from cnnjax.train.state import create
from cnnjax.train.step import F32

NETS = {
    "resnet8": (narrow(cifar_resnet(8), by=2, classes=5), 32, cross_entropy()),
    "resnet18": (narrow(resnet(18), by=16, classes=5), 32, cross_entropy()),
    "googlenet": (narrow(googlenet(), by=16, classes=5), 224, cross_entropy()),
    "alexnet": (narrow(alexnet(), by=16, classes=5), 99, cross_entropy()),
}
CHAOTIC = {"googlenet"}
ONE = Launch(devices=1)


def data(size: int, classes: int = 5, n: int = 64):
    random = np.random.default_rng(0)
    label = random.integers(0, classes, n).astype(np.int32)
    image = random.integers(0, 150, (n, size, size, 3)).astype(np.uint8) + (20 * label[:, None, None, None]).astype(
        np.uint8
    )
    return {"image": image, "label": label}


def trained(launch: Launch, name: str, dtype: str = "float32", *, steps: int = 20, nudge: float = 0.0):
    """The state after `steps` steps of 16 examples at lr 0.01, on the host; `nudge`: changes the first parameters."""
    net, size, loss = NETS[name]
    images, tx = data(size), _tx()
    with jax.enable_x64(dtype == "float64"):
        state = create(net, tx, jax.random.key(0), (size, size, 3))
        state = jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.dtype == jnp.float32 else leaf, state)
        if nudge:
            noise = iter(jax.random.split(jax.random.key(2), len(jax.tree.leaves(state.params))))
            nudged = jax.tree.map(lambda w: w * (1 + nudge * jax.random.normal(next(noise), w.shape)), state.params)
            state = state._replace(params=nudged)
        state = parallel.place(launch, state)
        resident = parallel.replicate(launch, {name: jnp.asarray(value) for name, value in images.items()})
        augment = Prepare(FRAME, Compose((RandomCrop((size, size), pad=2), RandomFlip())))
        how = {"frozen": frozenset(), "augment": augment, "policy": type(F32)(dtype), "ema_decay": 0.9}
        how |= {"accumulate": 1, "remat": frozenset()}
        key = jax.random.key(1)
        for step in range(steps):
            index = (np.arange(step * 16, (step + 1) * 16) % 64).reshape(1, 16).astype(np.int32)
            batch = {**resident, "index": parallel.share(launch, index, axis=1)}
            state, metrics = parallel.advance(launch, net, tx, loss, key, state, batch, steps=1, **how)
        assert np.isfinite(metrics["loss"]).all()
        return jax.device_get(state)


@functools.cache
def _tx():
    return optim.sgd(0.01, momentum=0.9, weight_decay=1e-4)


alone = functools.cache(functools.partial(trained, Launch(devices=1)))


def apart(a, b) -> float:
    """The largest difference between two states, over max(1, the largest value of the leaf)."""
    chex.assert_trees_all_equal_shapes_and_dtypes(a, b)
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(x - y).max() / max(1.0, np.abs(y).max())) for x, y in pairs if x.size)


LAUNCHES = {
    "jit on 8": Launch(devices=8),
    "jit on 8, sharded optimiser": Launch(devices=8, optimiser="sharded"),
    "pmap on 8": Launch("pmap", devices=8),
}


SHOWN = [
    (name, dtype, how)
    for name in NETS
    for dtype in ("float32", "float64")
    for how in LAUNCHES
    if (name == "resnet8" or "sharded" not in how) and (name, dtype) != ("resnet18", "float32")
]


@pytest.mark.long
@pytest.mark.parametrize("name, dtype, how", SHOWN)
def test_devices_make_no_difference(name, dtype, how, capsys):
    """Augmentation, dropout and batch statistics included; in float64 as the proof.

    In float32 GoogLeNet, deep and without normalisation, is chaotic: a rounding grows by a factor of 10,000 within 20
    steps, on one device too. There, devices must not make more of a difference than last bits of the initial parameters
    do. The narrow ResNet-18, with its statistics of 16 values, has nothing to compare by then, and is shown in float64.
    """
    found = apart(trained(LAUNCHES[how], name, dtype), alone(name, dtype))
    close = 1e-10 if dtype == "float64" else 1e-5
    if dtype == "float32" and name in CHAOTIC:
        close = max(close, 3 * apart(trained(ONE, name, dtype, nudge=1e-7), alone(name, dtype)))
    with capsys.disabled():
        print(f"\n{name}, {how}, {dtype}: {found:.1e} of {close:.1e}", end="")
    assert found <= close


def test_a_small_network_is_the_same_on_eight_devices_and_mapped():
    one, spread, mapped = (
        trained(launch, "resnet8", steps=2)
        for launch in (Launch(devices=1), *map(LAUNCHES.get, ("jit on 8", "pmap on 8")))
    )
    assert apart(spread, one) < 1e-5 and apart(mapped, one) < 1e-5
    # It would be noticed: two steps further on nothing is as close.
    assert apart(trained(Launch(devices=1), "resnet8", steps=4), one) > 1e-3


def test_statistics_of_each_device_are_an_option_and_another_network(key):
    def net(per_device):
        return chain(conv1=Conv(4, 3, norm=Norm(per_device=per_device)), fc2=Dense(5, act=None))

    def moved(per_device):
        state = parallel.place(launch, create(net(per_device), _tx(), key, (8, 8, 3)))
        batch = parallel.share(
            launch, {"image": data(8)["image"][:16] / np.float32(255), "label": data(8)["label"][:16]}
        )
        how = {
            "frozen": frozenset(),
            "augment": None,
            "policy": F32,
            "ema_decay": 0.0,
            "accumulate": 1,
            "remat": frozenset(),
        }
        return jax.device_get(
            parallel.advance(launch, net(per_device), _tx(), LOSS, key, state, batch, steps=1, **how)[0]
        )

    launch = Launch("pmap", devices=8)
    whole, part = moved(False), moved(True)
    assert apart(whole.stats, part.stats) > 1e-3
    launch = Launch(devices=1)
    assert apart(moved(False), whole) < 1e-6


@pytest.mark.long
def test_two_processes_of_four_devices_are_one_of_eight(tmp_path, capsys):
    """Real processes joined by jax.distributed; each reads its own half of every batch."""
    import two_processes

    found = two_processes.run(tmp_path, steps=20)
    with capsys.disabled():
        print(f"\ntwo processes of four devices: {found:.1e}", end="")
    assert found <= 1e-5


# --- `fit` on devices


def test_a_run_may_go_on_with_other_devices(tmp_path):
    how = {"steps": 12, "save_every": 4, "eval_every": None}
    straight = run(**how)
    for steps, launch in ((4, Launch(devices=1)), (8, Launch(devices=8)), (12, Launch("pmap", devices=4))):
        done = run(tmp_path, **how | {"steps": steps}, launch=launch)
    assert apart(jax.device_get(done.state), jax.device_get(straight.state)) < 1e-5
    assert done.metrics == pytest.approx(straight.metrics, rel=1e-5)


@pytest.mark.parametrize("launch", [Launch(devices=8), Launch("pmap", devices=8)], ids=["jit", "pmap"])
def test_a_lazy_set_is_spread_like_one_on_the_device(launch):
    lazy = DATA._replace(train=DATA.train._replace(image=Lazy(DATA.train.image)))
    assert apart(jax.device_get(run(data=lazy, launch=launch).state), jax.device_get(run().state)) < 1e-5


@pytest.mark.parametrize(
    "launch, batch, said",
    [
        (Launch(devices=9), 9, "there are 8"),
        (Launch(devices=0), 8, None),
        (Launch(devices=8), 12, "a batch of 12 cannot be shared equally by 8 devices"),
        (Launch("pmap", devices=8, optimiser="sharded"), 8, "pmap keeps all"),
    ],
)
def test_a_launch_that_cannot_be_is_refused(launch, batch, said):
    if said is None:
        run(launch=launch, batch=batch, steps=1)
        return
    with pytest.raises(CnnjaxError, match=said):
        run(launch=launch, batch=batch)


def test_an_optimiser_spread_over_the_devices_is_an_eighth_on_each():
    state = create(SMALL, optax.adam(1e-3), jax.random.key(0), (8, 8, 1))
    placed = parallel.place(Launch(devices=8, optimiser="sharded"), state)
    kernel = placed.opt_state[0].mu["fc1"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (8, 8) and kernel.shape == (64, 8)
    assert placed.params["fc1"]["kernel"].sharding.is_fully_replicated
    done = run(tx=optax.adam(1e-3), steps=3, launch=Launch(devices=8, optimiser="sharded"))
    kernel = done.state.opt_state[0].mu["fc1"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (8, 8)


# --- many steps and many runs in one program


@pytest.mark.parametrize("launch", [Launch(devices=1, accelerator=True), Launch(devices=8, accelerator=True)])
def test_a_loop_of_steps_gives_the_same_run(launch):
    how = {"steps": 20, "log_every": 4, "eval_every": 8, "save_every": None}
    straight, looped = run(**how), run(launch=launch, **how)
    assert apart(jax.device_get(looped.state), jax.device_get(straight.state)) < 1e-5
    for ours, theirs in zip(looped.history, straight.history, strict=True):
        assert ours["step"] == theirs["step"]
        kind = "train" if "train" in ours else "test"
        assert ours[kind] == pytest.approx(theirs[kind], rel=1e-4)


def test_a_loop_of_steps_is_as_long_as_what_lies_between_two_rows(monkeypatch):
    lengths = []

    def advance(*arguments, inner=parallel.advance, steps, **how):
        lengths.append(steps)
        return inner(*arguments, steps=steps, **how)

    monkeypatch.setattr(parallel, "advance", advance)
    run(steps=27, log_every=4, eval_every=12, save_every=None, launch=Launch(devices=1, accelerator=True))
    assert lengths == [4] * 6 + [1] * 3


MANY = {"transform": FRAME, "batch": 8, "steps": 12, "log_every": 3, "eval_every": 6}


@pytest.mark.parametrize("accelerator", [False, True], ids=["one after the other", "together"])
def test_many_runs_are_the_runs_made_alone(tmp_path, accelerator):
    tx, told = optim.sgd(0.1, momentum=0.9), []
    launch = Launch(devices=1, accelerator=accelerator)
    folders = [tmp_path / "a", tmp_path / "b"]
    many = fit_many(
        SMALL,
        tx,
        LOSS,
        DATA,
        seeds=(3, 4),
        folders=folders,
        launch=launch,
        on_log=lambda *row: told.append(row),
        **MANY,
    )
    for seed, folder, one in zip((3, 4), folders, many, strict=True):
        straight = fit(SMALL, tx, LOSS, DATA, seed=seed, **MANY)
        assert apart(jax.device_get(one.state), jax.device_get(straight.state)) < 1e-5
        assert [row["step"] for row in one.history] == [row["step"] for row in straight.history]
        assert one.metrics == pytest.approx(straight.metrics, rel=1e-4)
        # what is kept goes on alone
        more = fit(SMALL, tx, LOSS, DATA, seed=seed, folder=folder, **MANY | {"steps": 15})
        assert more.history[: len(one.history)] == one.history
        assert more.state.step == 15
    assert [row for i, row in told if i == 1] == many[1].history


@pytest.mark.parametrize("accelerator", [False, True], ids=["one after the other", "together"])
def test_rates_are_compared_and_the_one_that_diverges_harms_no_other(accelerator):
    launch = Launch(devices=1, accelerator=accelerator)
    tx = optim.sgd(0.05)
    slow, fast, lost = fit_many(SMALL, tx, LOSS, DATA, seeds=(0, 0, 0), factors=(1.0, 2.0, 1e30), launch=launch, **MANY)
    assert isinstance(lost, NonFinite) and lost.step <= 3
    for rate, one in ((0.05, slow), (0.1, fast)):
        straight = fit(SMALL, optim.sgd(rate), LOSS, DATA, seed=0, **MANY)
        assert apart(jax.device_get(one.state.params), jax.device_get(straight.state.params)) < 1e-5


def test_seeds_that_follow_one_another_are_one_compiled_program():
    tx = optim.sgd(0.1)
    before = parallel.one_step._cache_size()
    fit_many(SMALL, tx, LOSS, DATA, seeds=range(3), **MANY)
    assert parallel.one_step._cache_size() == before + 1


# --- less memory


def accumulated(net, parts: int, *, launch: Launch = ONE, steps: int = 3):
    state = parallel.place(launch, create(net, _tx(), jax.random.key(0), (8, 8, 3)))
    examples = {"image": data(8)["image"][:16] / np.float32(255), "label": data(8)["label"][:16]}
    how = {"frozen": frozenset(), "augment": None, "policy": F32, "ema_decay": 0.0, "remat": frozenset()}
    for _ in range(steps):
        batch = parallel.share(launch, examples)
        state, metrics = parallel.advance(
            launch, net, _tx(), LOSS, jax.random.key(1), state, batch, steps=1, accumulate=parts, **how
        )
    return jax.device_get((state, metrics))


def test_a_batch_in_parts_is_the_whole_batch_without_batch_normalisation():
    net = chain(conv1=Conv(4, 3), fc2=Dense(5, act=None))
    whole = accumulated(net, 1)
    for parts in (2, 16):
        assert apart(accumulated(net, parts), whole) < 1e-5
    assert apart(accumulated(net, 2, launch=Launch(devices=8)), whole) < 1e-5
    assert apart(accumulated(net, 2, launch=Launch("pmap", devices=8)), whole) < 1e-5
    normal = chain(conv1=Conv(4, 3, norm=Norm()), fc2=Dense(5, act=None))
    assert apart(accumulated(normal, 4)[0].stats, accumulated(normal, 1)[0].stats) > 1e-3


def test_a_batch_in_parts_needs_less_memory_on_a_cpu_and_loops_elsewhere():
    net = chain(conv1=Conv(64, 3, pad=1), conv2=Conv(64, 3, pad=1), fc3=Dense(5, act=None))
    images = {"image": jnp.zeros((32, 32, 32, 3)), "label": jnp.zeros(32, jnp.int32)}
    state = create(net, _tx(), jax.random.key(0), (32, 32, 3))

    def lowered(parts, platform="cpu"):
        def step(state, batch):
            return parallel.train_step(net, _tx(), LOSS, jax.random.key(1), state, batch, accumulate=parts)

        return jax.jit(step).trace(state, images).lower(lowering_platforms=(platform,))

    whole, parts = (lowered(n).compile().memory_analysis().temp_size_in_bytes for n in (1, 8))
    assert parts < whole / 3
    assert "stablehlo.while" in lowered(8, "cuda").as_text()


def test_a_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(CnnjaxError, match="a batch of 8 cannot be shared equally by 1 devices × 3 parts"):
        run(accumulate=3)


@pytest.mark.long
def test_layers_computed_again_keep_less_and_give_the_same_gradient(key):
    net = narrow(cifar_resnet(8), by=4, classes=5)
    images = jax.random.normal(key, (16, 16, 16, 3))
    variables = net.init({"params": key}, images)

    def residuals(remat):
        def loss(params):
            given = {**variables, "params": params}
            output, moved = net.apply(given, images, train=True, remat=remat, mutable=["batch_stats"])
            return jnp.square(output.logits).sum(), moved

        value, back, moved = jax.vjp(loss, variables["params"], has_aux=True)
        return (value, back(1.0), moved), sum(leaf.nbytes for leaf in jax.tree.leaves(back))

    (kept, much), (again, little) = residuals(frozenset()), residuals(frozenset(net.names))
    chex.assert_trees_all_close(again, kept, rtol=1e-3, atol=1e-4)
    assert little < much / 2
    with pytest.raises(CnnjaxError, match="conv9"):
        residuals(frozenset({"conv9"}))


def test_fit_takes_both_and_says_what_changes_the_numbers(tmp_path):
    net = chain(fc1=Dense(8), fc2=Dense(3, act=None))
    straight = run(net=net)
    saved = run(tmp_path, net=net, accumulate=4, remat=frozenset({"fc1"}))
    assert apart(jax.device_get(saved.state), jax.device_get(straight.state)) < 1e-5
    with pytest.raises(CnnjaxError, match="accumulate"):
        run(tmp_path, net=net, steps=20)
    run(tmp_path, net=net, steps=20, accumulate=4)  # without `remat`, which changes no number


def test_a_sharded_optimiser_changes_nothing_before_the_update():
    """Every device computes the gradients that it did, on its part of the batch, and keeps less."""
    net, tx, mesh = cifar_resnet(8), optax.sgd(0.1, 0.9), parallel.data_mesh()
    whole, shared = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))

    def leaf(shape, dtype, sharding):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def compiled(optimiser) -> Any:
        state = create.eval_shape(net, tx, jax.random.key(0), (16, 16, 3))
        places = parallel.shardings(mesh, state, optimiser)
        state = jax.tree.map(lambda x, place: leaf(x.shape, x.dtype, place), state, places)
        batch = {"image": leaf((64, 16, 16, 3), "float32", shared), "label": leaf((64,), "int32", shared)}
        key = leaf((), jax.random.key(0).dtype, whole)
        return parallel.one_step.lower(net, tx, cross_entropy(), key, state, batch, placed=(mesh, optimiser)).compile()

    replicated, sharded = compiled("replicated"), compiled("sharded")
    flops = [program.cost_analysis()["flops"] for program in (replicated, sharded)]
    assert flops[1] == pytest.approx(flops[0], rel=5e-3)
    before, after = (program.memory_analysis() for program in (replicated, sharded))
    assert after.temp_size_in_bytes < 1.01 * before.temp_size_in_bytes
    assert after.argument_size_in_bytes < 0.7 * before.argument_size_in_bytes
    leaves = len(jax.tree.leaves(create.eval_shape(net, tx, jax.random.key(0), (16, 16, 3)).params))
    assert replicated.as_text().count(" all-gather(") == 0 < sharded.as_text().count(" all-gather(") <= leaves
