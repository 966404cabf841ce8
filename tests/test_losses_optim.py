"""Losses against their formulas in NumPy, and what an optimiser does against the papers' update rules."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnnjax.errors import CnnjaxError
from cnnjax.models.chain import Output
from cnnjax.train import losses, optim

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0]], np.float32)
LABELS = np.array([0, 1], np.int32)
P = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
RIGHT = LOGITS[[0, 1], LABELS]

LOSSES = [
    (losses.cross_entropy(), -np.log(P[[0, 1], LABELS])),
    (
        losses.cross_entropy(label_smoothing=0.1),
        -((0.9 * np.eye(3)[LABELS] + 0.1 / 3) * np.log(P)).sum(axis=1),
    ),
    (losses.mean_squared_error(), ((LOGITS - np.eye(3)[LABELS]) ** 2).mean(axis=1)),
    (losses.rbf_penalty(), -RIGHT),
    (losses.rbf_discriminative(j=0.5), -RIGHT + np.log(np.exp(-0.5) + np.exp(LOGITS).sum(axis=1))),
]


@pytest.mark.parametrize("loss, expected", LOSSES)
def test_a_loss_is_its_formula_example_by_example(loss, expected, strict):
    chex.assert_trees_all_close(loss(Output(jnp.asarray(LOGITS), {}), jnp.asarray(LABELS)), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES])
def test_soft_labels_are_probabilities_of_the_classes(loss, strict):
    output, hard = Output(jnp.asarray(LOGITS), {"a": jnp.asarray(-LOGITS)}), jnp.eye(3)[jnp.asarray(LABELS)]
    chex.assert_trees_all_close(loss(output, hard), loss(output, jnp.asarray(LABELS)), rtol=1e-6)
    with pytest.raises(CnnjaxError, match=r"\(2, 4\)"):
        loss(output, jnp.ones((2, 4)) / 4)


def test_losses_of_soft_labels_are_their_formulas(strict):
    q = np.array([[0.7, 0.3, 0.0], [0.2, 0.2, 0.6]], np.float32)
    for loss, expected in [
        (losses.cross_entropy(), -(q * np.log(P)).sum(axis=1)),
        (losses.cross_entropy(label_smoothing=0.1), -((0.9 * q + 0.1 / 3) * np.log(P)).sum(axis=1)),
        (losses.mean_squared_error(), ((LOGITS - q) ** 2).mean(axis=1)),
        (losses.rbf_penalty(), -(q * LOGITS).sum(axis=1)),
    ]:
        chex.assert_trees_all_close(loss(Output(jnp.asarray(LOGITS), {}), jnp.asarray(q)), expected, rtol=1e-5)


def test_losses_that_say_the_same_are_equal_and_others_are_not():
    same = [
        losses.cross_entropy(aux_weight={"b": 0.3, "a": 0.1}),
        losses.cross_entropy(aux_weight={"a": 0.1, "b": 0.3}),
    ]
    assert same[0] == same[1] and hash(same[0]) == hash(same[1])
    others = [losses.cross_entropy(), losses.cross_entropy(label_smoothing=0.1), losses.cross_entropy(aux_weight=0.4)]
    assert len({*same, *others, losses.mean_squared_error(), losses.rbf_penalty()}) == 6


def test_auxiliary_heads_count_their_weight():
    main, a, b = (jnp.asarray(np.roll(LOGITS, shift, axis=1)) for shift in range(3))
    of = losses.cross_entropy()
    parts = [of(Output(x, {}), LABELS) for x in (main, a, b)]
    output = Output(main, {"a": a, "b": b})
    chex.assert_trees_all_close(of(output, LABELS), parts[0] + 0.3 * (parts[1] + parts[2]), rtol=1e-6)
    each = losses.cross_entropy(aux_weight={"a": 0.5, "b": 0.0, "gone": 1.0})
    chex.assert_trees_all_close(each(output, LABELS), parts[0] + 0.5 * parts[1], rtol=1e-6)
    with pytest.raises(CnnjaxError, match="'b'"):
        losses.cross_entropy(aux_weight={"a": 0.5})(output, LABELS)


def test_half_precision_logits_are_widened_before_the_loss():
    value = losses.cross_entropy()(Output(jnp.asarray(LOGITS, jnp.bfloat16), {}), LABELS)
    assert value.dtype == jnp.float32


def test_a_larger_j_lets_the_discriminative_loss_push_the_other_classes_less():
    """Equation 9's e^-j is a rubbish class: penalties above j are pushed up no further."""

    def push(j):
        return jax.grad(lambda x: losses.rbf_discriminative(j=j)(Output(x, {}), LABELS).sum())(-jnp.full((2, 3), 5.0))[
            0, 1
        ]

    assert 0 < push(1.0) < push(20.0) / 10


@pytest.mark.parametrize(
    "make",
    [
        lambda: losses.cross_entropy(label_smoothing=1.0),
        lambda: losses.cross_entropy(label_smoothing=-0.1),
        lambda: losses.cross_entropy(aux_weight=-1.0),
        lambda: losses.cross_entropy(aux_weight={"a": float("nan")}),
        lambda: losses.rbf_discriminative(j=0.0),
        lambda: losses.cross_entropy()(Output(jnp.zeros((2, 4, 4, 3)), {}), LABELS),
    ],
)
def test_a_loss_without_meaning_is_refused(make):
    with pytest.raises(CnnjaxError):
        make()


