"""The papers' recipes, and today's: the paragraphs that say how a network was trained, as rows of data.

What a paper does not print, or is not built as it was, is in a row's `differs`. Figures that could not be read again
are marked "recalled". Times are shares of the whole, written as they are printed: `2 / 20` is 2 of 20 passes.
"""

import dataclasses

import numpy as np

from cnnjax.data.augment import Compose, RandomCrop, RandomFlip, RandomResizedCrop, ScaleJitter
from cnnjax.data.colour import Constant, Photometric, SubtractMean, lighting, mean_image
from cnnjax.data.images import Transform
from cnnjax.data.mixing import CutMix, Mixup
from cnnjax.data.splits import Dataset, standardise
from cnnjax.train import optim
from cnnjax.train.feed import Prepare
from cnnjax.train.losses import cross_entropy, rbf_discriminative
from cnnjax.train.protocols import PROTOCOLS, Size
from cnnjax.train.recipe import SGD, Cosine, Drops, Plateau, Recipe, RMSProp, Staircase, Start

# --- how images are prepared: (data, crop) -> Prepare


def pixels(data: Dataset, crop: Size) -> Prepare:
    """Every channel of mean 0 and variance 1, and nothing else."""
    return Prepare(standardise(data.train))


def lecun(data: Dataset, crop: Size) -> Prepare:
    """Paper -0.1 and ink 1.175, where ink is white (LeCun et al. 1998, section II.B)."""
    return Prepare(Transform(mean=(0.1 / 1.275,), std=(1 / 1.275,)))


def krizhevsky(data: Dataset, crop: Size) -> Prepare:
    """The mean image subtracted, crops, flips, colours shifted along their principal components."""
    steps = (mean_image(data.train), RandomCrop(crop), RandomFlip(), lighting(data.train))
    return Prepare(Transform(scale=255), Compose(steps))


def zeiler(data: Dataset, crop: Size) -> Prepare:
    """As `krizhevsky`, without the colours."""
    return Prepare(Transform(scale=255), Compose((mean_image(data.train), RandomCrop(crop), RandomFlip())))


def simonyan(data: Dataset, crop: Size) -> Prepare:
    """Scales from 256 to 512 for crops of 224, flips, colours shifted, the mean colour subtracted."""
    steps = (_jitter(crop, 512), RandomFlip(), lighting(data.train))
    return Prepare(_centred(data), Compose(steps))


def szegedy(data: Dataset, crop: Size) -> Prepare:
    """Parts of 8 to 100 % of the area, flips, photometric distortions, the mean colour subtracted."""
    return Prepare(_centred(data), Compose((RandomResizedCrop(crop), RandomFlip(), Photometric())))


def inception(data: Dataset, crop: Size) -> Prepare:
    """As `szegedy`, with pixels from -1 to 1."""
    return Prepare(Transform(mean=(0.5,), std=(0.5,)), Compose((RandomResizedCrop(crop), RandomFlip(), Photometric())))


def he(data: Dataset, crop: Size) -> Prepare:
    """Scales from 256 to 480 for crops of 224, flips, colours shifted, the mean image subtracted."""
    steps = (mean_image(data.train), _jitter(crop, 480), RandomFlip(), lighting(data.train))
    return Prepare(Transform(scale=255), Compose(steps))


def he_cifar(data: Dataset, crop: Size) -> Prepare:
    """The mean image subtracted, 4 pixels of 0 around it, crops, flips."""
    steps = (mean_image(data.train), RandomCrop(crop, pad=4), RandomFlip())
    return Prepare(Transform(scale=255), Compose(steps))


def huang_cifar(data: Dataset, crop: Size) -> Prepare:
    """Every channel of mean 0 and variance 1, then 4 pixels of 0 around it, crops, flips."""
    measured = standardise(data.train)
    mean = SubtractMean(Constant(np.broadcast_to(255 * np.array(measured.mean), data.train.image.shape[1:])))
    return Prepare(Transform(std=measured.std), Compose((mean, RandomCrop(crop, pad=4), RandomFlip())))


def huang(data: Dataset, crop: Size) -> Prepare:
    """Parts of 8 to 100 % of the area, flips, colours shifted, every channel of mean 0 and variance 1."""
    steps = (RandomResizedCrop(crop), RandomFlip(), lighting(data.train))
    return Prepare(standardise(data.train), Compose(steps))


