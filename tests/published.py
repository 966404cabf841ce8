"""The published facts, and how to read them against our networks.

`facts.json` holds 133 networks: parameters by kind, multiply-adds and stage shapes (channels, height, width), each with
its source and with what it was verified by (a framework-free count, torchvision, timm, Keras, Caffe prototxts, slim's
tests).
"""

import json
import re
from pathlib import Path

FACTS = json.loads((Path(__file__).parent / "facts.json").read_text())
NOT_NETWORKS = {"_meta", "paper", "test_vectors", "alexnet_ablation_params", "slides_numeric", "keras", "state_dict"}
# Their layouts could not be read again in the paper: nothing exact may be asserted of them.
RECALLED = {"johnson_sr_x4", "johnson_sr_x8"}
NETWORKS = {name: fact for name, fact in FACTS.items() if name not in NOT_NETWORKS}
EXACT = {name: fact for name, fact in NETWORKS.items() if name not in RECALLED}

# slim's conv1 has a bias and no normalisation, as its own test has it (10,173,112 = 10,153,336 weights + 64 biases +
# 3 · 9,888): the file's split counts those 64 biases as β.
for _name in ("inception_v2_slim", "inception_v2_slim_1001"):
    FACTS[_name]["biases"] += 64
    FACTS[_name]["bn"] -= 64

# What a source counts as multiply-adds and the program does not: LeNet-5's coefficients, one product an output of S2,
# S4.
UNCOUNTED = {"lenet5_1998": 6 * 14 * 14 + 16 * 5 * 5}

# The released code's names for what the paper calls Inception-ResNet-A and so on.
RELEASED = {"block35": "A", "block17": "B", "block8": "C", "Mixed_6a": "A", "Mixed_7a": "B"}

# (networks, stage, layer): the stage is the output of the last layer whose name matches. Where no line fits, a stage
# and its layer have the same name.
# fmt: off
STAGES = (
    (r"lenet5_(dense|cifar).*|lenet_gtsrb.*", r"([cs])(\d)", lambda m: m[1].upper() + m[2]),
    (r"lenet5_(dense|cifar).*|lenet_gtsrb.*", r"out",        lambda m: "output"),
    (r"slides_.*|smallervgg_.*",              r"c(\d)",      lambda m: f"conv{m[1]}"),
    (r"slides_.*|smallervgg_.*",              r"p(\d)",      lambda m: f"pool{m[1]}"),
    (r"nin_imagenet",                         r"pool0",      lambda m: "pool1"),
    (r"nin_.*",                               r"block(\d)",  lambda m: f"cccp{2 * int(m[1])}"),
    (r"vgg_.*",                               r"conv(\d)",   lambda m: rf"conv{m[1]}_\d"),
    (r"googlenet_.*|inception_(bn|v2).*",     r"(\d[a-e])",  lambda m: f"inception_{m[1]}"),
    (r"googlenet_.*",                         r"gap",        lambda m: "pool5"),
    (r"inception_(v4|resnet).*",              r"stem_149",   lambda m: "Conv2d_1a_3x3"),
    (r"inception_(v4|resnet).*",              r"stem_147",   lambda m: "Conv2d_2a_3x3"),
    (r"inception_v4.*",                       r"\dxInception-([ABC])", lambda m: rf"Inception-{m[1]}_\d+"),
    (r"inception_resnet_v._paper",            r"stem",       lambda m: "Conv2d_4b_3x3|Mixed_5a"),
    (r"inception_resnet_v._paper",            r"\d+x([ABC])", lambda m: rf"Inception-ResNet-{m[1]}_\d+"),
    (r"inception_resnet_v2.*",                r"MaxPool_(..)|Conv2d_(..)", lambda m: rf"{m[0]}_\dx\d"),
    (r"inception_resnet_v2.*",                r"block(35|17|8)", lambda m: rf"Inception-ResNet-{RELEASED[m[0]]}_\d+"),
    (r"inception_resnet_v2.*",                r"Mixed_[67]a", lambda m: f"Reduction-{RELEASED[m[0]]}"),
    (r"highway_mnist_.*",                     r"last",       lambda m: "pool9"),
    (r"(resnet\d|plain).*",                   r"conv(\d)_x", lambda m: rf"conv{m[1]}_\d+"),
    (r"cifar_.*",                             r"stage(\d)",  lambda m: rf"conv{int(m[1]) + 1}_\d+"),
    (r"densenet.*",                           r"dense(\d)",  lambda m: rf"dense{m[1]}_\d+"),
)
# fmt: on


def layer_of(network: str, stage: str, names: tuple[str, ...]) -> str:
    """The layer whose output is the published stage. An unmapped stage fails."""
    pattern = re.escape(stage)
    for networks, stages, layer in STAGES:
        match = re.fullmatch(stages, stage)
        if match and re.fullmatch(networks, network):
            pattern = layer(match)
            break
    found = [name for name in names if re.fullmatch(pattern, name)]
    assert found, f"{network}: no layer for the stage {stage!r} among {names}"
    return found[-1]
