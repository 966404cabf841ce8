"""Which networks other libraries have weights for: as which variant of ours, and what their layers are called there.

A rule is the pattern of a layer's path -> its name in the source; where the source keeps a convolution and its
normalisation under two names, both. Groups of the pattern that are digits come as integers. How paths are written is
said in `cnnjax.weights.paths`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from cnnjax.models.alexnet import alexnet, alexnet_torchvision
from cnnjax.models.chain import Block, Chain, Layer, rows
from cnnjax.models.densenet import densenet, densenet_cifar
from cnnjax.models.googlenet import googlenet
from cnnjax.models.inception_bn import inception_bn
from cnnjax.models.inception_v3 import inception_v3
from cnnjax.models.inception_v4 import inception_resnet, inception_v4
from cnnjax.models.layers import LRN, Activation, AvgPool, BatchNorm, Conv, Dense, Dropout, MaxPool, Norm
from cnnjax.models.nin import nin
from cnnjax.models.resnet import KERAS_NORM, cifar_resnet, resnet
from cnnjax.models.resnet_v2 import resnet_v2, resnet_v2_keras
from cnnjax.models.surgery import map_modules, replace, with_features
from cnnjax.models.vgg import vgg
from cnnjax.models.zfnet import zfnet
from cnnjax.weights.paths import sites

Name = str | tuple[str, str]
Rules = Mapping[str, Name | Callable[..., Name]]


class Port(NamedTuple):
    """A network of another library: `make(classes=…)` is our variant of it, for images [size, size, 3]."""

    make: Callable[..., Chain]
    rules: Rules | Callable[[Chain], Rules]
    size: int = 224
    as_convolutions: tuple[str, ...] = ()
    """Fully connected layers that are stored as convolutions."""
    classes: int = 1000


VGG = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}
KERAS_DENSE_NORM = Norm(epsilon=1.001e-5, momentum=0.99)

# --- our variants, where no argument of a constructor makes them ------------------------------------------------------


def _with(make: Callable[..., Chain], **modules: Any) -> Callable[..., Chain]:
    """The same network with other modules in the places of the named layers."""
    return lambda classes: replace(make(classes=classes), **modules)


def _edited(make: Callable[..., Chain], edit: Callable[[Any], Any]) -> Callable[..., Chain]:
    return lambda classes: map_modules(make(classes=classes), edit)


def _torch_lrn(module: Any) -> Any:
    """torch divides α by n, and pytorchcv's poolings round up."""
    if isinstance(module, LRN):
        return module.clone(alpha_over_n=True)
    return module.clone(ceil=True) if isinstance(module, MaxPool) else module


def _norm_before_pool(net: Chain) -> Chain:
    """The first two local response normalisations before their poolings."""
    order = [{"pool1": "norm1", "norm1": "pool1", "pool2": "norm2", "norm2": "pool2"}.get(n, n) for n in net.names]
    by_name = {layer.name: layer for layer in net.layers}
    return dataclasses.replace(net, layers=tuple(by_name[name] for name in order))


def _zfnet_pytorchcv(classes: int) -> Chain:
    return _norm_before_pool(map_modules(zfnet(classes), _torch_lrn))


def _zfnet512(classes: int) -> Chain:
    """The model zoo's: no padding before conv1, poolings that round down, the last one 2×2; 512 maps, fc7 of 1024."""
    net = with_features(zfnet(classes), conv3=512, conv4=512, conv5=512, fc7=1024)
    net = replace(net, pool5=MaxPool(2, stride=2))
    return _norm_before_pool(_floor(replace(net, conv1=net["conv1"].clone(pad=0))))


def _floor(net: Chain) -> Chain:
    """Poolings that round down, as in the model zoo's graphs."""
    return map_modules(net, lambda m: m.clone(ceil=False) if isinstance(m, MaxPool) else m)


def _inception_resnet_v1_pytorchcv(classes: int) -> Chain:
    """A sixth Inception-ResNet-C without scaling and ReLU, and 512 normalised features before the classifier."""
    net = inception_resnet("v1", classes)
    last = Layer("Inception-ResNet-C_6", net["Inception-ResNet-C_5"].clone(scale=1.0, act=None))
    features = Layer("fc1", Dense(512, bias=False, norm=Norm(epsilon=1e-3), act=None))
    cut = net.names.index("Inception-ResNet-C_5") + 1
    return dataclasses.replace(net, layers=(*net.layers[:cut], last, *net.layers[cut:-1], features, net.layers[-1]))


