"""Every network by name: what the command line and the tests read. Experiments import the constructors themselves.

Names are those of the published facts ("resnet50_optB_v1"), plus short ones for the paper's version ("resnet50").
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from cnnjax.errors import unknown
from cnnjax.models import (
    alexnet,
    all_cnn,
    autoencoder,
    densenet,
    googlenet,
    highway,
    inception_bn,
    inception_v3,
    inception_v4,
    lectures,
    lenet,
    local,
    nin,
    resnet,
    resnet_v2,
    surgery,
    transform_net,
    vgg,
    zfnet,
)
from cnnjax.models.chain import Chain
from cnnjax.models.layers import Norm


class Entry(NamedTuple):
    """A network and the images it was made for, (height, width, channels)."""

    make: Callable[[], Chain]
    input: tuple[int, int, int]


def _alexnet_without(groups: int, *layers: str) -> Chain:
    names = {"3": "conv3", "4": "conv4", "6": "fc6", "7": "fc7"}
    return surgery.without(alexnet.alexnet(groups=groups), *(names[layer] for layer in layers))


CATALOG: dict[str, Entry] = {
    # --- perceptrons, LeNet, the lectures' small networks ---
    "lenet5_1998": Entry(lenet.lenet5_1998, (32, 32, 1)),
    "lenet5_dense": Entry(lenet.lenet5, (32, 32, 1)),
    "lenet5_dense_28pad2": Entry(partial(lenet.lenet5, pad=2), (28, 28, 1)),
    "lenet5_cifar_rgb": Entry(lenet.lenet5, (32, 32, 3)),
    "lenet_gtsrb": Entry(partial(lenet.lenet5, 43, act="relu"), (32, 32, 1)),
    "lenet_gtsrb_rgb": Entry(partial(lenet.lenet5, 43, act="relu"), (32, 32, 3)),
    "lenet_caffe": Entry(lenet.lenet_caffe, (28, 28, 1)),
    "lenet_slim": Entry(lenet.lenet_slim, (28, 28, 1)),
    "slides_mlp_784_500_500_10": Entry(partial(lectures.mlp, 500, 500), (28, 28, 1)),
    "slides_tf_convnet": Entry(lectures.tf_convnet, (28, 28, 1)),
    "slides_keras_cifar": Entry(lectures.keras_cifar, (32, 32, 3)),
    "slides_kaggle_lenet": Entry(lectures.kaggle_lenet, (28, 28, 1)),
    "slides_ng_39": Entry(lectures.ng_39, (39, 39, 3)),
    "slides_diagram_same_256": Entry(partial(lectures.same_padding_diagram, 256), (256, 256, 3)),
    "slides_diagram_same_32": Entry(partial(lectures.same_padding_diagram, 32), (256, 256, 3)),
    "smallervgg_5": Entry(lectures.smaller_vgg, (96, 96, 3)),
    "smallervgg_10": Entry(partial(lectures.smaller_vgg, 10), (96, 96, 3)),
    "vgg16_transfer_head": Entry(lectures.vgg16_transfer_head, (7, 7, 512)),
    # --- AlexNet, ZFNet ---
    "alexnet_2012": Entry(alexnet.alexnet, (227, 227, 3)),
    "alexnet_ungrouped": Entry(partial(alexnet.alexnet, groups=1), (227, 227, 3)),
    "alexnet_224_pad2": Entry(partial(alexnet.alexnet, pad=2), (224, 224, 3)),
    "alexnet_torchvision": Entry(alexnet.alexnet_torchvision, (224, 224, 3)),
    "alexnet_slim_v2": Entry(alexnet.alexnet_slim, (224, 224, 3)),
    **{
        f"alexnet_{tower}minus_{''.join(removed)}": Entry(partial(_alexnet_without, groups, *removed), (227, 227, 3))
        for tower, groups in {"": 2, "ungrouped_": 1}.items()
        for removed in ("34", "7", "67", "3467")
    },
    "zfnet": Entry(zfnet.zfnet, (224, 224, 3)),
    **{row: Entry(partial(zfnet.zfnet_adjusted, row), (224, 224, 3)) for row in zfnet.ADJUSTED},
    # --- NiN, All-CNN, locally connected ---
    "nin_cifar10": Entry(nin.nin, (32, 32, 3)),
    "nin_cifar100": Entry(partial(nin.nin, "cifar100"), (32, 32, 3)),
    "nin_imagenet": Entry(partial(nin.nin, "imagenet"), (224, 224, 3)),
    **{
        f"{variant.lower().replace('-', '_')}_{base}": Entry(partial(all_cnn.all_cnn, base, variant), (32, 32, 3))
        for base in all_cnn.BASE
        for variant in all_cnn.VARIANTS
    },
    **{f"lecun1989_{net}": Entry(partial(local.lecun1989, net), (16, 16, 1)) for net in local.HIDDEN},
    "lecun1989_Net-5_unshared": Entry(lambda: local.unshared(local.lecun1989("Net-5")), (16, 16, 1)),
    # --- VGG ---
    **{f"vgg_{column}": Entry(partial(vgg.vgg, column), (224, 224, 3)) for column in vgg.CONFIGURATIONS},
    **{
        f"vgg_{column}_bn": Entry(partial(vgg.vgg, column, norm=Norm()), (224, 224, 3)) for column in vgg.CONFIGURATIONS
    },
    # --- GoogLeNet ---
    "googlenet_v1": Entry(partial(googlenet.googlenet, aux=False), (224, 224, 3)),
    "googlenet_v1_aux": Entry(googlenet.googlenet, (224, 224, 3)),
    "googlenet_v1_weights_only": Entry(partial(googlenet.googlenet, "weights_only", aux=False), (224, 224, 3)),
    "googlenet_torchvision": Entry(partial(googlenet.googlenet, "torchvision", aux=False), (224, 224, 3)),
    "googlenet_torchvision_aux": Entry(partial(googlenet.googlenet, "torchvision"), (224, 224, 3)),
    # --- Inception-BN, v2, v3 ---
    "inception_bn": Entry(inception_bn.inception_bn, (224, 224, 3)),
    "inception_bn_table_literal": Entry(partial(inception_bn.inception_bn, table_literal=True), (224, 224, 3)),
    "inception_bn_convbias": Entry(partial(inception_bn.inception_bn, conv_bias=True), (224, 224, 3)),
    "inception_v2_slim": Entry(inception_bn.inception_v2, (224, 224, 3)),
    "inception_v2_slim_1001": Entry(partial(inception_bn.inception_v2, 1001), (224, 224, 3)),
    "inception_v3": Entry(partial(inception_v3.inception_v3, aux=False), (299, 299, 3)),
    "inception_v3_aux": Entry(inception_v3.inception_v3, (299, 299, 3)),
    "inception_v3_noscale": Entry(partial(inception_v3.inception_v3, aux=False, scale=False), (299, 299, 3)),
    # --- Inception-v4, Inception-ResNet ---
    "inception_v4": Entry(inception_v4.inception_v4, (299, 299, 3)),
    "inception_v4_noscale": Entry(partial(inception_v4.inception_v4, scale=False), (299, 299, 3)),
    "inception_resnet_v1_paper": Entry(partial(inception_v4.inception_resnet, "v1"), (299, 299, 3)),
    "inception_resnet_v2_paper": Entry(partial(inception_v4.inception_resnet, "v2"), (299, 299, 3)),
    # What the name stands for everywhere is the released code.
    "inception_resnet_v2": Entry(partial(inception_v4.inception_resnet, "v2_released"), (299, 299, 3)),
    "inception_resnet_v2_noscale": Entry(
        partial(inception_v4.inception_resnet, "v2_released", scale=False), (299, 299, 3)
    ),
    # --- ResNet, plain ---
    **{
        f"resnet{depth}_opt{option}_v1.5": Entry(partial(resnet.resnet, depth, shortcut=option), (224, 224, 3))
        for depth in (18, 34)
        for option in ("A", "B", "C")
    },
    **{f"resnet{depth}_optB_v1": Entry(partial(resnet.resnet, depth), (224, 224, 3)) for depth in (50, 101, 152)},
    **{
        f"resnet{depth}_optB_v1.5": Entry(partial(resnet.resnet, depth, stride_on="3x3"), (224, 224, 3))
        for depth in (50, 101, 152)
    },
    **{f"resnet50_opt{x}_v1": Entry(partial(resnet.resnet, 50, shortcut=x), (224, 224, 3)) for x in ("A", "C")},
    **{
        f"resnet{depth}_keras_convbias": Entry(
            partial(resnet.resnet, depth, conv_bias=True, norm=resnet.KERAS_NORM), (224, 224, 3)
        )
        for depth in (50, 101, 152)
    },
    **{f"resnet{depth}_v2": Entry(partial(resnet_v2.resnet_v2, depth), (224, 224, 3)) for depth in resnet_v2.UNITS},
    **{
        f"resnet{depth}_v2_keras_convbias": Entry(partial(resnet_v2.resnet_v2_keras, depth), (224, 224, 3))
        for depth in (50, 101, 152)
    },
    **{f"plain{depth}": Entry(partial(resnet.plain, depth), (224, 224, 3)) for depth in resnet.TABLE_1},
    **{
        f"cifar_resnet{depth}_opt{option}": Entry(partial(resnet.cifar_resnet, depth, shortcut=option), (32, 32, 3))
        for depth in resnet.CIFAR_DEPTHS
        for option in ("A", "B")
    },
    **{f"cifar_plain{depth}": Entry(partial(resnet.cifar_plain, depth), (32, 32, 3)) for depth in resnet.CIFAR_DEPTHS},
    # --- Highway ---
    **{f"highway_fc_{depth}_w50": Entry(partial(highway.highway_fc, depth), (28, 28, 1)) for depth in highway.DEPTHS},
    **{f"plain_fc_{depth}_w71": Entry(partial(highway.plain_fc, depth), (28, 28, 1)) for depth in highway.DEPTHS},
    "highway_mnist_conv10_w16": Entry(highway.highway_conv, (28, 28, 1)),
    "highway_mnist_conv10_w32": Entry(partial(highway.highway_conv, 32), (28, 28, 1)),
    # --- DenseNet ---
    **{f"densenet{depth}": Entry(partial(densenet.densenet, depth), (224, 224, 3)) for depth in densenet.TABLE_1},
    **{
        f"densenet_{row}{suffix}": Entry(
            partial(densenet.densenet_cifar, depth, growth, classes, bottleneck=bottleneck, compression=compression),
            (32, 32, 3),
        )
        for row, (depth, growth, bottleneck, compression) in densenet.TABLE_2.items()
        for suffix, classes in {"": 10, "_100": 100}.items()
    },
    # --- image to image ---
    "johnson_style": Entry(transform_net.transform_net, (256, 256, 3)),
    "johnson_style_nobias": Entry(partial(transform_net.transform_net, bias=False), (256, 256, 3)),
    "johnson_sr_x4": Entry(transform_net.super_resolution, (72, 72, 3)),
    "johnson_sr_x8": Entry(partial(transform_net.super_resolution, 8), (36, 36, 3)),
    "autoencoder": Entry(autoencoder.autoencoder, (28, 28, 1)),
}

# Short names for the paper's version.
SHORT: dict[str, str] = {
    "lenet5": "lenet5_dense",
    "alexnet": "alexnet_2012",
    "nin": "nin_cifar10",
    "all_cnn": "all_cnn_C",
    **{f"vgg{depth}": f"vgg_{column}" for depth, column in {11: "A", 13: "B", 16: "D", 19: "E"}.items()},
    **{f"vgg{depth}_bn": f"vgg_{column}_bn" for depth, column in {11: "A", 13: "B", 16: "D", 19: "E"}.items()},
    "googlenet": "googlenet_v1_aux",
    "inception_v2": "inception_v2_slim",
    "inception_resnet_v1": "inception_resnet_v1_paper",
    **{f"resnet{depth}": f"resnet{depth}_optB_v1.5" for depth in (18, 34)},  # basic blocks: v1 is v1.5
    **{f"resnet{depth}": f"resnet{depth}_optB_v1" for depth in (50, 101, 152)},
    **{f"cifar_resnet{depth}": f"cifar_resnet{depth}_optA" for depth in resnet.CIFAR_DEPTHS},
}


def entry(name: str) -> Entry:
    """The catalogue's row for a name, full or short. Raises `CnnjaxError` naming the legal ones."""
    full = SHORT.get(name, name)
    if full not in CATALOG:
        raise unknown("network", name, [*SHORT, *CATALOG])
    return CATALOG[full]
