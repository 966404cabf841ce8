"""ResNets, plain nets and pre-activation ResNets against their papers, well-known wrong copies, NumPy and surgery."""

import time
from functools import partial

import by_hand
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from narrow import applied, features, narrow

from cnnjax.analysis.summary import summarise
from cnnjax.errors import CnnjaxError
from cnnjax.models import chain, surgery
from cnnjax.models.chain import Block, Chain, Residual
from cnnjax.models.resnet import CIFAR_DEPTHS, TABLE_1, PadShortcut, cifar_plain, cifar_resnet, plain, resnet
from cnnjax.models.resnet_v2 import resnet_v2, resnet_v2_keras

IMAGE, SMALL = (224, 224, 3), (32, 32, 3)


def shallow(net: Chain, *kept: str) -> Chain:
    """One block a stage, and those named."""
    return surgery.without(net, *[n for n in net.names if "_" in n and not n.endswith("_1") and n not in kept])


MEMBERS = {
    "basic A": partial(resnet, 18, shortcut="A"),
    "basic B": partial(resnet, 18),
    "bottleneck B": resnet,
    "bottleneck C, biases": partial(resnet, shortcut="C", conv_bias=True),
    "plain": partial(plain, 18),
    "cifar A": cifar_resnet,
    "v2": resnet_v2,
    "v2 Keras": resnet_v2_keras,
}


@pytest.fixture(params=MEMBERS)
def member(request):
    """A narrow, shallow network, its variables and images."""
    net = narrow(shallow(MEMBERS[request.param]()), by=8 if "cifar" not in request.param else 4)
    images = by_hand.noise(2, *SMALL)
    return net, by_hand.scrambled(net, images), images


# --- counts -----------------------------------------------------------------------------------------------------------

# Table 1's FLOPs in 10^9, which are multiply-adds, of the options that the paper used for the table.
FLOPS = {18: (1.8, "A"), 34: (3.6, "A"), 50: (3.8, "B"), 101: (7.6, "B"), 152: (11.3, "B")}


@pytest.mark.parametrize("depth", TABLE_1)
def test_multiply_adds_are_those_of_table_1(depth):
    flops, option = FLOPS[depth]
    assert abs(summarise(resnet(depth, shortcut=option), IMAGE).macs / 1e9 - flops) < 0.06


@pytest.mark.parametrize("depth", TABLE_1)
def test_depth_is_the_number_of_layers_with_weights_on_the_longest_path(depth):
    kind, blocks = TABLE_1[depth]
    assert 1 + {"basic": 2, "bottleneck": 3}[kind] * sum(blocks) + 1 == depth


def test_v1_5_posing_as_v1_has_its_parameters_and_other_multiply_adds():
    v1, wrong = summarise(resnet(), IMAGE), summarise(resnet(stride_on="3x3"), IMAGE)
    assert v1.params == wrong.params == 25_557_032
    # the first 1×1 of conv3_1, conv4_1 and conv5_1 sees four positions for one, 2w to w maps
    more = sum(3 * n**2 * 2 * w * w for w, n in ((128, 28), (256, 14), (512, 7)))
    assert (v1.macs, wrong.macs) == (3_857_973_248, 3_857_973_248 + more)
    for place in ("1x1", "3x3"):  # no difference where there is no bottleneck
        assert resnet(34, stride_on=place) == resnet(34)


def test_a_projection_in_every_basic_block_is_option_c_and_not_the_paper_s_resnet_18():
    right, wrong = summarise(resnet(18), IMAGE).params, summarise(resnet(18, shortcut="C"), IMAGE).params
    # one more 1×1 with its γ and β a stage (64², 128², 256², 512²), and two in conv2_x
    more = 2 * (64**2 + 128) + (128**2 + 256) + (256**2 + 512) + (512**2 + 1024)
    assert (right, wrong) == (11_689_512, 12_043_816)
    assert wrong - right == more


@pytest.mark.parametrize("depth", [depth for depth in CIFAR_DEPTHS if depth < 1000])
def test_cifar_networks_have_the_parameters_of_table_6(depth):
    millions = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}[depth]
    net = summarise(cifar_resnet(depth), SMALL)
    assert round(net.params / 1e6, 1 if depth > 100 else 2) == millions
    assert net.params == summarise(cifar_plain(depth), SMALL).params
    # 1×1 projections 16·32 and 32·64 and their γ and β
    assert summarise(cifar_resnet(depth, shortcut="B"), SMALL).params == net.params + 512 + 2048 + 64 + 128