SCHEDULES = [
    # LeNet-5: 2, 3, 3 and 4 passes, of 10 steps here
    (
        optim.piecewise((5e-4, 2e-4, 1e-4, 5e-5, 1e-5), [10 * n for n in (2, 3, 3, 4)]),
        {0: 5e-4, 19: 5e-4, 20: 2e-4, 49: 2e-4, 50: 1e-4, 79: 1e-4, 80: 5e-5, 119: 5e-5, 120: 1e-5, 10**6: 1e-5},
    ),
    (optim.piecewise((0.5,), ()), {0: 0.5, 100: 0.5}),
    (optim.step_decay(0.1, (32_000, 48_000)), {0: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001}),
    (optim.staircase(1.0, 8, factor=0.96), {0: 1.0, 7: 1.0, 8: 0.96, 16: 0.96**2}),
    (optim.polynomial(1.0, 100, power=2.0), {0: 1.0, 50: 0.25, 100: 0.0, 200: 0.0}),
    (optim.polynomial(1.0, 100, end=0.5), {50: 0.75, 100: 0.5}),
    (optim.cosine(2.0, 100), {0: 2.0, 50: 1.0, 100: 0.0}),
    (optim.cosine(1.0, 110, warmup=10, end=0.1), {0: 0.0, 5: 0.5, 10: 1.0, 60: 0.55, 110: 0.1}),
]


@pytest.mark.parametrize("schedule, rates", SCHEDULES)
def test_a_schedule_gives_the_rates_of_the_paper(schedule, rates):
    chex.assert_trees_all_close(
        {step: jax.jit(schedule)(jnp.int32(step)) for step in rates},
        {step: np.float32(rate) for step, rate in rates.items()},
        rtol=1e-5,
        atol=1e-9,
    )


def test_sgd_is_the_update_of_krizhevsky_with_the_rate_inside_the_velocity():
    rates, momentum, decay = (0.1, 0.1, 0.01, 0.01), 0.9, 0.05
    tx = optim.sgd(optim.piecewise((0.1, 0.01), (2,)), momentum=momentum, weight_decay=decay)
    w, v = np.array([1.0, -2.0]), np.zeros(2)
    params = {"fc": {"kernel": jnp.asarray(w, jnp.float32)}}
    state = tx.init(params)
    for rate, gradient in zip(rates, np.linspace(-1, 1, 8).reshape(4, 2), strict=True):
        v = momentum * v - decay * rate * w - rate * gradient
        w = w + v
        updates, state = tx.update({"fc": {"kernel": jnp.asarray(gradient, jnp.float32)}}, state, params)
        params = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(params["fc"]["kernel"], w.astype(np.float32), rtol=1e-5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_at_a_constant_rate_is_that_of_optax(nesterov, key):
    params = {"kernel": jax.random.normal(key, (3, 2))}
    ours, theirs = optim.sgd(0.1, momentum=0.9, nesterov=nesterov), optax.sgd(0.1, 0.9, nesterov)
    states = [tx.init(params) for tx in (ours, theirs)]
    for i in range(3):
        grads = jax.tree.map(lambda x, i=i: jnp.sin(x + i), params)
        (a, states[0]), (b, states[1]) = (
            tx.update(grads, s, params) for tx, s in zip((ours, theirs), states, strict=True)
        )
        chex.assert_trees_all_close(a, b, rtol=1e-5)


def test_a_mask_keeps_biases_and_normalisation_from_decaying():
    params = {"conv": {"kernel": jnp.ones((1, 1, 2, 2)), "bias": jnp.ones(2), "norm": {"scale": jnp.ones(2)}}}
    tx = optim.sgd(1.0, weight_decay=0.5, decayed=optim.kernels)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    expected = {"conv": {"kernel": jnp.full((1, 1, 2, 2), -0.5), "bias": jnp.zeros(2), "norm": {"scale": jnp.zeros(2)}}}
    chex.assert_trees_all_close(updates, expected)


def test_plateau_divides_the_rate_after_evaluations_without_improvement():
    tx = optax.chain(optim.sgd(1.0), optim.plateau(factor=0.1, patience=2, smallest=0.01))
    params = {"kernel": jnp.ones(1)}
    state, update = tx.init(params), jax.jit(tx.update)
    seen = []
    for error in (50.0, 40.0, 41.0, 40.0, 30.0, 30.0, 30.0, 30.0, 30.0, 30.0, 30.0):
        state = optim.observe(state, error)
        for _ in range(3):  # steps between two evaluations say nothing new
            updates, state = update({"kernel": jnp.ones(1)}, state, params)
        seen.append(round(-float(updates["kernel"][0]), 6))
    assert seen == [1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01, 0.01]


def test_observing_leaves_an_optimiser_without_plateau_as_it_is():
    state = optax.adam(1e-3).init({"kernel": jnp.ones(1)})
    chex.assert_trees_all_equal(optim.observe(state, 10.0), state)


@pytest.mark.parametrize(
    "make",
    [
        lambda: optim.piecewise((0.1, 0.01), ()),
        lambda: optim.piecewise((0.1, -0.01), (5,)),
        lambda: optim.piecewise((0.1, 0.01), (0,)),
        lambda: optim.step_decay(0.1, (48_000, 32_000)),
        lambda: optim.step_decay(0.1, (0,)),
        lambda: optim.staircase(0.1, 0, factor=0.5),
        lambda: optim.polynomial(0.1, 0),
        lambda: optim.polynomial(0.1, 10, end=0.2),
        lambda: optim.cosine(0.1, 10, warmup=10),
        lambda: optim.sgd(float("nan")),
        lambda: optim.sgd(-0.1),
        lambda: optim.sgd(0.1, momentum=1.0),
        lambda: optim.sgd(0.1, weight_decay=-1e-4),
        lambda: optim.sgd(0.1, nesterov=True),
        lambda: optim.plateau(factor=1.0),
        lambda: optim.plateau(patience=0),
        lambda: optim.plateau(min_improvement=0.0),
    ],
)
def test_an_optimiser_without_meaning_is_refused(make):
    with pytest.raises(CnnjaxError):
        make()
