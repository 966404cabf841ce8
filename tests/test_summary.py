"""The summary: what is read off the program, with controls that a wrong network would fail."""

import contextlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from published import FACTS
from test_chain import tiny

from cnnjax.analysis import program
from cnnjax.analysis.summary import activation_bytes, summarise
from cnnjax.errors import CnnjaxError
from cnnjax.models import ops, surgery
from cnnjax.models.alexnet import alexnet
from cnnjax.models.catalog import entry
from cnnjax.models.chain import chain, rows
from cnnjax.models.layers import Conv, ConvTranspose, Dense, LocalConv, MaxPool
from cnnjax.models.zfnet import zfnet

# Receptive fields that can be had by hand: r += (window - 1) · jump, jump *= stride.
ALEXNET_FIELDS = {
    "conv1": 11,
    "pool1": 19,
    "conv2": 51,
    "pool2": 67,
    "conv3": 99,
    "conv4": 131,
    "conv5": 163,
    "pool5": 195,
}


def test_receptive_fields_of_alexnet():
    summary = summarise(alexnet(), (227, 227, 3))
    assert {name: summary[name].field for name in ALEXNET_FIELDS} == {n: (r, r) for n, r in ALEXNET_FIELDS.items()}
    assert summary["fc6"].field is None


def test_three_3x3_see_what_one_7x7_sees():
    stack = chain(a=Conv(8, 3), b=Conv(8, 3), c=Conv(8, 3))
    assert summarise(stack, (32, 32, 8))["c"].field == summarise(chain(a=Conv(8, 7)), (32, 32, 8))["a"].field == (7, 7)


def test_branches_reach_as_far_as_the_widest_and_shortcuts_count():
    assert summarise(tiny(), (8, 8, 2))["mixed3"].field == (4 + 2 * 2 + 2 * 2 + 2 * 2, 16)


def test_receptive_field_agrees_with_where_a_gradient_arrives():
    """The pixels that move one output in the middle, found by differentiating."""
    net = chain(
        c=Conv(2, 3, stride=2, pad=1, act=None), l=LocalConv(2, (2, 3), act=None), p=Conv(1, 2, dilation=2, act=None)
    )
    x = jnp.ones((1, 33, 33, 1))
    variables = net.init(jax.random.key(0), x)
    variables = jax.tree.map(jnp.abs, variables)
    y = net.apply(variables, x).logits
    middle = jax.grad(lambda x: net.apply(variables, x).logits[0, y.shape[1] // 2, y.shape[2] // 2, 0])(x)
    seen = jnp.nonzero(middle[0, :, :, 0])
    spans = tuple(int(axis.max() - axis.min()) + 1 for axis in seen)
    field = summarise(net, (33, 33, 1))["p"].field
    assert field == spans


@pytest.mark.parametrize("module, macs", [
    (Conv(6, 3, pad=1, groups=2), 10 * 12 * 9 * 2 * 6),
    (ConvTranspose(6, 3, stride=2, pad=1, extra=1), 10 * 12 * 9 * 4 * 6),  # × input positions
    (LocalConv(6, 3, pad=1), 10 * 12 * 9 * 4 * 6),
    (Dense(6), 10 * 12 * 4 * 6),
    (MaxPool(2, stride=2), 0),
])  # fmt: skip
def test_multiply_adds_by_hand(module, macs):
    assert summarise(chain(layer=module), (10, 12, 4)).macs == macs


def test_the_fast_forms_are_not_what_is_counted():
    """A strided 1×1 runs as a matrix product on the CPU and LRN as shifted sums: the count must not depend on it."""
    net = chain(a=Conv(8, 1, stride=2), b=Conv(8, 3, pad=1, groups=2))
    with ops.reference_forms(False):
        assert summarise(net, (9, 9, 4)).macs == 25 * 4 * 8 + 25 * 9 * 4 * 8


@pytest.mark.parametrize("wrong, right, fact", [
    (alexnet(groups=1), alexnet(), ("alexnet_2012", "params")),
    (surgery.replace(alexnet(), conv1=Conv(96, 11, stride=4, pad=2)), alexnet(), ("alexnet_2012", "macs")),
    (surgery.replace(zfnet(), pool1=MaxPool(3, stride=2)), zfnet(), ("zfnet", "macs")),
])  # fmt: skip
def test_a_wrong_network_does_not_have_the_published_number(wrong, right, fact):
    name, field = fact
    shape = tuple(FACTS[name]["input"][i] for i in (1, 2, 0))
    assert getattr(summarise(right, shape), field) == FACTS[name][field]
    with contextlib.suppress(CnnjaxError):  # it may not even fit
        assert getattr(summarise(wrong, shape), field) != FACTS[name][field]


@pytest.mark.parametrize(
    "name, depth",
    [("lenet5", 5), ("lenet5_1998", 4), ("alexnet", 8), ("vgg16", 16), ("vgg19", 19), ("googlenet", 22), ("nin", 9),
     ("resnet18", 18), ("resnet34", 34), ("resnet50", 50), ("resnet101", 101), ("resnet152", 152), ("plain34", 34),
     ("cifar_resnet20", 20), ("cifar_resnet110", 110), ("densenet121", 121), ("densenet_bc_L100_k12", 100),
     ("highway_fc_10_w50", 11)],
)  # fmt: skip
def test_the_longest_path_has_as_many_layers_as_the_name_says(name, depth):
    """Highway counts its first plain layer and not the softmax; the output of 1998 has nothing that learns."""
    made = entry(name)
    assert summarise(made.make(), made.input).depth == depth


def test_an_image_that_is_too_small_names_the_layer():
    with pytest.raises(CnnjaxError, match="layer pool2: a 3×3 window"):
        summarise(alexnet(), (32, 32, 3))


def test_activation_memory_is_what_reverse_mode_saves():
    """A linear layer must keep its input; a rectified one its input and a mask or its output."""
    linear = activation_bytes(chain(fc=Dense(7, act=None, bias=False)), (1, 1, 100))
    assert linear == 400
    assert activation_bytes(surgery.with_width(alexnet(), 1 / 8), (227, 227, 3)) > 4 * 55 * 55 * 12


def test_constants_have_no_reach():
    jaxpr = jax.make_jaxpr(lambda x: x + jnp.ones((1, 4, 4, 1)))(jnp.ones((1, 4, 4, 1)))
    assert program.cost(jaxpr, 0).reach == program.PIXEL


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "cnnjax.analysis.summary", *arguments], capture_output=True, text=True)


def test_the_command_prints_the_table():
    done = run("lenet5_1998")
    assert done.returncode == 0 and "60,000" in done.stdout and "C3" in done.stdout


@pytest.mark.parametrize("arguments, message", [(("alexnett",), "unknown network 'alexnett'"),
                                                (("alexnet", "--input", "32", "32", "3"), "layer pool2")])  # fmt: skip
def test_the_command_refuses_in_a_few_lines(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.splitlines()) <= 5 and "Traceback" not in done.stderr


def test_rows_can_be_named_by_a_mapping():
    assert [layer.name for layer in rows({"1x1": Dense(1)}, b=Dense(2))] == ["1x1", "b"]