def test_resnet_1202_is_traced_in_one_piece_in_seconds():
    start = time.monotonic()
    variables = jax.eval_shape(cifar_resnet(1202).init, jax.random.key(0), jnp.zeros((1, *SMALL)))
    # 1 + 2·3·200 + 1 layers: conv1, the stages at 16, 32, 64 maps, γ and β, and fc
    stages = sum((400 - 1) * 9 * w * w + 9 * w * max(w // 2, 16) for w in (16, 32, 64))
    by_sum = 9 * 3 * 16 + stages + 2 * (16 + 400 * (16 + 32 + 64)) + 64 * 10 + 10
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == by_sum == 19_421_274
    assert time.monotonic() - start < 40


def arrays_of_v2(depth: int, *, keras: bool) -> list[tuple[int, ...]]:
    """The shape of every array of a pre-activation ResNet, from the paper's words alone; γ and β as (2, maps)."""
    shapes: list[tuple[int, ...]] = [(7, 7, 3, 64), (2, 64)]  # Keras has this BN in the first unit instead
    channels = 64
    for stage, count in enumerate({50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[depth]):
        w = 64 * 2**stage
        for unit in range(count):
            shapes += [(1, 1, channels, w), (2, w), (3, 3, w, w), (2, w), (1, 1, w, 4 * w)]
            shapes += [(2, channels)] if (stage, unit) != (0, 0) else []
            shapes += [(1, 1, channels, 4 * w)] if unit == 0 else []
            shapes += ([(4 * w,)] * (2 if unit == 0 else 1)) if keras else []
            channels = 4 * w
    return [*shapes, (2, 2048), (2048, 1000), (1000,), *([(64,)] if keras else [])]


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_pre_activation_networks_have_the_parameters_of_a_second_count(depth):
    ours = summarise(resnet_v2(depth), IMAGE).params
    keras = summarise(resnet_v2_keras(depth), IMAGE).params
    assert ours == sum(int(np.prod(shape)) for shape in arrays_of_v2(depth, keras=False))
    assert keras == sum(int(np.prod(shape)) for shape in arrays_of_v2(depth, keras=True))
    assert keras == {50: 25_568_360, 101: 44_577_896, 152: 60_236_904}[depth]  # trainable, as Keras 3 counts them


def test_pre_activation_resnet_50_by_hand():
    # weights as in ResNet-50; γ, β: 2·64 + 2·(stages: inputs of units but the first, and two of w a unit) + 2·2048
    inputs = 2 * 256 + 256 + 3 * 512 + 512 + 5 * 1024 + 1024 + 2 * 2048
    inner = 2 * (3 * 64 + 4 * 128 + 6 * 256 + 3 * 512)
    norms = 2 * (64 + inputs + inner + 2048)
    assert norms == 45_440
    summary = summarise(resnet_v2(), IMAGE)
    assert summary.params == 25_502_912 + 1_000 + norms == 25_549_352
    assert summary.macs == 3_857_973_248  # as the first ResNet-50, stride on the 1×1
    assert summarise(resnet_v2(stride_on="3x3"), IMAGE).macs == 4_089_184_256
    biases = 64 + (256 + 512 + 1024 + 2048) + (3 * 256 + 4 * 512 + 6 * 1024 + 3 * 2048)
    assert summarise(resnet_v2_keras(), IMAGE).params == 25_549_352 + biases


# --- shapes and names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [resnet, plain, resnet_v2])
def test_stages_are_those_of_table_1(make):
    net = make(50)
    assert net.names[:3] == ("conv1", "pool1", "conv2_1")
    assert [name for name in net.names if name.startswith("conv4")] == [f"conv4_{i}" for i in range(1, 7)]
    summary = summarise(net, IMAGE)
    assert [summary[name].output for name in ("conv1", "pool1", "conv2_3", "conv3_4", "conv4_6", "conv5_3")] == [
        (112, 112, 64), (56, 56, 64), (56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048)
    ]  # fmt: skip


def test_keras_halves_the_map_in_the_last_unit_of_a_stage():
    summary = summarise(resnet_v2_keras(), IMAGE)
    assert [summary[name].output[0] for name in ("conv2_2", "conv2_3", "conv3_3", "conv3_4", "conv4_6", "conv5_3")] == [
        56, 28, 28, 14, 7, 7
    ]  # fmt: skip


def test_the_stride_is_where_it_is_said_to_be():
    for place, sizes in {"1x1": (28, 28), "3x3": (56, 28)}.items():
        net = surgery.until(resnet(stride_on=place), "conv3_1")
        variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *IMAGE)))
        maps = jax.eval_shape(
            lambda v, x, net=net: chain.features(net, v, x, ("conv3_1/conv1", "conv3_1/conv2")),
            variables,
            jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32),
        )
        assert (maps["conv3_1/conv1"].shape[1], maps["conv3_1/conv2"].shape[1]) == sizes


