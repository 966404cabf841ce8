"""Recipes: what the papers print, step by step, and that every row trains."""

import dataclasses
import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from by_hand import scrambled
from narrow import narrow

from cnnjax.data.augment import Compose, RandomCrop, fixed
from cnnjax.data.splits import Dataset, Split, standardise
from cnnjax.errors import CnnjaxError
from cnnjax.models.catalog import entry
from cnnjax.models.chain import chain
from cnnjax.models.layers import Conv, Dense, GlobalAvgPool, Norm
from cnnjax.models.surgery import transplant, with_init
from cnnjax.models.vgg import vgg
from cnnjax.train import optim, recipe
from cnnjax.train.evaluate import Member, score
from cnnjax.train.feed import Prepare
from cnnjax.train.loop import Plan, fit
from cnnjax.train.protocols import CENTRE
from cnnjax.train.recipe import SGD, Drops, Plateau, Recipe, RMSProp, arguments, bound, for_crop, transformation
from cnnjax.train.recipes import RECIPES
from cnnjax.train.state import create, variables
from cnnjax.train.step import train_step

IMAGENET, CIFAR = 1_281_167, 50_000
SIDE = 28  # of the crops of small data


def data(size: int, *, n: int = 12, channels: int = 3, classes: int = 10) -> Dataset:
    """Noise around a brightness that says the class."""
    random = np.random.default_rng(0)
    label = (np.arange(n) % classes).astype(np.int32)
    image = random.integers(0, 64, (n, size, size, channels)) + (label * (180 // classes))[:, None, None, None]
    split = Split(image.astype(np.uint8), label)
    return Dataset("noise", split, split, tuple(map(str, range(classes))))


def small(name: str) -> Recipe:
    return for_crop(RECIPES[name], SIDE)


# --- what is printed

# Source, unit of time, {time: learning rate}: written from the papers, not from the rows.
# fmt: off
RATES = {
    "lenet":           ("epochs", {0: 5e-4, 1.99: 5e-4, 2.01: 2e-4, 4.99: 2e-4, 5.01: 1e-4, 7.99: 1e-4, 8.01: 5e-5,
                                   11.99: 5e-5, 12.01: 1e-5, 20: 1e-5}),
    "alexnet":         ("epochs", {0: 0.01, 90: 0.01}),
    "zfnet":           ("epochs", {0: 0.01}),
    "nin":             ("iterations", {0: 0.1, 99_999: 0.1, 100_000: 0.01}),
    "vgg":             ("iterations", {0: 0.01}),
    "googlenet":       ("epochs", {0: 0.01, 7.99: 0.01, 8.01: 0.0096, 16.01: 0.009216}),
    "inception_v3":    ("epochs", {0: 0.045, 1.99: 0.045, 2.01: 0.0423, 4.01: 0.045 * 0.94**2}),
    "resnet":          ("iterations", {0: 0.1}),
    "resnet_cifar":    ("iterations", {0: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001}),
    "resnet110_cifar": ("iterations", {0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1, 32_000: 0.01, 48_000: 0.001}),
    "densenet_cifar":  ("epochs", {0: 0.1, 149.9: 0.1, 150.1: 0.01, 224.9: 0.01, 225.1: 0.001}),
    "densenet":        ("epochs", {0: 0.1, 29.9: 0.1, 30.1: 0.01, 59.9: 0.01, 60.1: 0.001}),
    "modern":          ("epochs", {0: 0, 2.5: 0.25, 5: 0.5, 302.5: 0.25, 600: 0}),
}
# batch, length, momentum, decay, crop, stored
TABLE = {
    "alexnet":        (128,  90,      0.9, 5e-4, 227,  256),
    "zfnet":          (128,  70,      0.9, 0,    224,  256),
    "vgg":            (256,  370_000, 0.9, 5e-4, 224,  512),
    "vgg_A":          (256,  370_000, 0.9, 5e-4, 224,  512),
    "resnet":         (256,  600_000, 0.9, 1e-4, 224,  480),
    "resnet_cifar":   (128,  64_000,  0.9, 1e-4, None, None),
    "densenet_cifar": (64,   300,     0.9, 1e-4, None, None),
    "densenet":       (256,  90,      0.9, 1e-4, 224,  256),
}
# fmt: on


@pytest.mark.parametrize("name", RATES)
def test_the_learning_rate_is_the_printed_one_at_every_time(name):
    row, (unit, rates) = RECIPES[name], RATES[name]
    assert getattr(row, unit) is not None
    steps = recipe.steps(row, IMAGENET)
    schedule = row.schedule(steps)
    for time, rate in rates.items():
        step = time if unit == "iterations" else round(time / row.epochs * steps)
        assert float(schedule(step)) == pytest.approx(rate, rel=2e-3, abs=1e-8), time


@pytest.mark.parametrize("name", TABLE)
def test_a_row_holds_the_numbers_of_its_paper(name):
    row, (batch, length, momentum, decay, crop, size) = RECIPES[name], TABLE[name]
    assert (row.batch, row.epochs or row.iterations) == (batch, length)
    assert (row.optimiser.momentum, row.optimiser.weight_decay) == (momentum, decay)
    assert (row.crop, row.size) == (crop, size)


def test_370_thousand_iterations_of_vgg_are_its_74_epochs():
    row = RECIPES["vgg"]
    assert round(row.iterations * row.batch / IMAGENET) == 74


# The experiments that train as a paper did, at the paper scale.
TRAINED = {
    "activations": "alexnet", "alexnet_layers": "alexnet", "bottleneck": "resnet", "densenet_growth": "densenet_cifar",
    "dropout_and_augmentation": "alexnet", "ensembles": "googlenet", "googlenet_aux": "googlenet",
    "highway_depth": "highway", "residual_lesions": "resnet_cifar", "resnet_depth": "resnet_cifar",
    "resnet_shortcuts": "resnet", "vgg_depth": "vgg_A", "zfnet_table3": "zfnet",
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINED)
def test_the_paper_scale_of_an_experiment_has_the_papers_rate_batch_and_length(name):
    row, scale = RECIPES[TRAINED[name]], importlib.import_module(f"experiments.{name}").SCALES["paper"]
    assert recipe.at_rate(row.schedule, scale.learning_rate) == row.schedule
    assert scale.batch == row.batch
    passes = row.epochs or row.iterations * row.batch / (CIFAR if "cifar" in scale.data else IMAGENET)
    assert scale.epochs == pytest.approx(passes, rel=0.01)


@pytest.mark.parametrize("name", RECIPES)
def test_another_rate_moves_all_rates_in_proportion(name):
    schedule = RECIPES[name].schedule
    moved, times = recipe.at_rate(schedule, 0.5), [0, 399, 401, 2_000, 5_000, 9_000]
    highest = max(schedule.rates) if isinstance(schedule, Drops) else schedule.rate
    found, printed = (np.array([s(10_000)(time) for time in times]) for s in (moved, schedule))
    np.testing.assert_allclose(found, printed * (0.5 / highest), rtol=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_a_row_names_its_source_and_legal_weights(name):
    row = RECIPES[name]
    assert row.source
    net = chain(conv1=Conv(3, 3), fc2=Dense(2, act=None))
    assert row.weight_init is None or with_init(net, row.weight_init)["conv1"].weight_init == row.weight_init


@pytest.mark.parametrize(
    "name", ["alexnet", "zfnet", "vgg_A", "vgg", "googlenet", "inception_v3", "resnet", "densenet"]
)
def test_a_recipe_crops_what_its_network_reads(name):
    network = {"vgg": "vgg_D", "googlenet": "googlenet_v1", "resnet": "resnet50", "densenet": "densenet121"}
    row = RECIPES[name]
    assert entry(network.get(name, name)).input == (row.crop, row.crop, 3)
    assert row.evaluation.crop == row.crop and row.size > row.crop


def test_a_shorter_recipe_lowers_the_rate_at_the_same_parts():
    short = dataclasses.replace(RECIPES["resnet110_cifar"], epochs=16, iterations=None)
    assert recipe.steps(short, CIFAR) == 6250
    schedule = short.schedule(6250)
    assert [float(schedule(s)) for s in (38, 40, 3124, 3125, 4687, 4688)] == pytest.approx(
        [0.01, 0.1, 0.1, 0.01, 0.01, 0.001]
    )


# --- what a row becomes


@pytest.mark.parametrize("name", RECIPES)
def test_every_row_trains_a_network_on_small_data(name):
    """Traced, not run: shapes, types and structures of what two updates carry agree."""
    row = small(name)
    images = data(row.size or SIDE)
    given = arguments(row, images)
    assert set(given) <= {"tx", "loss", *(field.name for field in dataclasses.fields(Plan))}
    net = chain(conv1=Conv(4, 5, norm=Norm()), pool2=GlobalAvgPool(), fc3=Dense(10, act=None))
    batch = {"image": jnp.asarray(images.train.image[:4]), "label": jnp.asarray(images.train.label[:4])}
    prepare = Prepare(given["transform"], given["augment"])
    seen = jax.eval_shape(prepare, jax.random.key(0), batch)
    assert seen["image"].shape == (4, SIDE, SIDE, 3) and seen["image"].dtype == jnp.float32
    state = create.eval_shape(
        net, given["tx"], jax.random.key(0), (SIDE, SIDE, 3), average=given["ema_decay"] is not None
    )

    def step(state):
        return train_step(net, given["tx"], given["loss"], jax.random.key(0), state, batch, augment=prepare)[0]

    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(step, jax.eval_shape(step, state)), state)


@pytest.mark.parametrize("name", ["zfnet", "densenet_cifar", "resnet"])
def test_a_row_learns_and_is_evaluated_as_its_protocol_says(name):
    row = dataclasses.replace(small(name), epochs=20, iterations=None, batch=8)
    images = data(row.size or SIDE, n=40, classes=4)
    net = chain(conv1=Conv(4, 5, stride=4, norm=Norm()), pool2=GlobalAvgPool(), fc3=Dense(4, act=None))
    run = fit(net, data=images, seed=0, **arguments(row, images))
    assert run.metrics["error"] <= 50 and run.history[-1]["step"] == 100
    protocol = dataclasses.replace(row.evaluation, squares=None, mirror=False)
    if row.crop is not None:
        protocol = dataclasses.replace(protocol, crops=CENTRE)
    prepare = bound(row, images).prepare
    member = Member(net, variables(run.state), Prepare(prepare.transform, fixed(prepare.augment)), protocol)
    assert score([member], images.test, batch=8).metrics == pytest.approx(run.metrics, rel=1e-4)


def test_equal_recipes_share_one_transformation_and_so_one_compiled_step():
    row = Recipe(batch=8, epochs=2, schedule=Drops((0.1,)), optimiser=SGD(), prepare=Prepare(None))
    assert transformation(row, 5) is transformation(dataclasses.replace(row), 5)
    assert transformation(row, 5) is not transformation(row, 6)


def test_what_is_measured_is_measured_on_the_training_images_once():
    images = data(SIDE)
    whole = bound(RECIPES["resnet_cifar"], images)
    mean, crop, _ = whole.prepare.augment.steps
    np.testing.assert_allclose(mean.mean.values, images.train.image.mean(axis=0), rtol=1e-6)
    assert crop == RandomCrop((SIDE, SIDE), pad=4)
    assert bound(whole, images) == whole and bound(whole, data(SIDE, n=9)) == whole
    assert bound(small("alexnet"), data(32)).prepare.augment.steps[1] == RandomCrop((SIDE, SIDE))


def test_densenets_padding_is_the_mean_and_its_pixels_have_variance_1():
    images = data(SIDE, n=40)
    prepare = bound(RECIPES["densenet_cifar"], images).prepare
    mean, crop, _ = prepare.augment.steps
    seen = Prepare(prepare.transform, Compose((mean,)))(None, {"image": jnp.asarray(images.train.image)})["image"]
    np.testing.assert_allclose(seen.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(seen.std((0, 1, 2)), 1, rtol=1e-4)
    assert crop.pad == 4


@pytest.mark.parametrize(
    "name, stored", [("alexnet", 32), ("vgg", 64), ("resnet", 60), ("resnet_cifar", None), ("inception_v3", 32)]
)
def test_another_crop_keeps_the_proportions(name, stored):
    row = small(name)
    assert row.size == stored
    assert row.crop in (None, SIDE) and row.evaluation.crop in (224, SIDE)


@pytest.mark.parametrize(
    "length", [{}, {"epochs": 1, "iterations": 1}, {"epochs": 0}, {"iterations": -3}, {"epochs": float("nan")}]
)
def test_a_recipe_has_one_positive_length(length):
    with pytest.raises(CnnjaxError, match=r"lasts epochs or iterations|must be positive"):
        Recipe(batch=8, schedule=Drops((0.1,)), optimiser=SGD(), prepare=Prepare(None), **length)


# --- update rules


def applied(tx: optax.GradientTransformation, params, gradients: list) -> list:
    """The parameters after each of the gradients."""
    state, seen = tx.init(params), []
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params)
    return seen


def weights(random: np.random.Generator, scale: float) -> dict:
    shapes = {"conv1": {"kernel": (3, 3, 2, 5), "bias": (5,)}, "fc2": {"kernel": (7, 4)}}
    return jax.tree.map(
        lambda shape: jnp.asarray(scale * random.standard_normal(shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def test_filters_are_brought_back_to_their_root_mean_square_as_in_numpy():
    """Zeiler & Fergus 2014, section 3, on top of momentum: filter by filter, and nothing but filters."""
    random = np.random.default_rng(0)
    params = weights(random, 0.1)
    gradients = [weights(random, 1.0) for _ in range(3)]
    row = Recipe(
        batch=1,
        epochs=1,
        schedule=Plateau(0.03),
        optimiser=SGD(weight_decay=1e-2),
        filter_rms=0.1,
        prepare=Prepare(None),
    )
    ours = applied(transformation(row, 3), params, gradients)

    w = jax.tree.map(np.float64, params)
    v = jax.tree.map(np.zeros_like, w)
    above, below = 0, 0
    for gradient, new in zip(gradients, ours, strict=True):
        v = jax.tree.map(lambda v, g, w: 0.9 * v - 0.03 * (np.float64(g) + 1e-2 * w), v, gradient, w)
        w = jax.tree.map(np.add, w, v)
        kernel = w["conv1"]["kernel"]
        for i in range(kernel.shape[-1]):
            rms = np.sqrt((kernel[..., i] ** 2).mean())
            above, below = above + (rms > 0.1), below + (rms < 0.1)
            if rms > 0.1:
                kernel[..., i] *= 0.1 / rms
        chex.assert_trees_all_close(new, jax.tree.map(np.float32, w), rtol=1e-5, atol=1e-7)
    assert above and below


def test_a_filter_within_the_radius_is_left_as_it_is():
    kernel = {"kernel": jnp.full((3, 3, 2, 4), 0.05)}
    change = {"kernel": jnp.full((3, 3, 2, 4), 0.01)}
    new = applied(optim.renormalise_filters(0.1), kernel, [change])[0]["kernel"]
    np.testing.assert_allclose(new, 0.06, rtol=1e-6)


def test_levenberg_marquardt_divides_by_the_curvature_as_in_numpy():
    random = np.random.default_rng(1)
    gradients = [{"w": jnp.asarray(random.standard_normal(6), jnp.float32)} for _ in range(7)]
    ours = applied(optim.levenberg_marquardt(0.1, mu=0.02, memory=4), {"w": jnp.zeros(6)}, gradients)
    w, h = np.zeros(6), np.zeros(6)
    for count, (gradient, new) in enumerate(zip(gradients, ours, strict=True), start=1):
        g = np.float64(gradient["w"])
        h += (g**2 - h) / min(count, 4)
        w -= 0.1 / (0.02 + h) * g
        np.testing.assert_allclose(new["w"], w, rtol=1e-5)
    after_3 = np.mean([np.square(gradient["w"]) for gradient in gradients[:3]], axis=0)  # a mean as long as it can be
    assert np.allclose((ours[1]["w"] - ours[2]["w"]) / gradients[2]["w"], 0.1 / (0.02 + after_3), rtol=1e-3)


def test_rmsprop_is_tensorflows_with_clipped_gradients():
    random = np.random.default_rng(2)
    gradients = [{"w": jnp.asarray(2 * random.standard_normal(6), jnp.float32)} for _ in range(5)]
    ours = applied(RMSProp(decay=0.9, epsilon=1.0, clip=2.0)(0.045), {"w": jnp.zeros(6)}, gradients)
    w, square, clipped = np.zeros(6), np.ones(6), 0
    for gradient, new in zip(gradients, ours, strict=True):
        g = np.float64(gradient["w"])
        clipped += np.linalg.norm(g) > 2
        g = g * min(1, 2 / np.linalg.norm(g))
        square = 0.9 * square + 0.1 * g**2
        w -= 0.045 * g / np.sqrt(square + 1.0)
        np.testing.assert_allclose(new["w"], w, rtol=1e-5)
    assert clipped


def test_without_a_clip_gradients_stay_as_they_are():
    gradient = {"w": jnp.full(3, 1e6)}
    new = applied(RMSProp(epsilon=1.0)(0.1), {"w": jnp.zeros(3)}, [gradient])[0]["w"]
    np.testing.assert_allclose(new, -0.1 * 1e6 / np.sqrt(0.9 + 1e11 + 1.0), rtol=1e-4)


def test_biases_and_normalisation_may_be_left_out_of_the_decay():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    for decay_vectors, bias in ((True, 0.95), (False, 1.0)):
        new = applied(SGD(0.0, weight_decay=0.5, decay_vectors=decay_vectors)(0.1), params, [zero])[0]
        np.testing.assert_allclose((new["kernel"][0, 0], new["bias"][0]), (0.95, bias), rtol=1e-6)


def test_a_plateau_lowers_the_rate_three_times_and_no_more():
    row = dataclasses.replace(RECIPES["alexnet"], optimiser=SGD(0.0, weight_decay=0.5))
    tx, params = transformation(row, 9), {"w": jnp.ones(1)}
    state, moved = tx.init(params), []
    for _ in range(7):
        updates, state = tx.update({"w": jnp.full(1, 0.5)}, state, params)
        moved.append(-float(updates["w"][0]))
        state = optim.observe(state, 50.0)  # no evaluation is better than the first
    assert moved == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4, 1e-5, 1e-5, 1e-5], rel=1e-4)


# --- a start from a trained network

VGG_FROM_A = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")  # written from the paper


@pytest.mark.parametrize("column", ["B", "C", "D", "E"])
def test_the_deeper_vggs_start_from_seven_layers_of_a(column):
    """Simonyan & Zisserman 2014, section 3.1: the first four convolutions and the three fully connected layers."""
    donor, recipient = (
        scrambled(narrow(vgg(c)), np.zeros((1, 32, 32, 3), np.float32), seed)["params"]
        for c, seed in (("A", 0), (column, 1))
    )
    started = transplant(donor, recipient, VGG_FROM_A)
    assert started.keys() == recipient.keys()
    for name, layer in started.items():
        chex.assert_trees_all_equal(layer, (donor if name in VGG_FROM_A else recipient)[name])


def test_a_transplant_that_does_not_fit_is_refused_with_a_table():
    donor = scrambled(narrow(vgg("A")), np.zeros((1, 32, 32, 3), np.float32))["params"]
    recipient = scrambled(narrow(vgg("D"), classes=7), np.zeros((1, 32, 32, 3), np.float32))["params"]
    with pytest.raises(CnnjaxError) as error:
        transplant(donor, recipient, ("conv1_1", "conv1_2", "conv9", "fc8"))
    assert str(error.value).splitlines() == [
        "the donor's layers do not fit the recipient:",
        "  conv1_2: not in the donor",
        "  conv9: not in the donor and recipient",
        "  fc8.bias: donor 10, recipient 7",
        "  and 1 more",
    ]


def test_what_is_transplanted_is_a_copy():
    donor = {"fc": {"kernel": jnp.ones((2, 3))}}
    taken = transplant(donor, {"fc": {"kernel": jnp.zeros((2, 3))}}, ("fc",))
    donor["fc"]["kernel"].delete()
    assert float(taken["fc"]["kernel"].sum()) == 6


def test_training_starts_from_what_was_transplanted():
    """B from A at once through `fit`: what is frozen is A's, bit for bit, and the rest has moved."""
    images, start = data(32, n=4), RECIPES["vgg"].start
    donor = scrambled(narrow(vgg("A"), by=32), np.zeros((1, 32, 32, 3), np.float32))["params"]
    run = fit(
        narrow(vgg("B"), by=32),
        optim.sgd(1e-3),
        recipe.CROSS_ENTROPY,
        images,
        transform=standardise(images.train),
        batch=2,
        steps=1,
        seed=0,
        start=lambda params: transplant(donor, params, start.layers),
        frozen=frozenset(start.layers) - {"fc8"},
        ema_decay=0.9,
    )
    held = set(start.layers) - {"fc8"}
    for tree in (run.state.params, run.state.ema["params"]):
        chex.assert_trees_all_equal({name: tree[name] for name in held}, {name: donor[name] for name in held})
        assert 0 < np.abs(tree["fc8"]["kernel"] - donor["fc8"]["kernel"]).max() < 0.1
