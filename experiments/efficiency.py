"""Accuracy against cost: every network's parameters, multiply-adds, memory, depth and reach beside its published error.

Claim: Accuracy is not bought by parameters: GoogLeNet and ResNet err less than VGG at a fraction of its weights and
    multiply-adds; depth, not width, came with every winner of ILSVRC.
Source: Canziani, Culurciello & Paszke 2016, "An analysis of deep neural network models for practical applications"
    (arXiv:1605.07678), Fig. 1 and 2; ILSVRC 2012-2015; Szegedy et al. 2014, Table 1. Costs are counted here, on the program.
Command: python -m experiments.efficiency
Cost: 4 minutes on 2 CPU cores; nothing is trained.
Expected: AlexNet 60,965,224 parameters and 0.72 billion multiply-adds; VGG-16 138,357,544 and 15.5; GoogLeNet 6,998,552
    and 1.58; ResNet-50 25,557,032 and 3.86.
Departures: Published errors were measured by different protocols (one crop, ten crops, whole images), which the table names;
    compare within one. Memory is what reverse mode keeps of one image, in float32, not what a framework allocates.
"""

import dataclasses
from pathlib import Path

from cnnjax import figures, options, report, runfolder
from cnnjax.analysis.accuracy import BY_DATA, GOOGLENET_TABLE, ILSVRC
from cnnjax.analysis.summary import Summary, activation_bytes, summarise
from cnnjax.errors import exit_with_error
from cnnjax.models.catalog import CATALOG, entry

# One bubble a network; the rest of the table would only hide them.
DRAWN = (
    "alexnet_2012", "zfnet", "vgg_A", "vgg_B", "vgg_C", "vgg_D", "vgg_E", "googlenet_torchvision", "inception_v2_slim",
    "inception_v3", "inception_v4", "inception_resnet_v2", "resnet18_optB_v1.5", "resnet34_optB_v1.5", "resnet50_optB_v1",
    "resnet101_optB_v1", "resnet152_optB_v1", "plain34", "densenet121", "densenet161", "densenet169", "densenet201",
)  # fmt: skip


def depth(name: str) -> int:
    ...
