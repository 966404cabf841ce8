"""The lectures' experiments on architecture: the columns of their tables, what they train, their figures."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from cnnjax import figures, page
from cnnjax.analysis.summary import summarise
from cnnjax.data.splits import Dataset, Split
from cnnjax.models.chain import Chain
from experiments import (
    activations,
    bottleneck,
    filters,
    googlenet_aux,
    inception_ladder,
    optimizers,
    resnet_depth,
    resnet_shortcuts,
    vgg_depth,
    zfnet_table3,
)

FACTS = json.loads((Path(__file__).parent / "facts.json").read_text())
PAPER = FACTS["paper"]
MODULES = {
    module.EXPERIMENT.name: module
    for module in (
        activations, bottleneck, filters, googlenet_aux, inception_ladder, optimizers, resnet_depth, resnet_shortcuts,
        vgg_depth, zfnet_table3,
    )
}  # fmt: skip


def made_up(config, *, classes: int = 10) -> Dataset:
    """A few images as the settings ask for them."""
    side, draw = config.size or (32 if "cifar" in config.data else 28), np.random.default_rng(0)
    shape = (2, side, side, config.channels or (3 if "cifar" in config.data else 1))
    split = Split(draw.integers(0, 256, shape, np.uint8), np.arange(2, dtype=np.int32))
    return Dataset("made up", split, split, tuple(map(str, range(classes))))


def rows(module, scale: str = "smoke", **changed):
    config = dataclasses.replace(module.EXPERIMENT.scales[scale], **changed)
    return module.variants(config, made_up(config))


@pytest.mark.parametrize("name", MODULES)
def test_a_report_has_a_title_and_every_section(name):
    about = page.about(MODULES[name].__doc__)
    assert about["title"].endswith(".")
    assert set(about) == {"title", "claim", "source", "command", "cost", "expected", "departures"}


# --- what is trained


@pytest.mark.parametrize("scale", ["smoke", "lab", pytest.param("paper", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", MODULES)
def test_every_row_fits_the_images_of_its_scale(name, scale):
    experiment = MODULES[name].EXPERIMENT
    config = experiment.scales[scale]
    data = made_up(config, classes=1000 if "imagenet" in config.data else 10)
    variants = experiment.variants(config, data)
    assert list(variants) == list(experiment.published)
    for variant in variants.values():
        variant.check(data)


def test_the_small_networks_differ_as_their_rows_say():
    kernels = {"7x7": [7], "three-3x3": [3, 3, 3], "three-3x3-linear": [3, 3, 3], "5x5": [5], "two-3x3": [3, 3]}
    for name, variant in rows(filters).items():
        found = [row.module for row in variant.net["stack2"].layers]
        assert [conv.kernel for conv in found] == kernels[name] and found[-1].act == "relu"
        assert all((conv.act is None) == name.endswith("linear") for conv in found[:-1])
    for name, variant in rows(activations).items():
        acts = [getattr(layer.module, "act", None) for layer in variant.net.layers]
        assert {act for act in acts if act} == {name} and acts[-1] is None
    wide = {"bottleneck": 3, "reduced": 2, "wide-3x3": 1, "basic": 2}
    assert {name: len(row.net["conv2_1"].body) for name, row in rows(bottleneck).items()} == wide
    heads = {name: [head.at for head in row.net.aux] for name, row in rows(googlenet_aux, "lab").items()}
    assert heads == {"heads": ["inception_4a", "inception_4d"], "no-heads": []}


def test_the_share_of_the_depth_is_one_of_whole_blocks():
    paper, lab, smoke = (resnet_depth.SCALES[scale] for scale in ("paper", "lab", "smoke"))
    assert [paper.layers(n) for n in (20, 56, 110)] == [20, 56, 110]
    assert [lab.layers(n) for n in (20, 56, 110)] == [14, 26, 56]
    assert {smoke.layers(n) for n in (20, 56, 110)} == {8}


def test_labels_are_smoothed_from_v3_on_and_only_v3_has_a_head():
    for name, row in rows(inception_ladder, "lab").items():
        smoothed = dict(row.recipe.loss.options)["label_smoothing"]
        assert (smoothed == 0.1) == (name in ("v3", "v4", "inception-resnet"))
        assert bool(row.net.aux) == (name == "v3")


def test_every_optimiser_starts_from_its_usual_rate():
    found = {name: row.columns["rate"] for name, row in rows(optimizers).items()}
    assert found["adam"] == found["nadam"] == 1e-3 and found["sgd"] == found["momentum"] == 1e-2
    assert found["adadelta"] == 1.0
    for name, row in rows(optimizers).items():
        assert float(row.recipe.schedule(10)(0)) == pytest.approx(found[name])


# --- the columns


def costs(module) -> dict[str, tuple[int, int]]:
    return {name: (row.columns["parameters"], row.columns["MACs"]) for name, row in rows(module).items()}


def fact(key: str) -> tuple[int, int]:
    return FACTS[key]["params"], FACTS[key]["macs"]


def test_vggs_parameters_are_those_of_table_2():
    found = costs(vgg_depth)
    for name in ("A", "B", "C", "D", "E"):
        assert found[name] == fact(f"vgg_{name}")
    assert found["A-LRN"] == fact("vgg_A")
    printed = {name: round(params / 1e6) for name, (params, _) in found.items() if name != "B-5x5"}
    assert printed == PAPER["vgg_params_M"]
    assert [row.columns["layers"] for row in rows(vgg_depth).values()] == [11, 11, 13, 8, 16, 16, 19]
    five = sum(25 * a * b + b for a, b in zip((3, 64, 128, 256, 512), (64, 128, 256, 512, 512), strict=True))
    three = sum(row.params for row in summarise(vgg_depth.column("B"), (224, 224, 3)).rows if "conv" in row.name)
    assert found["B-5x5"][0] - found["B"][0] == five - three


def test_vggs_published_errors_are_those_at_one_scale():
    table = PAPER["vgg_table3"]
    for name, error in vgg_depth.PUBLISHED.items():
        assert error == (table["B@256"][0] + 7 if name == "B-5x5" else table[f"{name}@256"][0])


def test_three_small_kernels_see_what_one_large_one_sees_with_27_weights_for_49():
    found = {name: row.columns for name, row in rows(filters).items()}
    assert [columns["weights / C²"] for columns in found.values()] == [49, 27, 27, 25, 18]
    assert [columns["receptive field"] for columns in found.values()] == ["7×7", "7×7", "7×7", "5×5", "5×5"]
    for columns in found.values():
        assert columns["weights"] == columns["weights / C²"] * 256**2
        assert columns["MACs"] == columns["weights"] * 56 * 56


def test_the_reductions_weights_and_values_are_the_slides():
    found, slide = {name: row.columns for name, row in rows(bottleneck).items()}, FACTS["slides_numeric"]
    assert found["bottleneck"]["weights"] == slide["bottleneck"]["total"] == 69_632
    assert found["wide-3x3"]["weights"] == slide["bottleneck"]["naive_256"] == 589_824
    assert found["basic"]["weights"] == 2 * 9 * 64**2
    assert found["reduced"]["values"] == 200_704 and found["wide-3x3"]["values"] == 802_816
    first = summarise(Chain(bottleneck.network("reduced")["conv2_2"].body[:1]), (56, 56, 256))
    expected = slide["googlenet_1x1_56x56x256_to_64"]
    assert (sum(row.weights for row in first.rows), first.macs) == (expected["weights"], expected["macs"])


def test_residual_columns_are_those_of_the_published_networks():
    depth, shortcuts = costs(resnet_depth), costs(resnet_shortcuts)
    for layers in (20, 56):
        assert depth[f"resnet-{layers}"] == fact(f"cifar_resnet{layers}_optA")
        assert depth[f"plain-{layers}"] == fact(f"cifar_plain{layers}")
    assert depth["resnet-110"] == fact("cifar_resnet110_optA") == depth["plain-110"]
    assert shortcuts["plain"] == fact("plain34")
    assert [shortcuts[x] for x in "ABC"] == [fact(f"resnet34_opt{x}_v1.5") for x in "ABC"]


def test_residual_published_errors_are_those_of_the_paper():
    cifar, imagenet = PAPER["resnet_cifar10"], PAPER["resnet_table3_10crop"]
    assert (
        resnet_depth.PUBLISHED["resnet-20"] == cifar["20"][1] and resnet_depth.PUBLISHED["resnet-56"] == cifar["56"][1]
    )
    assert str(resnet_depth.PUBLISHED["resnet-110"]) == cifar["110"][1].split()[0]
    assert resnet_shortcuts.EXPERIMENT.published["plain"] == imagenet["plain-34"][0]
    assert [resnet_shortcuts.EXPERIMENT.published[x] for x in "ABC"] == [imagenet[f"ResNet-34 {x}"][0] for x in "ABC"]
    assert bottleneck.PUBLISHED["basic"] == imagenet["ResNet-34 B"][0]
    assert bottleneck.PUBLISHED["bottleneck"] == imagenet["ResNet-50"][0]


def test_zeiler_and_fergus_rows_are_those_of_their_table():
    keys = {
        "alexnet": ("replication", "alexnet_2012"), "alexnet-no-3,4": ("removed_3_4", "alexnet_minus_34"),
        "alexnet-no-7": ("removed_7", "alexnet_minus_7"), "alexnet-no-6,7": ("removed_6_7", "alexnet_minus_67"),
        "alexnet-no-3,4,6,7": ("removed_3_4_6_7", "alexnet_minus_3467"), "alexnet-fc2048": ("fc_2048", None),
        "alexnet-fc8192": ("fc_8192", None), "zfnet": ("ours", "zfnet"),
        "zfnet-fc2048": ("ours_fc_2048", "zfnet_fc2048"), "zfnet-fc8192": ("ours_fc_8192", "zfnet_fc8192"),
        "zfnet-wide": ("ours_conv345_512_1024_512", "zfnet_wide"),
        "zfnet-both": ("ours_both", None),
    }  # fmt: skip
    found = costs(zfnet_table3)
    assert list(found) == list(keys)
    for name, (printed, key) in keys.items():
        assert zfnet_table3.EXPERIMENT.published[name] == PAPER["zeiler_fergus_table3"][printed][2]
        if key is not None:
            assert found[name] == fact(key)


def test_inceptions_columns_and_errors_are_those_of_the_published_networks():
    keys = {
        "v1": "googlenet_v1", "v2": "inception_bn", "v3": "inception_v3", "v4": "inception_v4",
        "inception-resnet": "inception_resnet_v2_paper",
    }  # fmt: skip
    found = costs(inception_ladder)
    assert {name: found[name] for name in keys} == {name: fact(key) for name, key in keys.items()}
    assert found["naive"][0] > 10 * found["v1"][0] and found["bn"][1] == found["v1"][1]
    assert inception_ladder.PUBLISHED["v3"] == PAPER["inception_v3_table (recalled)"]["+BN-aux (=v3)"][0]


def test_the_heads_parameters_are_counted():
    found = costs(googlenet_aux)
    assert found == {"heads": fact("googlenet_v1_aux"), "no-heads": fact("googlenet_v1")}


# --- figures


def history(*errors: float) -> list[dict]:
    """Rows as a run of so many epochs writes them."""
    return [
        {"step": i, "epoch": float(i), kind: {"error": value, "loss": value / 10, "grad_norm/inception_3a": 1.0}}
        for i, value in enumerate(errors, start=1)
        for kind in ("train", "test")
    ]


def test_means_are_taken_over_the_seeds():
    assert figures.means([history(4.0, 2.0), history(2.0, 0.0)], "test", "error") == ([1.0, 2.0], [3.0, 1.0])
    assert figures.means([history(4.0)], "test", "nothing") == ([], [])


def test_learning_curves_name_their_panels_and_lines_and_are_left_out_where_nothing_was_trained():
    drawn = figures.learning({"plain": {"8 layers": [history(4.0, 2.0)], "20 layers": [history(5.0, 3.0)]}})
    assert all(
        f"<!-- {text} -->" in drawn for text in ("plain", "8 layers", "20 layers", "training", "test", "error, %")
    )
    assert figures.learning({"plain": {"8 layers": [[]]}}) == ""


def test_the_activation_plot_shows_every_function():
    drawn = activations.functions()
    assert all(f"<!-- {name} -->" in drawn for name in activations.FUNCTIONS)


def test_the_sweeps_show_every_method_that_was_run():
    seeds = {str(k): {"rates": [[0.1, 5.0], [1.0, 3.0 + k]], "batches": [[8, 2.0], [64, 3.0]]} for k in range(2)}
    results = {"metric": "error", "rows": [{"variant": name, "seeds": seeds} for name in ("sgd", "momentum")]}
    drawn = optimizers.sweep(results)
    assert "<!-- sgd -->" in drawn and "<!-- adam -->" not in drawn


def test_the_gradients_of_both_networks_are_drawn():
    drawn = googlenet_aux.gradient({"heads": [history(1.0, 1.0)], "no-heads": [history(1.0, 1.0)]})
    assert "<!-- heads -->" in drawn and "<!-- no-heads -->" in drawn
