"""Every network of the catalogue against the published facts: exact parameters by kind, multiply-adds, stage shapes."""

import jax
import jax.numpy as jnp
import pytest
from published import EXACT, NETWORKS, UNCOUNTED, layer_of

from cnnjax.analysis.summary import summarise
from cnnjax.models.catalog import CATALOG, SHORT, entry
from cnnjax.models.chain import Chain


def channels_first(shape: tuple[int, ...]) -> list[int]:
    return [shape[-1], *(shape[:-1] or (1, 1))]


def facts_of(name: str, net: Chain, image_shape: tuple[int, int, int]) -> dict[str, object]:
    """What we count, under the names that the facts use."""
    summary = summarise(net, image_shape)
    rows = {row.name: row for row in summary.rows}
    return {
        "params": summary.params,
        "weights": sum(row.weights for row in summary.rows),
        "biases": sum(row.biases for row in summary.rows),
        "bn": sum(row.norms for row in summary.rows),
        "macs": summary.macs + UNCOUNTED.get(name, 0),
        **{
            f"stage {stage}": channels_first(rows[layer_of(name, stage, net.names)].output)
            for stage in NETWORKS[name]["stages"]
        },
    }


def published(name: str) -> dict[str, object]:
    fact = EXACT[name]
    numbers = {key: fact[key] for key in ("params", "weights", "biases", "bn", "macs")}
    return {**numbers, **{f"stage {stage}": shape for stage, shape in fact["stages"].items()}}


@pytest.mark.parametrize("name", EXACT)
def test_network_has_the_published_numbers(name):
    made = entry(name)
    height, width, channels = made.input
    if EXACT[name]["input"][1:] == [1, 1]:  # a perceptron's pixels, which we keep as an image
        assert [height * width * channels, 1, 1] == EXACT[name]["input"]
    else:
        assert [channels, height, width] == EXACT[name]["input"]
    assert facts_of(name, made.make(), made.input) == published(name)


def test_the_facts_are_all_there():
    facts = sum(len(published(name)) for name in EXACT)
    print(f"\n{len(EXACT)} networks, {facts} facts asserted")
    assert (len(NETWORKS), len(EXACT)) == (133, 131)


def test_a_stage_without_a_layer_fails():
    with pytest.raises(AssertionError, match="no layer for the stage"):
        layer_of("vgg_D", "conv9", ("conv1_1", "fc6"))


def test_short_names_are_rows_of_the_catalogue():
    assert set(SHORT.values()) <= set(CATALOG)
    assert not set(SHORT) & set(CATALOG)


REPRESENTATIVES = (
    "lenet5_1998", "alexnet_2012", "smallervgg_5", "googlenet_v1_aux", "inception_v3_aux", "inception_resnet_v2",
    "resnet50_optB_v1", "cifar_resnet20_optA", "densenet_bc_L100_k12", "highway_fc_10_w50", "johnson_style",
)  # fmt: skip


@pytest.mark.parametrize("name", [name for name in REPRESENTATIVES if name in CATALOG])
def test_the_whole_network_has_the_parameters_of_its_rows(name):
    """The summary traces layer by layer; the network itself, traced in one piece, must agree."""
    made = entry(name)
    net = made.make()

    def init(key):
        return net.init({"params": key, "dropout": key}, jnp.zeros((1, *made.input)), train=False)

    variables = jax.eval_shape(init, jax.random.key(0))
    summary = summarise(net, made.input)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == summary.params
    for row in summary.rows:
        assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"].get(row.name, {}))) == row.params