def _preactivated_first_unit(depth: int, classes: int) -> Chain:
    """pytorchcv's PreResNet: the first unit, too, normalises and rectifies what it reads."""
    net = resnet_v2(depth, classes)
    return replace(net, conv2_1=Block(rows(norm=BatchNorm(), relu=Activation(), unit=net["conv2_1"])))


def _epsilon(value: float, module: Any) -> Any:
    norm = getattr(module, "norm", None)
    return module.clone(norm=dataclasses.replace(norm, epsilon=value)) if norm is not None else module


CAFFE_LRN = LRN(n=5, k=1.0, alpha=1e-4, beta=0.75, alpha_over_n=True)
CAFFE_POOL1 = MaxPool(3, stride=2, ceil=True)

# --- torch names ------------------------------------------------------------------------------------------------------


def cell(name: str) -> Name:
    return f"{name}.conv", f"{name}.bn"


def sequential(fc: Rules) -> Callable[[Chain], Rules]:
    """`features` counts convolutions, normalisations, activations and poolings alike."""

    def rules(net: Chain) -> Rules:
        index, named = 0, {}
        for layer in net.layers:
            if isinstance(layer.module, Conv):
                named[layer.name] = (f"features.{index}", f"features.{index + 1}")
                index += 2 + (layer.module.norm is not None)
            elif not isinstance(layer.module, Dropout):
                index += 1
        return {**named, **fc}

    return rules


TORCH_RESNET: Rules = {
    r"conv1": ("conv1", "bn1"),
    r"conv(\d)_(\d+)/conv(\d)": lambda s, b, c: (f"layer{s - 1}.{b - 1}.conv{c}", f"layer{s - 1}.{b - 1}.bn{c}"),
    r"conv(\d)_(\d+)/shortcut": lambda s, b: (
        f"layer{s - 1}.{b - 1}.downsample.0",
        f"layer{s - 1}.{b - 1}.downsample.1",
    ),
    r"fc": "fc",
}
TORCH_DENSENET: Rules = {
    r"conv0": ("features.conv0", "features.norm0"),
    r"dense(\d)_(\d+)/(\w+\d)": lambda b, i, row: f"features.denseblock{b}.denselayer{i}.{row}",
    r"trans(\d)/(norm|conv)": lambda b, row: f"features.transition{b}.{row}",
    r"norm5": "features.norm5",
    r"fc": "classifier",
}
TORCHVISION_GOOGLENET: Rules = {
    r"conv1": cell("conv1"),
    r"conv2_reduce": cell("conv2"),
    r"conv2": cell("conv3"),
    r"inception_(\w\w)/1x1": lambda m: cell(f"inception{m}.branch1"),
    r"inception_(\w\w)/3x3_reduce": lambda m: cell(f"inception{m}.branch2.0"),
    r"inception_(\w\w)/3x3": lambda m: cell(f"inception{m}.branch2.1"),
    r"inception_(\w\w)/5x5_reduce": lambda m: cell(f"inception{m}.branch3.0"),
    r"inception_(\w\w)/5x5": lambda m: cell(f"inception{m}.branch3.1"),
    r"inception_(\w\w)/pool_proj": lambda m: cell(f"inception{m}.branch4.1"),
    r"aux_4a/conv": cell("aux1.conv"),
    r"aux_4d/conv": cell("aux2.conv"),
    r"aux_4a/(fc\d)": lambda row: f"aux1.{row}",
    r"aux_4d/(fc\d)": lambda row: f"aux2.{row}",
    r"fc": "fc",
}
TORCH_INCEPTION_V3: Rules = {
    r"(Conv2d_\w+)": cell,
    r"(Mixed_(?:5.|6[b-e]|7[bc]))/0": lambda m: cell(f"{m}.branch1x1"),
    r"(Mixed_\w+)/3/pool": lambda m: cell(f"{m}.branch_pool"),
    r"(Mixed_5.)/1/(\d)": lambda m, i: cell(f"{m}.branch5x5_{i + 1}"),
    r"(Mixed_5.)/2/(\d)": lambda m, i: cell(f"{m}.branch3x3dbl_{i + 1}"),
    r"(Mixed_6a)/0": lambda m: cell(f"{m}.branch3x3"),
    r"(Mixed_6a)/1/(\d)": lambda m, i: cell(f"{m}.branch3x3dbl_{i + 1}"),
    r"(Mixed_6[b-e])/1/(\d)": lambda m, i: cell(f"{m}.branch7x7_{i + 1}"),
    r"(Mixed_6[b-e])/2/(\d)": lambda m, i: cell(f"{m}.branch7x7dbl_{i + 1}"),
    r"(Mixed_7a)/0/(\d)": lambda m, i: cell(f"{m}.branch3x3_{i + 1}"),
    r"(Mixed_7a)/1/(\d)": lambda m, i: cell(f"{m}.branch7x7x3_{i + 1}"),
    r"(Mixed_7[bc])/1/(\d)(\w?)": lambda m, i, arm: cell(f"{m}.branch3x3_{i + 1}{arm}"),
    r"(Mixed_7[bc])/2/(\d)(\w?)": lambda m, i, arm: cell(f"{m}.branch3x3dbl_{i + 1}{arm}"),
    r"AuxLogits/Conv2d_1b_1x1": cell("AuxLogits.conv0"),
    r"AuxLogits/Conv2d_2a_5x5": cell("AuxLogits.conv1"),
    r"AuxLogits/fc": "AuxLogits.fc",
    r"fc": "fc",
}


