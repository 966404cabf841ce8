"""VGG against its paper's tables, its well-known wrong copies, and under surgery."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from narrow import applied, features, initial, narrow

from cnnjax.analysis.summary import summarise
from cnnjax.errors import CnnjaxError
from cnnjax.models import surgery
from cnnjax.models.chain import Chain
from cnnjax.models.layers import LRN, Conv, Dense, Norm
from cnnjax.models.vgg import CONFIGURATIONS, vgg

IMAGE = (224, 224, 3)

# The sums by hand: convolutions, then 25,088·4,096 + 4,096 + 4,096² + 4,096 + 4,096·1,000 + 1,000 for the rest.
HEAD = 123_642_856
# fmt: off
PARAMETERS = {
    #         convolutions        their γ and β   Table 2 (millions)   weight layers
    "A":     ( 9_220_480 + HEAD,   5_504,         133,                 11),
    "A-LRN": ( 9_220_480 + HEAD,   5_504,         133,                 11),
    "B":     ( 9_404_992 + HEAD,   5_888,         133,                 13),
    "C":     ( 9_996_096 + HEAD,   8_448,         134,                 16),
    "D":     (14_714_688 + HEAD,   8_448,         138,                 16),
    "E":     (20_024_384 + HEAD,  11_008,         144,                 19),
}
# fmt: on


def weight_layers(net: Chain) -> list[str]:
    return [layer.name for layer in net.layers if isinstance(layer.module, (Conv, Dense))]


def rectified(net: Chain, key) -> dict[str, bool]:
    """Whether what each hidden layer with weights gives is never negative, and neither all zero nor all positive."""
    images = jax.random.normal(key, (2, 32, 32, 3))
    variables = initial(net, key, images)
    hidden = tuple(name for name in weight_layers(net) if name != "fc8")
    maps = features(net, variables, images, hidden)
    return {name: bool(y.min() == 0 and y.max() > 0) for name, y in maps.items()}


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_parameters_are_those_of_the_sums_by_hand_and_round_to_table_2(configuration):
    total, norms, millions, depth = PARAMETERS[configuration]
    net = vgg(configuration)
    assert summarise(net, IMAGE).params == total
    assert round(total / 1e6) == millions
    assert len(weight_layers(net)) == depth
    assert summarise(vgg(configuration, norm=Norm()), IMAGE).params == total + norms


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_stages_halve_the_map_and_end_in_25088_features(configuration):
    summary = summarise(vgg(configuration), IMAGE)
    sizes = {
        name: summary[name].output for name in ("conv1_1", "pool1", "pool2", "pool3", "pool4", "pool5", "fc6", "fc8")
    }
    assert sizes == {
        "conv1_1": (224, 224, 64),
        "pool1": (112, 112, 64),
        "pool2": (56, 56, 128),
        "pool3": (28, 28, 256),
        "pool4": (14, 14, 512),
        "pool5": (7, 7, 512),
        "fc6": (4096,),
        "fc8": (1000,),
    }
    assert np.prod(summary["pool5"].output) == 25_088


def test_layers_are_named_as_in_the_literature():
    assert vgg("A-LRN").names[:3] == ("conv1_1", "norm1", "pool1")
    assert vgg("E").names[-9:] == ("pool4", "conv5_1", "conv5_2", "conv5_3", "conv5_4", "pool5", "fc6", "fc7", "fc8")


def test_the_third_convolutions_of_c_see_one_pixel():
    kernels = {name: vgg("C")[name].kernel for name in weight_layers(vgg("C"))[:-3]}
    assert [name for name, kernel in kernels.items() if kernel == 1] == ["conv3_3", "conv4_3", "conv5_3"]
    c, d = (summarise(vgg(configuration), IMAGE)["conv5_3"] for configuration in "CD")
    assert c.output == d.output
    # 1 + 4 + 1 + 8 + 2 + 16 + 4 + 32 + 8 + 64: two 3×3 a stage at strides 1, 2, 4, 8, 16, and the poolings between
    assert (c.field, d.field) == ((140, 140), (196, 196))


def test_weights_start_as_the_paper_draws_them(key):
    net = narrow(vgg("B"))
    variables = initial(net, key, jnp.zeros((1, 32, 32, 3)))
    kernels, biases = ([np.ravel(layer[kind]) for layer in variables["params"].values()] for kind in ("kernel", "bias"))
    assert not np.concatenate(biases).any()
    assert abs(np.concatenate(kernels).std() - 0.1) < 2e-3


@pytest.mark.parametrize(("configuration", "norm"), [*((c, None) for c in CONFIGURATIONS), ("D", Norm())])
def test_every_hidden_layer_is_rectified(configuration, norm, key):
    net = narrow(vgg(configuration, norm=norm))
    assert all(rectified(net, key).values())


def test_the_wrong_head_without_relu_is_found_out(key):
    """A published port has it: same parameters, same shapes, other logits."""
    net = narrow(vgg("E"))
    wrong = surgery.replace(net, fc6=net["fc6"].clone(act=None), fc7=net["fc7"].clone(act=None))
    assert summarise(wrong, (32, 32, 3)) == summarise(net, (32, 32, 3))
    assert [name for name, right in rectified(wrong, key).items() if not right] == ["fc6", "fc7"]


def test_a_3x3_in_the_place_of_1x1_is_found_out():
    wrong = surgery.replace(vgg("C"), conv5_3=Conv(512, 3, pad=1))
    assert summarise(wrong, IMAGE).params != PARAMETERS["C"][0]


def test_lrn_of_the_second_column_has_alexnets_constants_as_printed(key):
    net = narrow(vgg("A-LRN"))
    assert vgg("A-LRN")["norm1"] == LRN(n=5, k=2.0, alpha=1e-4, beta=0.75, alpha_over_n=False)
    images = 100 * jax.random.normal(key, (1, 32, 32, 3))
    variables = initial(net, key, images)
    maps = features(net, variables, images, ("conv1_1", "norm1"))
    x = np.asarray(maps["conv1_1"], np.float64)
    by_hand = np.empty_like(x)
    for i in range(x.shape[-1]):
        around = x[..., max(0, i - 2) : i + 3]
        by_hand[..., i] = x[..., i] / (2 + 1e-4 * (around**2).sum(-1)) ** 0.75
    np.testing.assert_allclose(maps["norm1"], by_hand, rtol=1e-5)


def test_batch_normalisation_is_after_convolutions_only_and_keeps_the_biases(key):
    net = narrow(vgg("D", norm=Norm()))
    variables = initial(net, key, jnp.zeros((1, 32, 32, 3)))
    convolutions = {name for name in weight_layers(net) if name.startswith("conv")}
    assert set(variables["batch_stats"]) == convolutions
    assert all("bias" in layer for layer in variables["params"].values())


# --- surgery ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(key):
    """A narrow D, its variables and images."""
    net = narrow(vgg("D", norm=Norm()))
    images = jax.random.normal(key, (2, 32, 32, 3))
    return net, initial(net, key, images), images


def test_removed_layers_leave_the_others_with_the_same_initial_weights(trained, key):
    net, variables, images = trained
    shorter = surgery.without(net, "conv3_2", "fc7")
    assert set(net.names) - set(shorter.names) == {"conv3_2", "fc7"}
    for name, layer in initial(shorter, key, images)["params"].items():
        chex.assert_trees_all_equal(layer, variables["params"][name])
    chex.assert_shape(shorter.apply(variables, images).logits, (2, 10))


def test_the_network_until_pool5_gives_the_features_of_the_whole(trained):
    net, variables, images = trained
    cut = surgery.until(net, "pool5")
    inside = features(net, variables, images, ("pool5",))["pool5"]
    # The two fuse as they like, so that a small value differs by the rounding of the largest.
    chex.assert_trees_all_close(cut.apply(variables, images).logits, inside, rtol=0, atol=1e-5 * float(inside.max()))


def test_a_new_head_leaves_the_rest(trained, key):
    net, _, images = trained
    other = surgery.with_head(net, 37)
    new = initial(other, key, images)
    chex.assert_shape(other.apply(new, images).logits, (2, 37))
    assert {name for name in net.names if other[name] != net[name]} == {"fc8"}


def test_frozen_layers_keep_their_statistics_and_drop_nothing(trained, key):
    net, variables, images = trained
    frozen = frozenset(net.names[: net.names.index("conv4_1")]) | {"fc6", "fc7"}
    _, updated = applied(net, variables, images, train=True, frozen=frozen, mutable=["batch_stats"], dropout=key)
    for name, before in variables["batch_stats"].items():
        after = updated["batch_stats"][name]
        assert (name in frozen) == bool((before["norm"]["mean"] == after["norm"]["mean"]).all())
    everything = frozenset(net.names)
    plain = net.apply(variables, images).logits
    chex.assert_trees_all_equal(net.apply(variables, images, train=True, frozen=everything).logits, plain)


def test_a_layer_is_skipped_where_its_shape_allows(trained):
    net, variables, images = trained
    lesioned = net.apply(variables, images, skip=frozenset({"conv5_2"})).logits
    chex.assert_trees_all_equal(lesioned, surgery.without(net, "conv5_2").apply(variables, images).logits)
    with pytest.raises(CnnjaxError, match=r"'conv3_1' cannot be skipped: it turns \(8, 8, 16\) into \(8, 8, 32\)"):
        net.apply(variables, images, skip=frozenset({"conv3_1"}))


def test_an_unknown_configuration_is_named_with_the_legal_ones():
    with pytest.raises(CnnjaxError, match=r"'F'\nlegal: A, A-LRN, B, C, D, E"):
        vgg("F")
