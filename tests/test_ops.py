"""The operations: every fast form equals its reference in value and gradient, and the reference equals NumPy."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from published import FACTS

from cnnjax.errors import CnnjaxError
from cnnjax.models import ops


def both(function, *args):
    """Value and gradients on this CPU, by the form that it gets and by the reference; the cotangent is arbitrary."""

    def run(*args):
        value, pull = jax.vjp(function, *args)
        return value, pull(jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape))

    fast = jax.jit(run)(*args)
    with ops.reference_forms(True):
        return fast, jax.jit(run)(*args)


def image(shape, dtype="float32", *, ties=False, seed=0):
    values = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(np.round(values) if ties else values, dtype)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def tolerance(dtype):
    return {"rtol": 2e-4, "atol": 2e-4} if dtype == "float32" else {"rtol": 1e-11, "atol": 1e-11}


POOLS = [  # height, width, window, stride, pad, ceil
    (8, 8, 2, 2, 0, False), (55, 7, 3, 2, 0, False), (14, 9, 3, 2, 1, False), (9, 9, 3, 1, 1, False),
    (12, 13, 3, 2, 0, True), (7, 7, 2, 2, 0, True), (8, 6, 2, 3, 0, False), (10, 10, (3, 2), (2, 1), (1, 0), False),
]  # fmt: skip


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("height, width, window, stride, pad, ceil", POOLS)
def test_max_pool_equals_its_reference_ties_included(height, width, window, stride, pad, ceil, ties, dtype):
    x = image((2, height, width, 3), dtype, ties=ties)
    pool = functools.partial(ops.max_pool, window=window, stride=stride, pad=pad, ceil=ceil)
    fast, reference = both(pool, x)
    chex.assert_trees_all_equal(fast[0], reference[0])
    chex.assert_trees_all_close(fast[1], reference[1], **tolerance(dtype))


CONVS = [  # input, kernel, stride, pad, groups
    ((3, 9, 9, 4), (3, 3, 2, 6), 1, 1, 2), ((2, 12, 11, 8), (5, 5, 2, 12), 2, 2, 4),
    ((2, 7, 7, 5), (1, 1, 5, 7), 1, 0, 1),
    ((2, 8, 8, 5), (1, 1, 5, 7), 2, 0, 1), ((2, 2, 2, 6), (3, 3, 6, 4), 1, 1, 1), ((2, 4, 4, 6), (5, 5, 6, 4), 1, 2, 1),
    ((2, 4, 4, 6), (3, 3, 6, 4), 2, 1, 1), ((2, 5, 5, 6), (5, 5, 6, 8), 1, 0, 1),
    ((2, 3, 3, 6), (3, 3, 3, 8), 1, "SAME", 2),
    ((2, 5, 1, 6), (3, 1, 6, 8), 1, (1, 0), 1),
]  # fmt: skip


@pytest.mark.parametrize("shape, kernel, stride, pad, groups", CONVS)
def test_convolution_equals_its_reference(shape, kernel, stride, pad, groups, dtype):
    conv = functools.partial(ops.conv, stride=stride, pad=pad, groups=groups)
    fast, reference = both(conv, image(shape, dtype), image(kernel, dtype, seed=1))
    chex.assert_trees_all_close(fast, reference, **tolerance(dtype))


@pytest.mark.parametrize("constants", [{}, {"n": 3, "k": 1.0, "alpha": 0.5, "beta": 0.75}, {"alpha": 0.3, "beta": 0.5}])
def test_lrn_equals_its_reference(constants, dtype):
    fast, reference = both(functools.partial(ops.lrn, **constants), image((2, 3, 4, 7), dtype) * 5)
    chex.assert_trees_all_close(fast, reference, **tolerance(dtype))


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize(
    "vector, alpha, x",
    [
        ("ones_printed_formula", 1e-4, np.ones(8)),
        ("ones_torch_alpha_over_n", 1e-4 / 5, np.ones(8)),
        ("ramp_10_to_80_printed_formula", 1e-4, np.arange(10, 90, 10)),
        ("ramp_10_to_80_torch", 1e-4 / 5, np.arange(10, 90, 10)),
    ],
)
def test_lrn_gives_the_published_vectors(vector, alpha, x, reference):
    with jax.enable_x64(True), ops.reference_forms(reference):
        y = ops.lrn(jnp.asarray(x, jnp.float64)[None, None, None], alpha=alpha)
    expected = np.array(FACTS["test_vectors"]["lrn"][vector])
    chex.assert_trees_all_close(np.asarray(y).ravel(), expected, rtol=1e-9 if "torch" not in vector else 1e-6)


def numpy_pool(x, window, stride, pad, ceil, reduce, *, count_padding=True):
    """Window by window, from Caffe's text: ceil rounds up, a window that starts beyond size + pad is dropped."""
    sizes = []
    for n in x.shape:
        out = (n + 2 * pad - window) / stride
        out = int(np.ceil(out) if ceil else np.floor(out)) + 1
        sizes.append(out - 1 if ceil and (out - 1) * stride >= n + pad else out)
    y = np.zeros(sizes)
    for i, j in itertools.product(*map(range, sizes)):
        top, left = i * stride - pad, j * stride - pad
        rows = range(max(top, 0), min(top + window, x.shape[0]))
        columns = range(max(left, 0), min(left + window, x.shape[1]))
        values = x[np.ix_(rows, columns)]
        if reduce == "max":
            y[i, j] = values.max()
        else:
            padded = (min(top + window, x.shape[0] + pad) - top) * (min(left + window, x.shape[1] + pad) - left)
            y[i, j] = values.sum() / (padded if count_padding else values.size)
    return y


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("size, window, stride, pad, ceil", [
    (8, 2, 2, 0, False), (112, 3, 2, 0, True), (13, 3, 2, 0, True), (7, 2, 2, 0, True), (8, 3, 2, 1, True),
    (9, 3, 1, 1, False),     (14, 5, 3, 0, False), (6, 3, 3, 1, True), (5, 2, 2, 1, True),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["max", "mean", "mean of pixels"])
def test_pooling_equals_numpy_window_by_window(size, window, stride, pad, ceil, kind, reference):
    x = np.random.default_rng(0).normal(size=(size, size + 1)).astype(np.float32)
    with ops.reference_forms(reference):
        if kind == "max":
            y = ops.max_pool(jnp.asarray(x)[None, ..., None], window, stride=stride, pad=pad, ceil=ceil)
        else:
            count = kind == "mean"
            y = ops.avg_pool(
                jnp.asarray(x)[None, ..., None], window, stride=stride, pad=pad, ceil=ceil, count_padding=count
            )
    expected = numpy_pool(x, window, stride, pad, ceil, kind[:3].replace("mea", "mean"), count_padding=kind == "mean")
    chex.assert_trees_all_close(np.asarray(y)[0, ..., 0], expected.astype(np.float32), rtol=1e-5, atol=1e-6)


def test_a_reference_that_ignores_ceil_would_be_seen():
    x = np.random.default_rng(0).normal(size=(8, 9))
    assert numpy_pool(x, 3, 2, 0, True, "max").shape != numpy_pool(x, 3, 2, 0, False, "max").shape


def test_convolution_equals_numpy_with_groups_stride_and_padding():
    x, kernel = np.asarray(image((2, 7, 8, 4))), np.asarray(image((3, 2, 2, 6), seed=1))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = np.zeros((2, 4, 5, 6), np.float32)
    for i, j, o in itertools.product(range(4), range(5), range(6)):
        group = o // 3
        patch = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 2, 2 * group : 2 * group + 2]
        y[:, i, j, o] = (patch * kernel[..., o]).sum((1, 2, 3))
    ours = ops.conv(jnp.asarray(x), jnp.asarray(kernel), stride=2, pad=1, groups=2)
    chex.assert_trees_all_close(np.asarray(ours), y, rtol=1e-4, atol=1e-5)


