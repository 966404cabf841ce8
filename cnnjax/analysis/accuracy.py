"""What was published of the catalogue's networks: year, error, by which protocol, where. Facts, none of them measured
here.

A dagger marks numbers that are quoted from memory of a paper whose text could not be read again; None: nothing
published.
"""

from typing import NamedTuple


class Accuracy(NamedTuple):
    """Errors in per cent on the data's usual evaluation set (ImageNet: 2012 validation; CIFAR, MNIST: test)."""

    year: int
    top1: float | None
    top5: float | None
    protocol: str
    source: str
    recalled: bool = False


ZF = "Zeiler & Fergus, Table 3"
VGG = "Simonyan & Zisserman, Table 3"
RESNET = "He et al., Table 3"
TORCHVISION = "torchvision's weights"
KERAS = "keras.io"
SLIM = "TF-slim"
DENSENET = "Huang et al., Table 3"
# fmt: off
IMAGENET = {
    "alexnet_2012":              Accuracy(2012, 40.7, 18.2, "10 crops", "Krizhevsky et al., Table 2"),
    "alexnet_ungrouped":         Accuracy(2012, None, None, "", ""),
    "alexnet_minus_34":          Accuracy(2013, 45.4, 22.1, "10 crops", ZF),
    "alexnet_minus_7":           Accuracy(2013, 40.0, 18.4, "10 crops", ZF),
    "alexnet_minus_67":          Accuracy(2013, 44.8, 22.4, "10 crops", ZF),
    "alexnet_minus_3467":        Accuracy(2013, 71.3, 50.1, "10 crops", ZF),
    "alexnet_torchvision":       Accuracy(2014, 43.478, 20.934, "centre crop", TORCHVISION),
    "zfnet":                     Accuracy(2013, 38.4, 16.5, "10 crops", ZF),
    "zfnet_fc2048":              Accuracy(2013, 40.2, 17.6, "10 crops", ZF),
    "zfnet_fc8192":              Accuracy(2013, 38.8, 17.0, "10 crops", ZF),
    "zfnet_wide":                Accuracy(2013, 37.5, 16.0, "10 crops", ZF),
    "zfnet_both":                Accuracy(2013, 38.3, 16.9, "10 crops", ZF),
    "nin_imagenet":              Accuracy(2013, None, None, "", ""),
    "vgg_A":                     Accuracy(2014, 29.6, 10.4, "dense, one scale", VGG),
    "vgg_A-LRN":                 Accuracy(2014, 29.7, 10.5, "dense, one scale", VGG),
    "vgg_B":                     Accuracy(2014, 28.7, 9.9, "dense, one scale", VGG),
    "vgg_C":                     Accuracy(2014, 27.3, 8.8, "dense, one scale", VGG),
    "vgg_D":                     Accuracy(2014, 25.6, 8.1, "dense, one scale", VGG),
    "vgg_E":                     Accuracy(2014, 25.5, 8.0, "dense, one scale", VGG),
    "vgg_A_bn":                  Accuracy(2015, 29.630, 10.190, "centre crop", TORCHVISION),
    "vgg_B_bn":                  Accuracy(2015, 28.414, 9.626, "centre crop", TORCHVISION),
    "vgg_D_bn":                  Accuracy(2015, 26.640, 8.484, "centre crop", TORCHVISION),
    "vgg_E_bn":                  Accuracy(2015, 25.782, 8.158, "centre crop", TORCHVISION),
    "googlenet_v1":              Accuracy(2014, None, 9.15, "10 crops", "Szegedy et al. 2014, Table 3"),
    "googlenet_torchvision":     Accuracy(2014, 30.222, 10.470, "centre crop", TORCHVISION),
    "inception_bn":              Accuracy(2015, 25.2, 7.8, "centre crop", "Szegedy et al. 2015, Table 3", True),
    "inception_v2_slim":         Accuracy(2015, 26.1, 8.2, "centre crop", SLIM),
    "inception_v3":              Accuracy(2015, 21.2, 5.6, "centre crop, 48,238", "Szegedy et al. 2015, Table 3"),
    "inception_v4":              Accuracy(2016, 19.8, 4.8, "centre crop", SLIM),
    "inception_resnet_v1_paper": Accuracy(2016, 21.3, 5.5, "centre crop", "Szegedy et al. 2016, Table 2", True),
    "inception_resnet_v2":       Accuracy(2016, 19.6, 4.7, "centre crop", SLIM),
    "inception_resnet_v2_paper": Accuracy(2016, None, None, "", ""),
    "plain18":                   Accuracy(2015, 27.94, None, "10 crops", "He et al., Table 2"),
    "plain34":                   Accuracy(2015, 28.54, 10.02, "10 crops", RESNET),
    "resnet18_optA_v1.5":        Accuracy(2015, 27.88, None, "10 crops", "He et al., Table 2"),
    "resnet18_optB_v1.5":        Accuracy(2015, 30.242, 10.922, "centre crop", TORCHVISION),
    "resnet34_optA_v1.5":        Accuracy(2015, 25.03, 7.76, "10 crops", RESNET),
    "resnet34_optB_v1.5":        Accuracy(2015, 24.52, 7.46, "10 crops", RESNET),
    "resnet34_optC_v1.5":        Accuracy(2015, 24.19, 7.40, "10 crops", RESNET),
    "resnet50_optB_v1":          Accuracy(2015, 22.85, 6.71, "10 crops", RESNET),
    "resnet101_optB_v1":         Accuracy(2015, 21.75, 6.05, "10 crops", RESNET),
    "resnet152_optB_v1":         Accuracy(2015, 21.43, 5.71, "10 crops", RESNET),
    "resnet50_optB_v1.5":        Accuracy(2015, 23.870, 7.138, "centre crop", TORCHVISION),
    "resnet101_optB_v1.5":       Accuracy(2015, 22.626, 6.454, "centre crop", TORCHVISION),
    "resnet152_optB_v1.5":       Accuracy(2015, 21.688, 5.954, "centre crop", TORCHVISION),
    "resnet50_keras_convbias":   Accuracy(2015, 25.1, 7.9, "centre crop", KERAS),
    "resnet101_keras_convbias":  Accuracy(2015, 23.6, 7.2, "centre crop", KERAS),
    "resnet152_keras_convbias":  Accuracy(2015, 23.4, 6.9, "centre crop", KERAS),
    "densenet121":               Accuracy(2016, 25.02, 7.71, "centre crop", DENSENET),
    "densenet169":               Accuracy(2016, 23.80, 6.85, "centre crop", DENSENET),
    "densenet201":               Accuracy(2016, 22.58, 6.34, "centre crop", DENSENET),
    "densenet264":               Accuracy(2016, 22.15, 6.12, "centre crop", DENSENET),
    "densenet161":               Accuracy(2016, 22.2, None, "centre crop", "the authors' README"),
}

