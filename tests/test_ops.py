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
from cnnjax.models.ops import convolution, products, winograd


def both(function, *args):
    """Value and gradients on this CPU, by the form that it gets and by the reference; the cotangent is arbitrary."""

    def run(*args):
        value, pull = jax.vjp(function, *args)
        return value, pull(jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape))

    with ops.reference_forms(False):
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
    # banded rows: one channel, several, an image that is no square
    ((3, 12, 12, 1), (5, 5, 1, 6), 1, 0, 1), ((2, 9, 14, 6), (5, 5, 6, 16), 1, 0, 1),
    ((2, 11, 7, 4), (3, 2, 2, 6), 1, 0, 2),
    # fewer multiplications, with tiles of 2 and of 4
    ((1, 20, 19, 256), (3, 3, 256, 256), 1, 1, 1), ((4, 28, 28, 128), (3, 3, 128, 128), 1, 1, 1),
    ((1, 22, 22, 256), (3, 3, 256, 256), 1, "VALID", 1),
    # weight gradients as products, at once and strip by strip
    ((2, 17, 17, 32), (7, 1, 32, 40), 1, (3, 0), 1), ((2, 14, 13, 32), (3, 3, 32, 33), 2, 1, 1),
    ((2, 14, 13, 32), (3, 2, 32, 33), (2, 1), "SAME", 1),
    ((4, 56, 56, 32), (3, 3, 32, 16), 1, 1, 1), ((3, 99, 99, 3), (11, 11, 3, 8), 4, 2, 1),
    # few features, other sizes
    ((2, 9, 8, 12), (5, 3, 12, 6), 1, "VALID", 1), ((2, 7, 6, 12), (2, 4, 12, 5), 1, "SAME", 1),
]  # fmt: skip


def test_both_sizes_of_tiles_are_among_the_convolutions():
    found = set()
    for shape, kernel, stride, pad, groups in CONVS:
        if kernel[:2] == (3, 3) and stride == groups == 1:
            (_, *image_size, _), padding = shape, ops.pads(shape[1:3], (3, 3), (1, 1), pad)
            out = [n + sum(sides) - 2 for n, sides in zip(image_size, padding, strict=True)]
            found.add(winograd.best(shape[0], *out, *kernel[2:]))
    assert found == {None, 2, 4}


def test_few_channels_and_big_maps_keep_the_direct_sum():
    assert winograd.best(2, 224, 224, 3, 64) is None and winograd.best(64, 32, 32, 16, 16) is None
    assert winograd.best(2, 56, 56, 256, 256) == 4 and winograd.best(8, 7, 7, 512, 512) == 2
    assert winograd.best(2, 224, 224, 64, 64) is None and winograd.best(2, 224, 224, 64, 64, gradient=True) is None
    assert winograd.best(2, 56, 56, 256, 256, gradient=True) == 4


@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 0), (0, 0)), ((2, 0), (1, 2)), ((4, 3), (3, 4))])
@pytest.mark.parametrize("size", [(5, 7), (8, 8), (3, 4), (10, 6)])
@pytest.mark.parametrize("m", winograd.TRANSFORMS)
def test_fewer_multiplications_give_the_same(m, size, padding, dtype):
    x, kernel = image((2, *size, 3), dtype), image((3, 3, 3, 5), dtype, seed=1)
    direct, pull = jax.vjp(lambda x, k: convolution.reference(x, k, stride=(1, 1), padding=padding), x, kernel)
    g = image(direct.shape, dtype, seed=2)
    close = functools.partial(chex.assert_trees_all_close, **tolerance(dtype))
    close(winograd.conv(x, kernel, padding=padding, m=m), direct)
    close(winograd.kernel_gradient(x, g, padding=padding, m=m), pull(g)[1])


STRIPS = [  # input, window, features, stride, padding: rows in one strip, in several, in some that are not filled
    ((2, 9, 8, 16), (3, 3), 4, (1, 1), ((1, 1), (1, 1))), ((3, 50, 41, 3), (3, 3), 5, (1, 1), ((1, 1), (1, 1))),
    ((3, 50, 41, 5), (3, 2), 3, (1, 1), ((0, 0), (0, 1))), ((2, 67, 71, 3), (11, 11), 8, (4, 4), ((0, 0), (2, 1))),
    ((3, 83, 80, 32), (3, 3), 6, (2, 2), ((1, 0), (0, 1))), ((1, 61, 60, 20), (5, 1), 24, (1, 1), ((2, 2), (0, 0))),
    ((40, 20, 19, 6), (1, 7), 6, (1, 1), ((0, 0), (3, 3))), ((2, 70, 71, 30), (2, 2), 7, (2, 3), ((0, 0), (0, 0))),
]  # fmt: skip


