"""LeNet-5 against an independent forward in NumPy, written from the paper."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import FACTS

from cnnjax.analysis.summary import summarise
from cnnjax.models import layers, ops
from cnnjax.models.chain import features
from cnnjax.models.lenet import BITMAPS, C3_TABLE, DIGITS, lenet5, lenet5_1998

FACT = FACTS["lenet5_1998"]


def squash(x):
    return 1.7159 * np.tanh(2 / 3 * x)


def correlate(x, kernel):
    """One map [height, width] with one 5×5 plane."""
    height, width = x.shape[0] - 4, x.shape[1] - 4
    return np.array([[np.sum(x[i : i + 5, j : j + 5] * kernel) for j in range(width)] for i in range(height)])


def subsample(maps, params):
    sums = maps[:, 0::2, 0::2] + maps[:, 0::2, 1::2] + maps[:, 1::2, 0::2] + maps[:, 1::2, 1::2]
    return squash(sums * np.asarray(params["coefficient"])[:, None, None] + np.asarray(params["bias"])[:, None, None])


def forward_1998(params, image):
    """Section II.B, map by map; returns every layer as [maps, height, width] or [units]."""
    out = {}
    c1 = params["C1"]
    out["C1"] = squash(np.stack([correlate(image, c1["kernel"][:, :, 0, i]) + c1["bias"][i] for i in range(6)]))
    out["S2"] = subsample(out["C1"], params["S2"])
    maps, plane = [], 0
    for i, reads in enumerate(FACT["c3_table"]):
        total = params["C3"]["bias"][i]
        for source in reads:
            total = total + correlate(out["S2"][source], params["C3"]["kernel"][:, :, plane])
            plane += 1
        maps.append(squash(total))
    out["C3"] = np.stack(maps)
    out["S4"] = subsample(out["C3"], params["S4"])
    c5 = np.einsum("chw,hwco->o", out["S4"], params["C5"]["kernel"]) + params["C5"]["bias"]
    out["C5"] = squash(c5)
    out["F6"] = squash(out["C5"] @ params["F6"]["kernel"] + params["F6"]["bias"])
    out["output"] = -np.sum((out["F6"][None] - np.array(BITMAPS)) ** 2, axis=1)
    return out


@pytest.mark.parametrize("reference", [False, True])
def test_every_layer_of_1998_equals_numpy(key, reference):
    net = lenet5_1998()
    image = jax.random.normal(key, (1, 32, 32, 1))
    params = jax.tree.map(lambda leaf: leaf + 0.1, net.init(key, image)["params"])
    expected = forward_1998(jax.tree.map(np.asarray, params), np.asarray(image)[0, :, :, 0])
    with ops.reference_forms(reference):
        found = features(net, {"params": params}, image, net.names)
    for name, value in found.items():
        ours = np.asarray(value[0])
        ours = ours.transpose(2, 0, 1).reshape(expected[name].shape) if ours.ndim == 3 else ours
        chex.assert_trees_all_close(ours, expected[name].astype(np.float32), rtol=2e-4, atol=2e-4)


def test_c3_reads_the_maps_of_table_1():
    assert [list(row) for row in C3_TABLE] == FACT["c3_table"]


@pytest.mark.parametrize("layer", ["C1", "S2", "C3", "S4", "C5", "F6"])
def test_connections_are_those_of_the_paper(layer):
    """Connections count a bias as one more input of each unit; a subsampling unit has four inputs and a bias."""
    row = summarise(lenet5_1998(), (32, 32, 1))[layer]
    units = int(np.prod(row.output))
    connections = 5 * units if layer[0] == "S" else row.macs + units
    assert connections == FACT["connections"][layer]


@pytest.mark.long
def test_the_sparse_and_the_grouped_form_have_the_same_gradient(key):
    net, x = lenet5_1998(), jax.random.normal(key, (2, 32, 32, 1))
    params = net.init(key, x)["params"]

    def grad(reference):
        with ops.reference_forms(reference):
            return jax.grad(lambda p: net.apply({"params": p}, x).logits.sum())(params)

    chex.assert_trees_all_close(grad(False), grad(True), rtol=1e-3, atol=1e-3)


def test_scaled_tanh_gives_the_published_values():
    for x, y in FACTS["test_vectors"]["scaled_tanh_1.7159_2_3"].items():
        assert abs(float(layers.scaled_tanh(jnp.float32(float(x)))) - y) < 1e-6


def test_digits_are_drawn_in_seven_by_twelve_cells():
    for digit, picture in DIGITS.items():
        assert [len(row) for row in picture.split()] == [7] * 12, digit
    assert len(set(BITMAPS)) == 10 and {len(bitmap) for bitmap in BITMAPS} == {84}


def test_a_perfect_f6_has_distance_zero_to_its_own_digit_only():
    net = lenet5_1998()
    distances = -net["output"].apply({}, jnp.array(BITMAPS), False)
    chex.assert_trees_all_equal(jnp.diag(distances), jnp.zeros(10))
    assert float((distances + 1e6 * jnp.eye(10)).min()) >= 8  # at least two dots apart


def test_dense_lenet_on_digits_of_28_pads_by_two():
    assert summarise(lenet5(pad=2), (28, 28, 1)).params == 61_706
    trainable_subsampling = FACTS["lenet5_dense"]["params"] + 2 * 6 + 2 * 16
    assert trainable_subsampling == 61_750