CIFAR10 = {
    "nin_cifar10":              Accuracy(2013, 8.81, None, "augmented", "Lin et al., Table 1"),
    "cifar_resnet20_optA":      Accuracy(2015, 8.75, None, "augmented", "He et al., Table 6"),
    "cifar_resnet32_optA":      Accuracy(2015, 7.51, None, "augmented", "He et al., Table 6"),
    "cifar_resnet44_optA":      Accuracy(2015, 7.17, None, "augmented", "He et al., Table 6"),
    "cifar_resnet56_optA":      Accuracy(2015, 6.97, None, "augmented", "He et al., Table 6"),
    "cifar_resnet110_optA":     Accuracy(2015, 6.43, None, "augmented, best of 5", "He et al., Table 6"),
    "cifar_resnet1202_optA":    Accuracy(2015, 7.93, None, "augmented", "He et al., Table 6"),
    "densenet_L40_k12":         Accuracy(2016, 5.24, None, "augmented", "the authors' README"),
    "densenet_L100_k12":        Accuracy(2016, 4.10, None, "augmented", "the authors' README"),
    "densenet_L100_k24":        Accuracy(2016, 3.74, None, "augmented", "the authors' README"),
    "densenet_bc_L100_k12":     Accuracy(2016, 4.51, None, "augmented", "the authors' README"),
    "densenet_bc_L250_k24":     Accuracy(2016, 3.62, None, "augmented", "the authors' README"),
    "densenet_bc_L190_k40":     Accuracy(2016, 3.46, None, "augmented", "the authors' README"),
}

CIFAR100 = {
    "nin_cifar100":             Accuracy(2013, 35.68, None, "not augmented", "Lin et al., Table 2"),
    "densenet_L40_k12_100":     Accuracy(2016, 24.42, None, "augmented", "the authors' README"),
    "densenet_L100_k12_100":    Accuracy(2016, 20.20, None, "augmented", "the authors' README"),
    "densenet_L100_k24_100":    Accuracy(2016, 19.25, None, "augmented", "the authors' README"),
    "densenet_bc_L100_k12_100": Accuracy(2016, 22.27, None, "augmented", "the authors' README"),
    "densenet_bc_L250_k24_100": Accuracy(2016, 17.60, None, "augmented", "the authors' README"),
    "densenet_bc_L190_k40_100": Accuracy(2016, 17.18, None, "augmented", "the authors' README"),
}

MNIST = {
    "lenet5_1998":               Accuracy(1998, 0.95, None, "", "LeCun et al., Fig. 9"),
    "highway_mnist_conv10_w16":  Accuracy(2015, 0.57, None, "best run", "Srivastava et al., Table 1"),
    "highway_mnist_conv10_w32":  Accuracy(2015, 0.45, None, "best run", "Srivastava et al., Table 1"),
}
# fmt: on

BY_DATA = {"ImageNet": IMAGENET, "CIFAR-10": CIFAR10, "CIFAR-100": CIFAR100, "MNIST": MNIST}


class Entrant(NamedTuple):
    """A classification entry of the ImageNet challenge: top-5 test error, %, of what was entered (usually an
    ensemble).
    """

    year: int
    network: str
    layers: int  # with weights, of one network
    top5: float
    what: str


# ILSVRC, the test errors that the papers report.
ILSVRC = (
    Entrant(2012, "AlexNet", 8, 16.4, "5 networks; 15.3 with 2 more, pre-trained on ImageNet 2011"),
    Entrant(2013, "ZFNet", 8, 14.8, "6 networks (paper, after the challenge)"),
    Entrant(2014, "VGG", 19, 7.3, "7 networks; 6.8 with 2 networks after the challenge"),
    Entrant(2014, "GoogLeNet", 22, 6.67, "7 networks, 144 crops"),
    Entrant(2015, "ResNet", 152, 3.57, "6 networks"),
)

# Szegedy et al. 2014, Table 1: parameters in thousands (of 1,024) and operations in millions, as printed.
GOOGLENET_TABLE = {
    "conv1": (2.7, 34), "conv2": (112, 360), "3a": (159, 128), "3b": (380, 304), "4a": (364, 73), "4b": (437, 88),
    "4c": (463, 100), "4d": (580, 119), "4e": (840, 170), "5a": (1072, 54), "5b": (1388, 71), "linear": (1000, 1),
}  # fmt: skip
