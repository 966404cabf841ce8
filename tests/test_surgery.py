"""Surgery: functions from network to network."""

import chex
import jax
import jax.numpy as jnp
import pytest
from published import FACTS
from test_chain import tiny

from cnnjax.analysis.summary import summarise
from cnnjax.errors import CnnjaxError
from cnnjax.models import surgery
from cnnjax.models.alexnet import alexnet
from cnnjax.models.layers import AvgPool, GlobalAvgPool, MaxPool
from cnnjax.models.zfnet import zfnet

PAPER_LAYERS = {"3": "conv3", "4": "conv4", "6": "fc6", "7": "fc7"}
IMAGES = jnp.zeros((1, 67, 67, 3))


@pytest.mark.parametrize("removed", FACTS["alexnet_ablation_params"])
@pytest.mark.parametrize("groups, tower", [(2, "grouped"), (1, "ungrouped")])
def test_removed_layers_cost_what_was_computed(removed, groups, tower):
    whole = alexnet(groups=groups)
    net = surgery.without(whole, *(PAPER_LAYERS[number] for number in removed))
    left = summarise(net, (227, 227, 3)).params
    fact = FACTS["alexnet_ablation_params"][removed]
    assert left == fact[f"{tower}_left"]
    assert summarise(whole, (227, 227, 3)).params - left == fact[f"{tower}_removed"]


def test_removed_layers_keep_other_names_and_start_from_the_same_weights(key):
    whole = surgery.with_width(alexnet(10), 1 / 8)
    cut = surgery.without(whole, "fc6", "fc7")
    assert cut.names == tuple(name for name in whole.names if name not in ("fc6", "fc7"))
    before, after = whole.init(key, IMAGES)["params"], cut.init(key, IMAGES)["params"]
    survivors = [name for name in after if before[name]["kernel"].shape == after[name]["kernel"].shape]
    assert set(survivors) == {"conv1", "conv2", "conv3", "conv4", "conv5"}
    for name in survivors:
        chex.assert_trees_all_equal(before[name], after[name])


def test_a_head_goes_with_its_layer():
    assert surgery.without(tiny(), "res2").aux == ()
    assert surgery.until(tiny(), "conv1").aux == ()
    assert len(surgery.until(tiny(), "mixed3").aux) == 1


def test_until_ends_with_the_layer():
    assert surgery.until(alexnet(), "pool5").names[-1] == "pool5"


@pytest.mark.parametrize("net", [alexnet(), zfnet(), tiny()], ids=["alexnet", "zfnet", "tiny"])
def test_a_new_head_changes_the_last_layer_and_the_heads_only(net):
    other = surgery.with_head(net, 7)
    assert other.layers[:-1] == net.layers[:-1]
    assert other[other.names[-1]].features == 7
    assert all(head.module.layers[-1].module.features == 7 for head in other.aux)
    assert surgery.with_head(other, net[net.names[-1]].features) == surgery.with_head(net, net[net.names[-1]].features)


def test_a_head_before_a_pool_is_found():
    net = surgery.replace(surgery.without(alexnet(), "fc6", "fc7", "fc8"), pool5=GlobalAvgPool())
    assert surgery.with_head(net, 9)["conv5"].features == 9


def test_widths_by_name():
    net = surgery.with_features(zfnet(), conv3=512, conv4=1024, conv5=512)
    assert summarise(net, (224, 224, 3)).params == FACTS["zfnet_wide"]["params"]
    with pytest.raises(CnnjaxError, match="'pool1' is a MaxPool and has no width\nlayers with one: conv1, conv2"):
        surgery.with_features(zfnet(), pool1=3)


def test_width_scales_everything_but_the_head():
    net = surgery.with_width(alexnet(10), 1 / 4)
    assert [net[name].features for name in ("conv1", "conv2", "fc6", "fc8")] == [24, 64, 1024, 10]
    narrow = surgery.with_width(tiny(), 1 / 2)
    assert narrow.aux[0].module.layers[-1].module.features == narrow["fc6"].features == 5  # classes, not widths
    assert surgery.with_width(alexnet(), 1 / 96)["conv2"].features % 2 == 0  # two towers


def test_another_activation_everywhere_but_where_there_is_none():
    net = surgery.with_activation(tiny(), "tanh")
    assert net["conv1"].act == net["res2"].act == net["res2"].body[0].module.act == "tanh"
    assert net["fc6"].act is None and net["res2"].body[1].module.act is None
    assert net["mixed3"].branches[0][0].module.act == "tanh"
    assert surgery.with_activation(net, "relu") == tiny()
    assert surgery.with_init(net, "lecun")["mixed3"].branches[0][0].module.weight_init == "lecun"


def test_replacing_a_row():
    net = surgery.replace(alexnet(), pool5=AvgPool(3, stride=2))
    assert isinstance(net["pool5"], AvgPool) and isinstance(net["pool2"], MaxPool)


@pytest.mark.parametrize(
    "operate",
    [
        lambda net: surgery.without(net, "conv9"),
        lambda net: surgery.until(net, "conv9"),
        lambda net: surgery.replace(net, conv9=AvgPool(2, 2)),
        lambda net: surgery.with_features(net, conv9=3),
        lambda net: surgery.with_activation(net, "conv9"),
        lambda net: surgery.with_init(net, "conv9"),
    ],
)
def test_an_unknown_name_raises_and_names_the_legal_ones(operate):
    with pytest.raises(CnnjaxError, match=r"unknown \w+ 'conv9'\nlegal: \w+, "):
        operate(alexnet())


def test_nothing_left_is_no_network():
    with pytest.raises(CnnjaxError, match="no layer is left"):
        surgery.without(tiny(), *tiny().names)


def test_surgery_keeps_the_network_trainable(key):
    net = surgery.without(surgery.with_width(alexnet(10), 1 / 16), "conv3", "conv4", "fc6", "fc7")
    variables = net.init(key, IMAGES)
    assert net.apply(variables, jax.random.normal(key, (2, 67, 67, 3))).logits.shape == (2, 10)