def _timm_branch(module: str, branch: Any) -> Name:
    """0 -> branch0; 1/2 -> branch1.2; 3/pool -> branch3.1, whose pooling is number 0."""
    return cell(f"{module}.branch{str(branch).replace('pool', '1').replace('/', '.')}")


def _timm_v4(first: int, i: int, branch: Any) -> Name:
    return _timm_branch(f"features.{first + i - 1}", branch)


TIMM_INCEPTION_V4: Rules = {
    r"Conv2d_1a_3x3": cell("features.0"),
    r"Conv2d_2a_3x3": cell("features.1"),
    r"Conv2d_2b_3x3": cell("features.2"),
    r"Mixed_3a/1": cell("features.3.conv"),
    r"Mixed_4a/(\d/\d)": lambda branch: _timm_branch("features.4", branch),
    r"Mixed_5a/0": cell("features.5.conv"),
    r"Inception-A_(\d)/(.+)": partial(_timm_v4, 6),
    r"Reduction-A/(.+)": lambda branch: _timm_branch("features.10", branch),
    r"Inception-B_(\d)/(.+)": partial(_timm_v4, 11),
    r"Reduction-B/(.+)": lambda branch: _timm_branch("features.18", branch),
    r"Inception-C_(\d)/([12])/(\d\w?)": lambda i, b, step: cell(f"features.{18 + i}.branch{b}_{step}"),
    r"Inception-C_(\d)/(0|3/pool)": lambda i, branch: _timm_v4(19, i, branch),
    r"fc": "last_linear",
}
TIMM_INCEPTION_RESNET_V2: Rules = {
    r"Conv2d_(\d\w)_\dx\d": lambda name: cell(f"conv2d_{name}"),
    r"Mixed_5b/(.+)": lambda branch: _timm_branch("mixed_5b", branch),
    r"Inception-ResNet-A_(\d+)/mixed/(.+)": lambda i, branch: _timm_branch(f"repeat.{i - 1}", branch),
    r"Inception-ResNet-A_(\d+)/up": lambda i: f"repeat.{i - 1}.conv2d",
    r"Reduction-A/(.+)": lambda branch: _timm_branch("mixed_6a", branch),
    r"Inception-ResNet-B_(\d+)/mixed/(.+)": lambda i, branch: _timm_branch(f"repeat_1.{i - 1}", branch),
    r"Inception-ResNet-B_(\d+)/up": lambda i: f"repeat_1.{i - 1}.conv2d",
    r"Reduction-B/(.+)": lambda branch: _timm_branch("mixed_7a", branch),
    r"Inception-ResNet-C_10/mixed/(.+)": lambda branch: _timm_branch("block8", branch),
    r"Inception-ResNet-C_10/up": "block8.conv2d",
    r"Inception-ResNet-C_(\d)/mixed/(.+)": lambda i, branch: _timm_branch(f"repeat_2.{i - 1}", branch),
    r"Inception-ResNet-C_(\d)/up": lambda i: f"repeat_2.{i - 1}.conv2d",
    r"fc": "classif",
}