def mixed(data: Dataset, crop: Size) -> Prepare:
    """Parts of 8 to 100 % of the area, flips, mixup and cutmix, every channel of mean 0 and variance 1."""
    classes = len(data.classes)
    steps = (RandomResizedCrop(crop), RandomFlip(), Mixup(classes), CutMix(classes))
    return Prepare(standardise(data.train), Compose(steps))


def _jitter(crop: Size, largest: int) -> ScaleJitter:
    """From 256 to `largest` for a crop of 224, and in proportion for another."""
    return ScaleJitter(crop, smallest=round(max(crop) * 256 / 224), largest=round(max(crop) * largest / 224))


def _centred(data: Dataset) -> Transform:
    """The mean colour subtracted, in the units of pixels."""
    return Transform(scale=255, mean=tuple(255 * value for value in standardise(data.train).mean))


# --- the rows

SEEDED = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")  # those of A that B to E start from

LENET = Recipe(
    source="LeCun, Bottou, Bengio & Haffner 1998, section III.B",
    differs="Curvatures come from squared gradients, not from second derivatives of 500 digits before each pass; "
    "j of equation 9 is not printed.",
    batch=1,
    epochs=20,
    schedule=Drops((5e-4, 2e-4, 1e-4, 5e-5, 1e-5), (2 / 20, 3 / 20, 3 / 20, 4 / 20)),
    optimiser=optim.levenberg_marquardt,  # its mu is recalled
    loss=rbf_discriminative(j=0.1),  # equation 9: recalled
    prepare=lecun,
    weight_init="lecun",  # recalled
)

ALEXNET = Recipe(
    source="Krizhevsky, Sutskever & Hinton 2012, sections 4 and 5",
    differs="Crops of 227, which the network needs.",
    batch=128,
    epochs=90,
    schedule=Plateau(0.01),
    optimiser=SGD(weight_decay=5e-4),
    prepare=krizhevsky,
    size=256,
    crop=227,
    weight_init="normal_0.01",
    evaluation=dataclasses.replace(PROTOCOLS["10crop"], crop=227),
)

ZFNET = Recipe(
    source="Zeiler & Fergus 2014, section 3",
    differs="The rate was lowered by hand. Crops anywhere, where the paper has ten fixed ones.",
    batch=128,
    epochs=70,
    schedule=Plateau(0.01),
    optimiser=SGD(),
    filter_rms=0.1,
    prepare=zeiler,  # recalled
    size=256,
    crop=224,
    weight_init="normal_0.01",
    evaluation=PROTOCOLS["10crop"],  # recalled
)

NIN = Recipe(  # all recalled; the figures are those of the definition released for Caffe
    source="Lin, Chen & Yan 2014, section 4.1",
    differs="The paper prints neither rate nor decay. Contrast is not normalised and colours are not whitened.",
    batch=128,
    iterations=120_000,
    schedule=Drops((0.1, 0.01), (100 / 120,)),
    optimiser=SGD(weight_decay=1e-4),
    prepare=pixels,
    weight_init="he",
)

VGG_A = Recipe(
    source="Simonyan & Zisserman 2014, section 3.1",
    differs="One network from the start, with scales from 256 to 512, not first with 256 or 384.",
    batch=256,
    iterations=370_000,  # 74 epochs
    schedule=Plateau(0.01),
    optimiser=SGD(weight_decay=5e-4),
    prepare=simonyan,
    size=512,
    crop=224,
    weight_init="normal_0.1",
    evaluation=PROTOCOLS["multiscale"],
)

GOOGLENET = Recipe(
    source="Szegedy et al. 2014, section 6",
    differs="The paper prints neither batch, rate, decay nor length: they are those of Caffe's copy. One machine, and "
    "not several that update at different times. Averages forget, as TensorFlow's.",
    batch=32,  # recalled, as are:
    epochs=250,
    schedule=Staircase(0.01, 8 / 250, factor=0.96),  # 0.01
    optimiser=SGD(weight_decay=2e-4),  # 2e-4
    loss=cross_entropy(aux_weight=0.3),
    ema_decay=0.9999,
    prepare=szegedy,
    size=256,
    crop=224,
    evaluation=PROTOCOLS["144"],
)