@pytest.mark.parametrize("shape, window, features, stride, padding", STRIPS)
def test_products_give_the_gradient_of_a_kernel(shape, window, features, stride, padding, dtype):
    x, kernel = image(shape, dtype), image((*window, shape[-1], features), dtype, seed=1)
    direct, pull = jax.vjp(lambda x, k: convolution.reference(x, k, stride=stride, padding=padding), x, kernel)
    g = image(direct.shape, dtype, seed=2)
    gradient = jax.jit(functools.partial(products.kernel_gradient, window=window, stride=stride, padding=padding))
    ours, theirs = gradient(x, g), pull(g)[1]
    near = 1e-5 if dtype == "float32" else 1e-13  # of the largest value
    chex.assert_trees_all_close(ours, theirs, rtol=0, atol=near * float(jnp.abs(theirs).max()))
    seeds = jax.vmap(gradient)(jnp.stack([x, -x]), jnp.stack([g, g]))
    chex.assert_trees_all_close(seeds, jnp.stack([ours, -ours]), **tolerance(dtype))


def test_products_work_on_strips_of_large_maps_only():
    def loops(*shape):
        x, g = jnp.zeros((*shape, 16)), jnp.zeros((*shape, 8))
        same = functools.partial(products.kernel_gradient, window=(3, 3), stride=(1, 1), padding=((1, 1), (1, 1)))
        return "while" in jax.jit(same).lower(x, g).as_text()

    assert loops(2, 56, 56) and loops(64, 16, 16) and not loops(2, 28, 28)


def test_products_of_halves_are_summed_in_float32():
    x, g = jnp.ones((1, 128, 128, 16), jnp.bfloat16), jnp.ones((1, 128, 128, 8), jnp.bfloat16)
    found = products.kernel_gradient(x, g, window=(1, 1), stride=(1, 1), padding=((0, 0), (0, 0)))
    assert found.dtype == jnp.bfloat16 and (found == 128 * 128).all()  # bfloat16 alone would stop at 256


@pytest.mark.parametrize("shape, kernel, stride, pad, groups", CONVS)
def test_convolution_equals_its_reference(shape, kernel, stride, pad, groups, dtype):
    conv = functools.partial(ops.conv, stride=stride, pad=pad, groups=groups)
    fast, reference = both(conv, image(shape, dtype), image(kernel, dtype, seed=1))
    near = 5e-5 if dtype == "float32" else 1e-12  # of the largest value
    for ours, theirs in zip(jax.tree.leaves(fast), jax.tree.leaves(reference), strict=True):
        chex.assert_trees_all_close(ours, theirs, rtol=0, atol=near * float(jnp.abs(theirs).max()))


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
    with ops.reference_forms(False):
        exported = {p: export.export(jax.jit(jax.grad(loss)), platforms=[p])(*shapes) for p in ("cpu", "cuda")}
    texts = {platform: program.mlir_module() for platform, program in exported.items()}
    assert "select_and_scatter" in texts["cuda"] and "select_and_scatter" not in texts["cpu"]
    assert "feature_group_count = 2" in texts["cuda"] and "feature_group_count = 2" not in texts["cpu"]


@pytest.mark.parametrize("size, window, pad", [(4, 5, 0), (1, 4, 1)])
def test_an_image_smaller_than_the_window_is_refused(size, window, pad):
    with pytest.raises(CnnjaxError, match="does not fit"):
        ops.max_pool(jnp.zeros((1, size, size, 1)), window, stride=1, pad=pad)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("shape", [(4, 5, 3, 6), (7, 6)])
def test_batch_norm_equals_its_reference(shape, scale, dtype):
    """The moments, too; those carry no gradient in either form."""

    def y_and_moments(x, gain, bias):
        y, mean, variance, count = ops.batch_norm(x, gain if scale else None, bias, 1e-3)
        assert count == x.size // 6
        return jnp.concatenate([y.ravel(), mean, variance])

    x, gain, bias = image(shape, dtype) * 3 + 1, image((6,), dtype, seed=1), image((6,), dtype, seed=2)
    fast, reference = both(y_and_moments, x, gain, bias)
    chex.assert_trees_all_close(fast, reference, **tolerance(dtype))


def test_batch_norm_over_devices_is_that_of_the_whole_batch():
    x, scale, bias = image((8, 2, 3, 3, 5)), image((5,), seed=1), image((5,), seed=2)

    def loss(x, axis):
        with ops.batch_axis(axis):
            y, mean, variance, count = ops.batch_norm(x, scale, bias, 1e-5)
        assert count == 16 * 9
        return (jnp.sin(y) * y).sum(), (y, mean, variance)

    def spread(x):
        # The gradient of the sum of all devices' losses: each device's reaches the others through the moments.
        with ops.batch_axis("data"):
            return jax.grad(lambda x: jax.lax.psum(loss(x, "data")[0], "data") / 8)(x), loss(x, "data")[1]

    grads, (y, mean, variance) = jax.pmap(spread, axis_name="data")(x)
    whole, (_, (y1, mean1, variance1)) = (
        jax.grad(lambda x: loss(x, None)[0])(x.reshape(16, 3, 3, 5)),
        loss(x.reshape(16, 3, 3, 5), None),
    )
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-4, atol=1e-5)
    close(y.reshape(y1.shape), y1)
    close((mean[0], variance[0]), (mean1, variance1))
    close(grads.reshape(whole.shape), whole)


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