# --- pytorchcv --------------------------------------------------------------------------------------------------------

PYTORCHCV_HEAD: Rules = {r"fc6": "output.fc1.fc", r"fc7": "output.fc2.fc", r"fc8": "output.fc3"}
PYTORCHCV_ALEXNET: Rules = {
    r"conv([12])": lambda i: f"features.stage{i}.unit1.conv",
    r"conv([345])": lambda i: f"features.stage3.unit{i - 2}.conv",
    **PYTORCHCV_HEAD,
}
PYTORCHCV_VGG: Rules = {r"conv(\d)_(\d)": lambda s, i: cell(f"features.stage{s}.unit{i}"), **PYTORCHCV_HEAD}
PYTORCHCV_NIN: Rules = {
    r"conv(\d)": lambda s: f"features.stage{s}.unit1.conv",
    r"cccp([1-5])": lambda i: f"features.stage{(i + 1) // 2}.unit{3 - i % 2}.conv",
    r"cccp6": "output.final_conv.conv",
}
PYTORCHCV_RESNET: Rules = {
    r"conv1": cell("features.init_block.conv"),
    r"conv(\d)_(\d+)/conv(\d)": lambda s, b, c: cell(f"features.stage{s - 1}.unit{b}.body.conv{c}"),
    r"conv(\d)_(\d+)/shortcut": lambda s, b: cell(f"features.stage{s - 1}.unit{b}.identity_conv"),
    r"fc": "output",
}
PYTORCHCV_CIFAR_RESNET: Rules = {**PYTORCHCV_RESNET, r"conv1": cell("features.init_block")}
PYTORCHCV_PRERESNET: Rules = {
    r"conv1": cell("features.init_block"),
    r"conv(\d)_(\d+)/norm": lambda s, b: f"features.stage{s - 1}.unit{b}.body.conv1.bn",
    r"conv(\d)_(\d+)/(?:unit/)?conv(\d)": lambda s, b, c: (
        f"features.stage{s - 1}.unit{b}.body.conv{c}.conv",
        f"features.stage{s - 1}.unit{b}.body.conv{c + 1}.bn",
    ),
    r"conv(\d)_(\d+)/unit/shortcut": lambda s, b: f"features.stage{s - 1}.unit{b}.identity_conv",
    r"norm5": "features.post_activ.bn",
    r"fc": "output",
}
PYTORCHCV_DENSENET: Rules = {
    r"conv0": cell("features.init_block"),
    r"dense(\d)_(\d+)/norm(\d)": lambda b, i, n: f"features.stage{b}.unit{i}.conv{n}.bn",
    r"dense(\d)_(\d+)/conv(\d)": lambda b, i, n: f"features.stage{b}.unit{i}.conv{n}.conv",
    r"trans(\d)/norm": lambda b: f"features.stage{b + 1}.trans{b + 1}.conv.bn",
    r"trans(\d)/conv": lambda b: f"features.stage{b + 1}.trans{b + 1}.conv.conv",
    r"norm[45]": "features.post_activ.bn",
    r"fc": "output",
}
PYTORCHCV_CIFAR_DENSENET: Rules = {**PYTORCHCV_DENSENET, r"conv0": "features.init_block"}
_UNITS = {name: (s, u) for s, names in enumerate(("3a 3b", "3c 4a 4b 4c 4d", "4e 5a 5b"), 1)
          for u, name in enumerate(names.split(), 1)}  # fmt: skip


def _pytorchcv_bn(module: str, row: str) -> Name:
    """Modules that halve the map have no 1×1 branch, and count from the next one on."""
    first = 0 if module in ("3c", "4e") else 1
    branch = {"1x1": "branch1", "pool_proj": "branch4.conv",
              "3x3_reduce": f"branch{first + 1}.conv1", "3x3": f"branch{first + 1}.conv2",
              "double3x3_reduce": f"branch{first + 2}.conv1", "double3x3_1": f"branch{first + 2}.conv2",
              "double3x3_2": f"branch{first + 2}.conv3"}[row]  # fmt: skip
    stage, unit = _UNITS[module]
    return cell(f"features.stage{stage}.unit{unit}.branches.{branch}")