INCEPTION_V3 = Recipe(
    source="Szegedy et al. 2015, section 8",
    differs="The 50 replicas' batches of 32 are one of 1,600.",
    batch=50 * 32,  # recalled, as are:
    epochs=100,
    schedule=Staircase(0.045, 2 / 100, factor=0.94),
    optimiser=RMSProp(decay=0.9, epsilon=1.0, clip=2.0),
    loss=cross_entropy(label_smoothing=0.1, aux_weight=0.4),  # 0.4
    ema_decay=0.9999,
    prepare=inception,
    size=342,
    crop=299,
    evaluation=PROTOCOLS["centre"].for_crop(299),
)

RESNET = Recipe(
    source="He et al. 2015, section 3.4",
    batch=256,
    iterations=600_000,
    schedule=Plateau(0.1),
    optimiser=SGD(weight_decay=1e-4),
    prepare=he,
    size=480,
    crop=224,
    weight_init="he",
    evaluation=PROTOCOLS["10crop"],
)

RESNET_CIFAR = Recipe(
    source="He et al. 2015, section 4.2",
    differs="All training images are used; the paper set 5,000 of 50,000 aside to find the schedule.",
    batch=128,
    iterations=64_000,
    schedule=Drops((0.1, 0.01, 0.001), (32 / 64, 16 / 64)),
    optimiser=SGD(weight_decay=1e-4),
    prepare=he_cifar,
    weight_init="he",
)

HIGHWAY = Recipe(
    source="Srivastava, Greff & Schmidhuber 2015, section 3",
    differs="Rate, momentum and decay of the rate were drawn in a random search and are not printed: these are ours.",
    batch=128,
    epochs=400,
    schedule=Staircase(0.01, 1 / 400, factor=0.99),
    optimiser=SGD(),
    prepare=pixels,
    weight_init="he",
)

DENSENET_CIFAR = Recipe(
    source="Huang et al. 2017, section 4.2",
    batch=64,
    epochs=300,
    schedule=Drops((0.1, 0.01, 0.001), (0.5, 0.25)),  # recalled, as are:
    optimiser=SGD(weight_decay=1e-4, nesterov=True),
    prepare=huang_cifar,
    weight_init="he",
)

MODERN = Recipe(  # recalled
    source="torchvision 2021, the recipe of the V2 weights of ResNet-50",
    differs="Mixup and cutmix follow each other; there one of them is drawn for each batch. Without TrivialAugment, "
    "random erasing and repeated images.",
    batch=1024,
    epochs=600,
    schedule=Cosine(0.5, warmup=5 / 600),
    optimiser=SGD(weight_decay=2e-5, decay_vectors=False),
    loss=cross_entropy(label_smoothing=0.1),
    ema_decay=0.99998,
    prepare=mixed,
    size=232,
    crop=176,
    evaluation=dataclasses.replace(PROTOCOLS["centre"], scales=(232,)),
)

RECIPES = {
    "lenet": LENET,
    "alexnet": ALEXNET,
    "zfnet": ZFNET,
    "nin": NIN,
    "vgg_A": VGG_A,
    "vgg": dataclasses.replace(VGG_A, start=Start("vgg_A", SEEDED)),
    "googlenet": GOOGLENET,
    "inception_v3": INCEPTION_V3,
    "resnet": RESNET,
    "resnet_cifar": RESNET_CIFAR,
    "resnet110_cifar": dataclasses.replace(  # 0.01 until the training error is below 80 %, about 400 iterations
        RESNET_CIFAR, schedule=Drops((0.01, 0.1, 0.01, 0.001), (400 / 64_000, 31_600 / 64_000, 16 / 64))
    ),
    "highway": HIGHWAY,
    "densenet_cifar": DENSENET_CIFAR,
    "densenet": dataclasses.replace(
        DENSENET_CIFAR, batch=256, epochs=90, schedule=Drops((0.1, 0.01, 0.001), (30 / 90, 30 / 90)), prepare=huang,
        size=256, crop=224, evaluation=PROTOCOLS["centre"],
    ),
    "modern": MODERN,
}  # fmt: skip
