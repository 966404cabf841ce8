"""What every family promises, on narrow members with one block a stage: one call, one compilation, one step."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnnjax.models import surgery
from cnnjax.models.alexnet import alexnet
from cnnjax.models.all_cnn import all_cnn
from cnnjax.models.chain import Chain, Output
from cnnjax.models.densenet import densenet, densenet_cifar
from cnnjax.models.googlenet import googlenet
from cnnjax.models.highway import highway_conv, highway_fc
from cnnjax.models.inception_bn import inception_bn
from cnnjax.models.inception_v3 import inception_v3
from cnnjax.models.inception_v4 import inception_resnet, inception_v4
from cnnjax.models.layers import Norm
from cnnjax.models.lenet import lenet5, lenet5_1998
from cnnjax.models.local import lecun1989
from cnnjax.models.nin import nin
from cnnjax.models.resnet import cifar_resnet, plain, resnet
from cnnjax.models.resnet_v2 import resnet_v2
from cnnjax.models.vgg import vgg
from cnnjax.models.zfnet import zfnet
from cnnjax.train.losses import cross_entropy
from cnnjax.train.state import create, variables
from cnnjax.train.step import train_step

CLASSES, BATCH = 10, 4


def shallow(net: Chain) -> Chain:
    """One block of each stage, "conv3_2" … and "dense1_2" … being repetitions of the first."""
    again = [name for name in net.names if "_" in name and name.rsplit("_", 1)[1].isdigit() and not name.endswith("_1")]
    return surgery.without(net, *again)


def member(net: Chain, factor: float = 1 / 8) -> Chain:
    return surgery.with_width(surgery.with_head(net, CLASSES), factor)


REPEATED = ("inception_3b", "inception_4b", "inception_4c", "inception_4e", "inception_5b")
REPEATED_BN = ("inception_3b", "inception_4b", "inception_4c", "inception_4d", "inception_5b")
REPEATED_V3 = ("Mixed_5c", "Mixed_5d", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7c")
MEMBERS = {  # network, image size, channels
    "lenet 1998": (lenet5_1998(), 32, 1),
    "lenet": (lenet5(), 32, 1),
    "lecun 1989": (lecun1989("Net-5"), 16, 1),
    "alexnet": (member(alexnet()), 67, 3),
    "zfnet": (member(zfnet()), 95, 3),
    "nin": (member(nin()), 32, 3),
    "all-cnn": (member(all_cnn()), 32, 3),
    "vgg": (member(shallow(vgg("D"))), 32, 3),
    "vgg with normalisation": (member(shallow(vgg("D", norm=Norm()))), 32, 3),
    "googlenet": (member(surgery.without(googlenet(), *REPEATED), 1 / 4), 96, 3),
    "inception-bn": (member(surgery.without(inception_bn(), *REPEATED_BN)), 64, 3),
    "inception-v3": (member(surgery.without(inception_v3(aux=False), *REPEATED_V3)), 75, 3),
    "inception-v4": (member(shallow(inception_v4())), 75, 3),
    "inception-resnet": (member(shallow(inception_resnet("v2"))), 75, 3),
    "resnet": (member(shallow(resnet(18))), 32, 3),
    "resnet, bottleneck": (member(shallow(resnet(50))), 32, 3),
    "resnet v2": (member(shallow(resnet_v2(50))), 32, 3),
    "plain": (member(shallow(plain(18))), 32, 3),
    "cifar resnet": (member(shallow(cifar_resnet(20)), 1 / 2), 32, 3),
    "highway": (highway_fc(10, width=20), 8, 1),
    "highway, convolutional": (highway_conv(4), 28, 1),
    "densenet": (member(shallow(densenet(121))), 32, 3),
    "densenet, cifar": (densenet_cifar(10, 4, bottleneck=True, compression=0.5), 16, 3),
}  # fmt: skip


SLOW = {"googlenet", "inception-bn", "inception-v3", "inception-v4", "inception-resnet"}  # to compile


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name in SLOW else []) for name in MEMBERS]
)
def test_a_member_of_the_family_trains(name):
    net, size, channels = MEMBERS[name]
    tx, loss = optax.sgd(0.1), cross_entropy(aux_weight=0.3)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.normal(size=(BATCH, size, size, channels)), jnp.float32),
        "label": jnp.arange(BATCH, dtype=jnp.int32),
    }
    before = create(net, tx, jax.random.key(0), (size, size, channels), frozen=frozenset())

    chex.clear_trace_counter()
    step = functools.partial(chex.assert_max_traces(train_step, n=1), net, tx, loss)
    step = jax.jit(step, compiler_options={"xla_backend_optimization_level": 0})
    after, metrics = step(jax.random.key(1), before, batch)
    step(jax.random.key(2), after, batch)  # another key and another state: the same program
    chex.assert_tree_all_finite((after, metrics))
    unmoved = [
        jax.tree_util.keystr(path)
        for path, moved in jax.tree_util.tree_leaves_with_path(
            jax.tree.map(lambda old, new: bool((old != new).any()), before.params, after.params)
        )
        if not moved
    ]
    assert not unmoved, f"no gradient reached {unmoved}"
    if before.stats:
        moved = jax.tree.map(lambda old, new: bool((old != new).any()), before.stats, after.stats)
        assert all(jax.tree.leaves(moved))

    infer = jax.jit(functools.partial(net.apply), compiler_options={"xla_backend_optimization_level": 0})
    output = infer(variables(after), batch["image"])
    assert isinstance(output, Output) and output.aux == {}
    chex.assert_shape(output.logits, (BATCH, CLASSES))
    chex.assert_type(output.logits, jnp.float32)
    chex.assert_trees_all_equal(output, infer(variables(after), batch["image"]))  # nothing random at inference


@pytest.mark.parametrize("name", MEMBERS)
def test_names_are_unique_and_rebuilding_gives_the_same_network(name):
    net, _, _ = MEMBERS[name]
    assert len(set(net.names)) == len(net.names)
    assert surgery.with_activation(surgery.with_activation(net, "tanh"), "tanh") == surgery.with_activation(net, "tanh")
    assert hash(surgery.until(net, net.names[-1])) == hash(net)