PYTORCHCV_BN_INCEPTION: Rules = {
    r"conv1": cell("features.init_block.conv1"),
    r"conv2_reduce": cell("features.init_block.conv2.conv1"),
    r"conv2": cell("features.init_block.conv2.conv2"),
    r"inception_(\w\w)/(\w+)": _pytorchcv_bn,
    r"linear": "output",
}


def _pytorchcv_branch(module: str, branch: Any) -> Name:
    """0 -> branch1.conv; 1/2 -> branch2.conv_list.conv3; 3/pool -> branch4.conv; arms are named after their kernels."""
    number, _, step = str(branch).partition("/")
    if step[-1:] in ("a", "b"):
        step = {"a": "conv1x3", "b": "conv3x1"}[step[-1]]
    elif step.isdigit():
        step = f"conv_list.conv{int(step) + 1}"
    else:
        step = "conv"
    return cell(f"{module}.branches.branch{int(number) + 1}.{step}")


def _pytorchcv_unit(stage: int, offset: int, i: int, branch: Any) -> Name:
    return _pytorchcv_branch(f"features.stage{stage}.unit{i + offset}", branch)


def _pytorchcv_reduction(stage: int, branch: Any) -> Name:
    """A reduction is unit 1 of the stage that it leads to, and its single convolutions are lists of one."""
    branch = str(branch)
    return _pytorchcv_branch(f"features.stage{stage}.unit1", branch if "/" in branch else f"{branch}/0")


_STEM = ("1a", "2a", "2b", "3b", "4a", "4b")
PYTORCHCV_STEM: Rules = {
    r"Conv2d_(\d[ab])_3x3": lambda n: cell(f"features.init_block.conv{_STEM.index(n) + 1}"),
    r"Conv2d_3b_1x1": cell("features.init_block.conv4"),
}
PYTORCHCV_INCEPTION_V3: Rules = {
    **PYTORCHCV_STEM,
    r"Mixed_5([bcd])/(.+)": lambda m, branch: _pytorchcv_unit(1, 1, "bcd".index(m), branch),
    r"Mixed_6a/(.+)": partial(_pytorchcv_reduction, 2),
    r"Mixed_6([bcde])/(.+)": lambda m, branch: _pytorchcv_unit(2, 2, "bcde".index(m), branch),
    r"Mixed_7a/(.+)": partial(_pytorchcv_reduction, 3),
    r"Mixed_7([bc])/(.+)": lambda m, branch: _pytorchcv_unit(3, 2, "bc".index(m), branch),
    r"fc": "output.fc",
}
PYTORCHCV_INCEPTION_V4: Rules = {
    **PYTORCHCV_STEM,
    r"Mixed_3a/1": cell("features.init_block.block1.branches.branch2.conv"),
    r"Mixed_4a/(.+)": lambda branch: _pytorchcv_branch("features.init_block.block2", branch),
    r"Mixed_5a/0": cell("features.init_block.block3.branches.branch1.conv"),
    r"Inception-A_(\d)/(.+)": partial(_pytorchcv_unit, 1, 0),
    r"Reduction-A/(.+)": partial(_pytorchcv_reduction, 2),
    r"Inception-B_(\d)/(.+)": partial(_pytorchcv_unit, 2, 1),
    r"Reduction-B/(.+)": partial(_pytorchcv_reduction, 3),
    r"Inception-C_(\d)/(.+)": partial(_pytorchcv_unit, 3, 1),
    r"fc": "output.fc",
}
PYTORCHCV_INCEPTION_RESNET: Rules = {
    **PYTORCHCV_STEM,
    r"Mixed_5b/(.+)": lambda branch: _pytorchcv_branch("features.init_block.block", branch),
    r"Inception-ResNet-A_(\d+)/mixed/(.+)": partial(_pytorchcv_unit, 1, 0),
    r"Inception-ResNet-A_(\d+)/up": lambda i: f"features.stage1.unit{i}.conv",
    r"Reduction-A/(.+)": partial(_pytorchcv_reduction, 2),
    r"Inception-ResNet-B_(\d+)/mixed/(.+)": partial(_pytorchcv_unit, 2, 1),
    r"Inception-ResNet-B_(\d+)/up": lambda i: f"features.stage2.unit{i + 1}.conv",
    r"Reduction-B/(.+)": partial(_pytorchcv_reduction, 3),
    r"Inception-ResNet-C_(\d+)/mixed/(.+)": partial(_pytorchcv_unit, 3, 1),
    r"Inception-ResNet-C_(\d+)/up": lambda i: f"features.stage3.unit{i + 1}.conv",
    r"Conv2d_7b_1x1": cell("features.final_conv"),
    r"fc": "output.fc",
}