def test_transposed_convolution_is_the_adjoint_of_the_convolution():
    x, kernel = image((2, 5, 6, 3)), image((3, 3, 3, 4), seed=1)
    y = ops.conv_transpose(x, kernel, stride=2, pad=1, extra=1)
    assert y.shape == (2, 10, 12, 4)
    backwards = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
    _, pull = jax.vjp(lambda z: ops.conv(z, backwards, stride=2, pad=1), jnp.zeros(y.shape))
    chex.assert_trees_all_close(y, pull(x)[0], rtol=1e-4, atol=1e-5)


def test_local_convolution_with_equal_weights_everywhere_is_a_convolution():
    x, kernel = image((2, 6, 5, 3)), image((3, 3, 3, 4), seed=1)
    shared = jnp.broadcast_to(kernel.reshape(1, 1, 27, 4), (6, 5, 27, 4))
    chex.assert_trees_all_close(
        ops.conv_local(x, shared, window=(3, 3), pad=1), ops.conv(x, kernel, pad=1), rtol=1e-4, atol=1e-5
    )


def test_what_is_exported_for_a_gpu_holds_the_reference_forms():
    """The index of a maximum and split groups are the CPU's; a GPU gets select-and-scatter and one grouped call."""

    def loss(x, kernel):
        return ops.max_pool(ops.conv(x, kernel, groups=2), 2, stride=2).sum()

    shapes = jax.ShapeDtypeStruct((2, 9, 9, 4), jnp.float32), jax.ShapeDtypeStruct((2, 2, 2, 6), jnp.float32)
    texts = {p: export.export(jax.jit(jax.grad(loss)), platforms=[p])(*shapes).mlir_module() for p in ("cpu", "cuda")}
    assert "select_and_scatter" in texts["cuda"] and "select_and_scatter" not in texts["cpu"]
    assert "feature_group_count = 2" in texts["cuda"] and "feature_group_count = 2" not in texts["cpu"]


@pytest.mark.parametrize("size, window, pad", [(4, 5, 0), (1, 4, 1)])
def test_an_image_smaller_than_the_window_is_refused(size, window, pad):
    with pytest.raises(CnnjaxError, match="does not fit"):
        ops.max_pool(jnp.zeros((1, size, size, 1)), window, stride=1, pad=pad)


def test_moments_over_devices_are_those_of_the_whole_batch():
    x = image((8, 2, 3, 3, 5))
    parts = jax.pmap(functools.partial(ops.batch_moments, axis_name="data"), axis_name="data")(x)
    whole = ops.batch_moments(x.reshape(16, 3, 3, 5))
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[0], parts), whole, rtol=1e-5, atol=1e-6)


def test_dropout_keeps_the_mean_and_only_zeroes_or_scales(key):
    y = ops.dropout(jnp.ones((100, 100)), 0.25, key)
    chex.assert_trees_all_close(jnp.unique(y), jnp.array([0, 4 / 3]), rtol=1e-6)
    assert abs(float((y == 0).mean()) - 0.25) < 0.02


def test_operations_run_under_the_strict_flags(strict):
    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 2, 4))
    for reference in (False, True):
        with ops.reference_forms(reference):
            jax.jit(jax.grad(lambda x: ops.lrn(ops.max_pool(ops.conv(x, kernel, groups=2), 2, stride=2)).sum()))(x)
            jax.jit(jax.grad(lambda x: ops.avg_pool(x, 3, stride=2, ceil=True).sum()))(x)