def test_a_plain_net_is_the_option_a_net_without_its_shortcuts():
    net, bare = narrow(shallow(resnet(18, shortcut="A"))), narrow(shallow(plain(18)))
    images = by_hand.noise(2, *SMALL)
    variables = by_hand.scrambled(net, images)
    chex.assert_trees_all_equal(variables, by_hand.scrambled(bare, images))
    assert not np.allclose(applied(net, variables, images).logits, applied(bare, variables, images).logits)


# --- a second opinion in NumPy ----------------------------------------------------------------------------------------


def block_by_hand(variables: dict, x: np.ndarray, shortcut: np.ndarray, *, strides: tuple[int, ...]) -> np.ndarray:
    """Equation 1: convolutions, each normalised and all but the last rectified; the sum rectified."""
    p, s, y = variables["params"], variables["batch_stats"], x
    for i, stride in enumerate(strides, start=1):
        kernel = p[f"conv{i}"]["kernel"]
        y = by_hand.conv(y, kernel, stride=stride, pad=kernel.shape[0] // 2)
        y = by_hand.norm(y, p[f"conv{i}"]["norm"], s[f"conv{i}"]["norm"])
        y = by_hand.relu(y) if i < len(strides) else y
    return by_hand.relu(y + shortcut)


@pytest.mark.parametrize("size", [8, 7])
def test_option_a_pads_with_zeros_behind_every_other_pixel(size):
    block = narrow(cifar_resnet(), by=4)["conv3_1"]  # 4 to 8 maps
    x = by_hand.noise(2, size, size, 4)
    variables = by_hand.scrambled(block, x)
    half = (size + 1) // 2
    shortcut = np.zeros((2, half, half, 8))
    for i in range(half):
        for j in range(half):
            shortcut[:, i, j, :4] = x[:, 2 * i, 2 * j]
    expected = block_by_hand(variables, x, shortcut, strides=(2, 1))
    np.testing.assert_allclose(by_hand.evaluate(block, variables, x), expected, rtol=1e-4, atol=1e-5)
    assert not jax.tree.leaves(PadShortcut(8, 2).init(jax.random.key(0), x, False))


@pytest.mark.parametrize(("place", "strides"), [("1x1", (2, 1, 1)), ("3x3", (1, 2, 1))])
def test_a_projected_bottleneck_in_numpy(place, strides):
    block = narrow(resnet(stride_on=place), by=32)["conv3_1"]
    x = by_hand.noise(2, 6, 6, 8)
    variables = by_hand.scrambled(block, x)
    p, s = variables["params"]["shortcut"], variables["batch_stats"]["shortcut"]
    shortcut = by_hand.norm(by_hand.conv(x, p["kernel"], stride=2), p["norm"], s["norm"])
    expected = block_by_hand(variables, x, shortcut, strides=strides)
    np.testing.assert_allclose(by_hand.evaluate(block, variables, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["conv2_1", "conv2_2", "conv3_1"])
def test_a_pre_activation_unit_in_numpy(name):
    """The first splits what conv1 activated; where the width changes the activation is common; else the body has it."""
    unit = narrow(resnet_v2(), by=32)[name]
    x = by_hand.noise(2, 6, 6, 2 if name == "conv2_1" else 8)
    variables = by_hand.scrambled(unit, x)
    p, s = variables["params"], variables["batch_stats"]
    stride = 2 if name == "conv3_1" else 1
    y = x if name == "conv2_1" else by_hand.relu(by_hand.norm(x, p["norm"], s["norm"]))
    if name == "conv3_1":
        p, s = p["unit"], s["unit"]
    shortcut = x if name == "conv2_2" else by_hand.conv(y, p["shortcut"]["kernel"], stride=stride)
    y = by_hand.relu(
        by_hand.norm(by_hand.conv(y, p["conv1"]["kernel"], stride=stride), p["conv1"]["norm"], s["conv1"]["norm"])
    )
    y = by_hand.relu(by_hand.norm(by_hand.conv(y, p["conv2"]["kernel"], pad=1), p["conv2"]["norm"], s["conv2"]["norm"]))
    expected = shortcut + by_hand.conv(y, p["conv3"]["kernel"])
    np.testing.assert_allclose(by_hand.evaluate(unit, variables, x), expected, rtol=1e-4, atol=1e-5)


def test_keras_pads_its_pool_with_zeros_that_win():
    pool = surgery.without(surgery.until(resnet_v2_keras(), "pool1"), "conv1")
    maps = pool.apply({}, -jnp.ones((1, 8, 8, 1))).logits[0, :, :, 0]
    np.testing.assert_array_equal(maps, [[0, 0, 0, 0], [0, -1, -1, -1], [0, -1, -1, -1], [0, -1, -1, -1]])


# --- what is rectified, and what learns -------------------------------------------------------------------------------


def test_what_the_papers_rectify_is_rectified(member):
    net, variables, images = member
    sums = [name for name in net.names if name.endswith("_1")]
    preactivated = "relu5" in net.names
    block = net["conv3_1"]
    inner = [f"conv3_1/{block.body[-1].name}"] if isinstance(block, Residual) and not preactivated else []
    found = features(net, variables, images, (*sums, *inner, *(["relu5"] if preactivated else [])))
    for name, y in found.items():
        assert bool(y.min() < 0) == (name != "relu5" and (preactivated or "/" in name)), name
        assert y.max() > 0, name


def test_a_gradient_reaches_every_leaf(member, strict):
    net, _, images = member
    assert by_hand.leaves_without_gradient(net, images) == []


def test_a_rectified_shortcut_and_a_missing_relu_are_found_out():
    block = narrow(cifar_resnet(), by=4)["conv2_2"]
    assert isinstance(block, Residual)
    x = by_hand.noise(2, 6, 6, 4)
    variables = by_hand.scrambled(block, x)
    expected = block_by_hand(variables, x, x, strides=(1, 1))
    np.testing.assert_allclose(by_hand.evaluate(block, variables, x), expected, rtol=1e-4, atol=1e-5)
    rectified = surgery.map_modules(Chain(block.body), lambda row: row.clone(act="relu")).layers
    for wrong in (block.clone(act=None), block.clone(body=rectified), Block(block.body)):
        assert not np.allclose(by_hand.evaluate(wrong, variables, x), expected, atol=1e-2)


# --- surgery ----------------------------------------------------------------------------------------------------------


def test_an_identity_block_can_be_skipped_and_is_then_as_if_removed():
    for make in (partial(resnet, 18), partial(plain, 18), resnet_v2):
        net = narrow(shallow(make(), "conv4_2"))
        images = by_hand.noise(1, *SMALL)
        variables = by_hand.scrambled(net, images)
        lesioned = applied(net, variables, images, skip=frozenset({"conv4_2"})).logits
        removed = applied(surgery.without(net, "conv4_2"), variables, images).logits
        chex.assert_trees_all_close(lesioned, removed, rtol=1e-5)
        assert not np.allclose(lesioned, applied(net, variables, images).logits)


def test_a_block_that_changes_the_shape_cannot_be_skipped_or_removed():
    net = resnet()
    images = jnp.zeros((1, *IMAGE))
    variables = jax.eval_shape(net.init, jax.random.key(0), images)
    with pytest.raises(
        CnnjaxError, match=r"'conv4_1' cannot be skipped: it turns \(28, 28, 512\) into \(14, 14, 1024\)"
    ):
        jax.eval_shape(lambda v: net.apply(v, images, skip=frozenset({"conv4_1"})), variables)
    with pytest.raises(
        CnnjaxError, match=r"layer conv4_2: a shortcut of \(28, 28, 512\) .* a body of \(28, 28, 1024\)"
    ):
        jax.eval_shape(surgery.without(net, "conv4_1").init, jax.random.key(0), images)


def test_a_network_is_cut_gets_a_new_head_and_another_activation(member):
    net, variables, images = member
    cut = surgery.until(net, "conv3_1")
    chex.assert_trees_all_close(
        applied(cut, variables, images).logits, features(net, variables, images, ("conv3_1",))["conv3_1"]
    )
    other = surgery.with_head(net, 37)
    assert {name for name in net.names if other[name] != net[name]} == {"fc"}
    assert summarise(other, SMALL)["fc"].output == (37,)
    tanh = by_hand.modules(surgery.with_activation(net, "tanh"))
    assert {getattr(module, "act", None) for module in tanh} == {"tanh", None}


def test_frozen_blocks_keep_their_statistics(member):
    net, variables, images = member
    frozen = frozenset(net.names[: net.names.index("conv4_1")])
    _, updated = applied(net, variables, images, train=True, frozen=frozen, mutable=["batch_stats"])
    for name, before in variables["batch_stats"].items():
        kept = [
            np.array_equal(a, b)
            for a, b in zip(*map(jax.tree.leaves, (before, updated["batch_stats"][name])), strict=True)
        ]
        assert all(kept) if name in frozen else not any(kept), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(resnet, 35), "depth of a ResNet 35\nlegal: 18, 34, 50, 101, 152"),
        (partial(resnet, shortcut="D"), "shortcut 'D'\nlegal: A, B, C, None"),
        (partial(resnet, stride_on="5x5"), "place of the stride '5x5'\nlegal: 1x1, 3x3"),
        (partial(cifar_resnet, 18), r"6n \+ 2 layers \(8, 14, 20, 26, 32, …\), not 18"),
        (partial(resnet_v2, 18), "pre-activation ResNet 18\nlegal: 50, 101, 152, 200"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(make, message):
    with pytest.raises(CnnjaxError, match=message):
        make()