# --- Keras ------------------------------------------------------------------------------------------------------------

KERAS_VGG: Rules = {
    r"conv(\d)_(\d)": lambda s, i: f"block{s}_conv{i}",
    r"fc([67])": lambda i: f"fc{i - 5}",
    r"fc8": "predictions",
}
KERAS_RESNET: Rules = {
    r"conv1": ("conv1_conv", "conv1_bn"),
    r"conv(\d)_(\d+)/norm": lambda s, b: f"conv{s}_block{b}_preact_bn",
    r"conv(\d)_(\d+)/(?:unit/)?conv(\d)": lambda s, b, c: (f"conv{s}_block{b}_{c}_conv", f"conv{s}_block{b}_{c}_bn"),
    r"conv(\d)_(\d+)/(?:unit/)?shortcut": lambda s, b: (f"conv{s}_block{b}_0_conv", f"conv{s}_block{b}_0_bn"),
    r"norm5": "post_bn",
    r"fc": "predictions",
}
KERAS_DENSENET: Rules = {
    r"conv0": ("conv1_conv", "conv1_bn"),
    r"dense(\d)_(\d+)/norm(\d)": lambda b, i, n: f"conv{b + 1}_block{i}_{n - 1}_bn",
    r"dense(\d)_(\d+)/conv(\d)": lambda b, i, n: f"conv{b + 1}_block{i}_{n}_conv",
    r"trans(\d)/norm": lambda b: f"pool{b + 1}_bn",
    r"trans(\d)/conv": lambda b: f"pool{b + 1}_conv",
    r"norm5": "bn",
    r"fc": "predictions",
}


def keras_counted(named: Rules) -> Callable[[Chain], Rules]:
    """Convolutions that Keras left unnamed are conv2d, conv2d_1, … in the order in which they were made: ours."""

    def rules(net: Chain) -> Rules:
        counted = [
            site.name
            for site in sites(net)
            if isinstance(site.module, Conv) and not any(re.fullmatch(pattern, site.name) for pattern in named)
        ]
        return {
            **named,
            **{
                re.escape(name): (f"conv2d_{i}".removesuffix("_0"), f"batch_normalization_{i}".removesuffix("_0"))
                for i, name in enumerate(counted)
            },
        }

    return rules


# --- Caffe ------------------------------------------------------------------------------------------------------------

CAFFE_SAME: Rules = {r"(.+)": "{}".format}
CAFFE_GOOGLENET: Rules = {
    r"conv1": "conv1/7x7_s2",
    r"conv2_reduce": "conv2/3x3_reduce",
    r"conv2": "conv2/3x3",
    r"(inception_.+)": "{}".format,
    r"aux_4(\w)/conv": lambda at: f"loss{1 + (at == 'd')}/conv",
    r"aux_4(\w)/fc1": lambda at: f"loss{1 + (at == 'd')}/fc",
    r"aux_4(\w)/fc2": lambda at: f"loss{1 + (at == 'd')}/classifier",
    r"fc": "loss3/classifier",
}
CAFFE_NIN: Rules = {r"(conv4|cccp7|cccp8)": "{}-1024".format, **CAFFE_SAME}


def caffe_resnet(depth: int) -> Rules:
    """He's released networks: blocks are lettered, from the third on numbered in the longer stages of the deep nets."""

    def block(s: int, b: int) -> str:
        numbered = {101: (3, 4), 152: (3, 4)}.get(depth, ())
        return f"{s}{'abcdef'[b - 1]}" if s not in numbered else f"{s}a" if b == 1 else f"{s}b{b - 1}"

    def names(s: int, b: int, branch: str) -> Name:
        of = f"{block(s, b)}_branch{branch}"
        return f"res{of}", f"bn{of}|scale{of}"

    return {
        r"conv1": ("conv1", "bn_conv1|scale_conv1"),
        r"conv(\d)_(\d+)/conv(\d)": lambda s, b, c: names(s, b, f"2{'abc'[c - 1]}"),
        r"conv(\d)_(\d+)/shortcut": lambda s, b: names(s, b, "1"),
        r"fc": "fc1000",
    }


def _caffe_resnet(depth: int, classes: int) -> Chain:
    """Poolings round up; of the three nets, that of 50 layers has a bias in its first convolution."""
    net = replace(resnet(depth, classes), pool1=CAFFE_POOL1)
    return replace(net, conv1=net["conv1"].clone(bias=True)) if depth == 50 else net


# --- ONNX: the model zoo's graphs that were made from Caffe and Caffe2 ------------------------------------------------

CAFFE2_RESNET: Rules = {
    r"conv1": ("conv1", "res_conv1_bn"),
    r"conv(\d)_(\d+)/conv(\d)": lambda s, b, c: (
        f"res{s}_{b - 1}_branch2{'abc'[c - 1]}",
        f"res{s}_{b - 1}_branch2{'abc'[c - 1]}_bn",
    ),
    r"conv(\d)_(\d+)/shortcut": lambda s, b: (f"res{s}_{b - 1}_branch1", f"res{s}_{b - 1}_branch1_bn"),
    r"fc": "pred",
}

# --- the table --------------------------------------------------------------------------------------------------------

_V1_5 = partial(resnet, stride_on="3x3")
_VGG = {name: partial(vgg, column) for name, column in VGG.items()}
_VGG_BN = {f"{name}_bn": partial(vgg, column, norm=Norm()) for name, column in VGG.items()}
_TORCH_VGG = sequential({r"fc6": "classifier.0", r"fc7": "classifier.3", r"fc8": "classifier.6"})
_TIMM_VGG = sequential({r"fc6": "pre_logits.fc1", r"fc7": "pre_logits.fc2", r"fc8": "head.fc"})
_TORCH_ALEXNET = sequential({r"fc6": "classifier.1", r"fc7": "classifier.4", r"fc8": "classifier.6"})
_TORCH_NETS = {
    **{f"resnet{d}": Port(partial(_V1_5, d), TORCH_RESNET) for d in (18, 34, 50, 101, 152)},
    **{f"densenet{d}": Port(partial(densenet, d), TORCH_DENSENET) for d in (121, 161, 169, 201)},
    "inception_v3": Port(partial(inception_v3, count_padding=True), TORCH_INCEPTION_V3, 299),
}
_FC6_FC7 = ("fc6", "fc7")
_NO_SCALE = {"scale": False}

PORTS: dict[str, dict[str, Port]] = {
    "timm": {
        **{name: Port(make, _TIMM_VGG, as_convolutions=_FC6_FC7) for name, make in (_VGG | _VGG_BN).items()},
        **_TORCH_NETS,
        "inception_v4": Port(inception_v4, TIMM_INCEPTION_V4, 299),
        "inception_resnet_v2": Port(partial(inception_resnet, "v2_released"), TIMM_INCEPTION_RESNET_V2, 299),
    },
    "torchvision": {
        "alexnet": Port(alexnet_torchvision, _TORCH_ALEXNET),
        **{name: Port(make, _TORCH_VGG) for name, make in (_VGG | _VGG_BN).items()},
        "googlenet": Port(partial(googlenet, "torchvision"), TORCHVISION_GOOGLENET),
        **_TORCH_NETS,
    },
    "pytorchcv": {
        "alexnet": Port(_edited(partial(alexnet, groups=1), _torch_lrn), PYTORCHCV_ALEXNET),
        "alexnetb": Port(alexnet_torchvision, PYTORCHCV_ALEXNET),
        "zfnet": Port(_zfnet_pytorchcv, PYTORCHCV_ALEXNET),
        "nin_cifar10": Port(
            _with(nin, pool1=MaxPool(3, stride=2, pad=1), pool2=AvgPool(3, stride=2, pad=1)),
            PYTORCHCV_NIN,
            32,
            classes=10,
        ),
        **{name: Port(make, PYTORCHCV_VGG) for name, make in (_VGG | _VGG_BN).items()},
        "bninception": Port(
            _edited(partial(inception_bn, table_literal=True, conv_bias=True), partial(_epsilon, 1e-5)),
            PYTORCHCV_BN_INCEPTION,
        ),
        **{f"resnet{d}": Port(partial(resnet, d), PYTORCHCV_RESNET) for d in (18, 34, 50, 101, 152)},
        **{f"resnet{d}b": Port(partial(_V1_5, d), PYTORCHCV_RESNET) for d in (50, 101, 152)},
        **{f"preresnet{d}": Port(partial(_preactivated_first_unit, d), PYTORCHCV_PRERESNET) for d in (50, 101, 152)},
        **{
            f"resnet{d}_cifar10": Port(partial(cifar_resnet, d, shortcut="B"), PYTORCHCV_CIFAR_RESNET, 32, classes=10)
            for d in (20, 56, 110, 1202)
        },
        **{f"densenet{d}": Port(partial(densenet, d), PYTORCHCV_DENSENET) for d in (121, 161, 169, 201)},
        "densenet100_k12_bc_cifar10": Port(
            partial(densenet_cifar, 100, 12, bottleneck=True, compression=0.5),
            PYTORCHCV_CIFAR_DENSENET,
            32,
            classes=10,
        ),
        "inceptionv3": Port(partial(inception_v3, aux=False, count_padding=True), PYTORCHCV_INCEPTION_V3, 299),
        "inceptionv4": Port(inception_v4, PYTORCHCV_INCEPTION_V4, 299),
        "inceptionresnetv1": Port(
            _inception_resnet_v1_pytorchcv,
            {**PYTORCHCV_INCEPTION_RESNET, r"fc1": ("output.fc1", "output.bn"), r"fc": "output.fc2"},
            299,
        ),
        "inceptionresnetv2": Port(partial(inception_resnet, "v2_released"), PYTORCHCV_INCEPTION_RESNET, 299),
    },
    "keras": {
        **{name: Port(_VGG[name], KERAS_VGG) for name in ("vgg16", "vgg19")},
        **{
            f"resnet{d}": Port(partial(resnet, d, conv_bias=True, norm=KERAS_NORM), KERAS_RESNET)
            for d in (50, 101, 152)
        },
        **{f"resnet{d}_v2": Port(partial(resnet_v2_keras, d), KERAS_RESNET) for d in (50, 101, 152)},
        **{f"densenet{d}": Port(partial(densenet, d, norm=KERAS_DENSE_NORM), KERAS_DENSENET) for d in (121, 169, 201)},
        "inception_v3": Port(partial(inception_v3, aux=False, scale=False), keras_counted({r"fc": "predictions"}), 299),
        "inception_resnet_v2": Port(
            partial(inception_resnet, "v2_released", scale=False),
            keras_counted(
                {
                    r"Inception-ResNet-A_(\d+)/up": "block35_{}_conv".format,
                    r"Inception-ResNet-B_(\d+)/up": "block17_{}_conv".format,
                    r"Inception-ResNet-C_(\d+)/up": "block8_{}_conv".format,
                    r"Conv2d_7b_1x1": ("conv_7b", "conv_7b_bn"),
                    r"fc": "predictions",
                }
            ),
            299,
        ),
    },
    "caffe": {
        "alexnet": Port(_with(alexnet, norm1=CAFFE_LRN, norm2=CAFFE_LRN), CAFFE_SAME, 227),
        "googlenet": Port(googlenet, CAFFE_GOOGLENET),
        "nin_imagenet": Port(partial(nin, "imagenet"), CAFFE_NIN),
        **{name: Port(_VGG[name], CAFFE_SAME) for name in ("vgg16", "vgg19")},
        **{f"resnet{d}": Port(partial(_caffe_resnet, d), caffe_resnet(d)) for d in (50, 101, 152)},
    },
    "onnx": {
        "alexnet": Port(
            _with(alexnet, norm1=CAFFE_LRN, norm2=CAFFE_LRN, pool5=MaxPool(3, stride=2, pad=((0, 1), (0, 1)))),
            CAFFE_SAME,
        ),
        "zfnet512": Port(_zfnet512, CAFFE_SAME),
        "googlenet": Port(lambda classes: _floor(googlenet(classes=classes)), CAFFE_GOOGLENET),
        **{name: Port(_VGG[name], CAFFE_SAME) for name in ("vgg16", "vgg19")},
        "resnet50": Port(partial(resnet, 50, stride_on="3x3"), CAFFE2_RESNET),
    },
}
