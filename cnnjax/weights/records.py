"""Published weights: where they are, whose network they belong to, what it wants to see, and what it is known to score.

Accuracies are the publishers' own, top-1 and top-5 % on ImageNet's 50,000 validation images unless a protocol says
otherwise; nothing here was measured again. No weights come with this project.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from cnnjax.data.images import Transform
from cnnjax.download import cache_folder, fetch
from cnnjax.errors import CnnjaxError, unknown
from cnnjax.models.catalog import entry
from cnnjax.models.chain import Chain
from cnnjax.models.surgery import with_head
from cnnjax.weights.convert import convert, ours, port
from cnnjax.weights.read import read

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5,), "std": (0.5,)}
CENTRE = "one central crop"


@dataclasses.dataclass(frozen=True)
class Record:
    """A file of weights."""

    name: str
    source: str
    architecture: str
    """As `cnnjax.weights.ports.PORTS` calls it: it says which variant of our network this is."""
    url: str
    digest: str | None
    """"sha256:…", "sha1:…", "md5:…", or how it begins; None: not published. Of a zip: of the file in it."""
    licence: str
    transform: Transform
    top1: float | None = None
    top5: float | None = None
    protocol: str = CENTRE
    deviations: tuple[str, ...] = ()

    @property
    def restricted(self) -> bool:
        """Whether the licence forbids commercial use."""
        return "-NC" in self.licence


# What a source's network does otherwise than the paper, by (source, architecture) as "source/architecture".
DEVIATIONS: dict[str, tuple[str, ...]] = {
    r"(timm|torchvision)/resnet(50|101|152)": ("v1.5: the stride is on the 3×3, not on the first 1×1",),
    r"pytorchcv/resnet\d+b": ("v1.5: the stride is on the 3×3, not on the first 1×1",),
    r"keras/resnet\d+": ("convolutions have biases beside normalisation", "normalisation has ε 1.001e-5"),
    r"keras/resnet\d+_v2": ("the stride is in the last unit of a stage, on the 3×3", "some convolutions have biases"),
    r"keras/densenet\d+": ("normalisation has ε 1.001e-5",),
    r"caffe/resnet\d+": ("the first pooling rounds up instead of padding",),
    r".+/vgg\d+_bn": ("normalised after each convolution; the paper's is not",),
    r"torchvision/googlenet": (
        "a 3×3 stands for each 5×5",
        "normalised, without LRN",
        "its training heads are untrained",
    ),
    r"torchvision/alexnet|pytorchcv/alexnetb": ("one tower of 64-192-384-256-256 maps, no LRN",),
    r"pytorchcv/alexnet": ("one tower: no groups", "poolings round up", "LRN's α is divided by n"),
    r"pytorchcv/zfnet": ("LRN before the poolings", "LRN's α is divided by n"),
    r"pytorchcv/nin_cifar10": ("poolings pad instead of rounding up",),
    r"pytorchcv/bninception": ("convolutions have biases beside normalisation", "normalisation has ε 1e-5"),
    r"pytorchcv/preresnet\d+": ("the first unit, too, is normalised before its first convolution",),
    r"pytorchcv/resnet\d+_cifar10": ("shortcuts are projections where the shape changes: option B, not A",),
    r"caffe/alexnet": ("LRN has k 1 and its α is divided by n",),
    r"(timm|torchvision|pytorchcv)/inception_?v3": (
        "the released code's network, not Table 1's",
        "means count the padding",
    ),
    r"keras/inception_v3": ("the released code's network, not Table 1's", "normalisation without γ"),
    r"pytorchcv/inceptionresnetv1": ("a sixth C module without scaling and ReLU", "512 features before the classifier"),
    r".+/inception_?resnet_?v2": ("the released code's network: twice the paper's blocks, another stem",),
}


def _deviations(source: str, architecture: str) -> tuple[str, ...]:
    found = (said for which, said in DEVIATIONS.items() if re.fullmatch(which, f"{source}/{architecture}"))
    return next(found, ())


def _transform(size: int, crop_pct: float, interpolation: str, values: dict[str, Any]) -> Transform:
    return Transform((size, size), crop_pct=crop_pct, interpolation=interpolation, **values)  # type: ignore[arg-type]


def _record(
    name: str, source: str, architecture: str, url: str, digest: str | None, licence: str, **more: Any
) -> Record:
    return Record(
        name, source, architecture, url, digest, licence, deviations=_deviations(source, architecture), **more
    )


# fmt: off
BSD, APACHE, MIT, NC = "BSD-3-Clause", "Apache-2.0", "MIT", "CC-BY-NC-4.0"
# Name of the network, tag; top-1, top-5; crop and interpolation; licence. The first row of a network is its `.timm`.
TIMM = (
    ("vgg11",       "tv_in1k",   69.050, 88.630, .875, "bilinear", BSD),
    ("vgg13",       "tv_in1k",   69.950, 89.262, .875, "bilinear", BSD),
    ("vgg16",       "tv_in1k",   71.594, 90.398, .875, "bilinear", BSD),
    ("vgg19",       "tv_in1k",   72.400, 90.878, .875, "bilinear", BSD),
    ("vgg11_bn",    "tv_in1k",   70.374, 89.802, .875, "bilinear", BSD),
    ("vgg13_bn",    "tv_in1k",   71.560, 90.372, .875, "bilinear", BSD),
    ("vgg16_bn",    "tv_in1k",   73.354, 91.490, .875, "bilinear", BSD),
    ("vgg19_bn",    "tv_in1k",   74.230, 91.848, .875, "bilinear", BSD),
    ("resnet18",    "tv_in1k",   69.752, 89.082, .875, "bilinear", BSD),
    ("resnet18",    "a1_in1k",   71.504, 90.086, .95,  "bicubic",  APACHE),
    ("resnet18",    "gluon_in1k", 70.844, 89.750, .875, "bicubic", APACHE),
    ("resnet34",    "tv_in1k",   73.298, 91.422, .875, "bilinear", BSD),
    ("resnet34",    "a1_in1k",   76.420, 92.896, .95,  "bicubic",  APACHE),
    ("resnet50",    "tv_in1k",   76.156, 92.866, .875, "bilinear", BSD),
    ("resnet50",    "tv2_in1k",  80.846, 95.430, .965, "bilinear", BSD),
    ("resnet50",    "a1_in1k",   80.382, 94.598, .95,  "bicubic",  APACHE),
    ("resnet50",    "gluon_in1k", 77.580, 93.704, .875, "bicubic", APACHE),
    ("resnet50",    "fb_ssl_yfcc100m_ft_in1k", None, None, .875, "bilinear", NC),
    ("resnet101",   "tv_in1k",   77.404, 93.552, .875, "bilinear", BSD),
    ("resnet101",   "tv2_in1k",  81.906, 95.768, .965, "bilinear", BSD),
    ("resnet101",   "a1h_in1k",  81.950, 95.760, .95,  "bicubic",  APACHE),
    ("resnet152",   "tv_in1k",   78.330, 94.046, .875, "bilinear", BSD),
    ("resnet152",   "tv2_in1k",  82.294, 96.000, .965, "bilinear", BSD),
    ("resnet152",   "a1h_in1k",  82.818, 96.124, .95,  "bicubic",  APACHE),
    ("densenet121", "tv_in1k",   74.750, 92.158, .875, "bicubic",  APACHE),
    ("densenet121", "ra_in1k",   75.574, 92.648, .875, "bicubic",  APACHE),
    ("densenet161", "tv_in1k",   77.384, 93.656, .875, "bicubic",  APACHE),
    ("densenet169", "tv_in1k",   75.922, 92.976, .875, "bicubic",  APACHE),
    ("densenet201", "tv_in1k",   77.284, 93.480, .875, "bicubic",  APACHE),
    ("inception_v3", "tv_in1k",  77.472, 93.468, .875, "bicubic",  APACHE),
    ("inception_v3", "tf_in1k",  77.866, 93.644, .875, "bicubic",  APACHE),
    ("inception_v3", "tf_adv_in1k", 77.598, 93.726, .875, "bicubic", APACHE),
    ("inception_v3", "gluon_in1k", 78.806, 94.372, .875, "bicubic", APACHE),
    ("inception_v4", "tf_in1k",  80.144, 94.982, .875, "bicubic",  APACHE),
    ("inception_resnet_v2", "tf_in1k", 80.434, 95.312, .8975, "bicubic", APACHE),
    ("inception_resnet_v2", "tf_ens_adv_in1k", 79.998, 94.940, .8975, "bicubic", APACHE),
)
# Network; file, which ends with the beginning of its sha256; top-1, top-5; the shorter side before the crop.
TORCHVISION = (
    ("alexnet",      "alexnet-owt-7be5be79",         56.522, 79.066, 256),
    ("googlenet",    "googlenet-1378be20",           69.778, 89.530, 256),
    ("inception_v3", "inception_v3_google-0cc3c7bd", 77.294, 93.450, 342),
    ("vgg11",        "vgg11-8a719046",               69.020, 88.628, 256),
    ("vgg13",        "vgg13-19584684",               69.928, 89.246, 256),
    ("vgg16",        "vgg16-397923af",               71.592, 90.382, 256),
    ("vgg19",        "vgg19-dcbb9e9d",               72.376, 90.876, 256),
    ("vgg11_bn",     "vgg11_bn-6002323d",            70.370, 89.810, 256),
    ("vgg13_bn",     "vgg13_bn-abd245e5",            71.586, 90.374, 256),
    ("vgg16_bn",     "vgg16_bn-6c64b313",            73.360, 91.516, 256),
    ("vgg19_bn",     "vgg19_bn-c79401a0",            74.218, 91.842, 256),
    ("resnet18",     "resnet18-f37072fd",            69.758, 89.078, 256),
    ("resnet34",     "resnet34-b627a593",            73.314, 91.420, 256),
    ("resnet50",     "resnet50-0676ba61",            76.130, 92.862, 256),
    ("resnet50.v2",  "resnet50-11ad3fa6",            80.858, 95.434, 232),
    ("resnet101",    "resnet101-63fe2227",           77.374, 93.546, 256),
    ("resnet101.v2", "resnet101-cd907fc2",           81.886, 95.780, 232),
    ("resnet152",    "resnet152-394f9c45",           78.312, 94.046, 256),
    ("resnet152.v2", "resnet152-f82ba261",           82.284, 96.002, 232),
    ("densenet121",  "densenet121-a639ec97",         74.434, 91.972, 256),
    ("densenet161",  "densenet161-8d451a50",         77.138, 93.560, 256),
    ("densenet169",  "densenet169-b2777c0a",         75.600, 92.806, 256),
    ("densenet201",  "densenet201-c1103571",         76.896, 93.370, 256),
)
# Network; release, top-5 error × 100 and hash in the file's name; sha1 of the .pth in the zip; top-1, top-5 error.
PYTORCHCV = (
    ("alexnet",     "v0.0.481", "1664", "2768cdb312d584e33e93f31b0c569589bb289749", 38.50, 16.64),
    ("alexnetb",    "v0.0.485", "1747", "ac887bf7eada4179857d243584ac30b4d74a6493", 39.74, 17.47),
    ("zfnet",       "v0.0.395", "1727", "d010ddca1eb32a50a8cceb475c792f53e769b631", 39.79, 17.27),
    ("vgg11",       "v0.0.381", "1036", "71e85f6ef76f56e3e89d597d2fc461496ed281e9", 29.90, 10.36),
    ("vgg13",       "v0.0.388", "0975", "2b2c8770a7610d9dcd444ec8ae992681e270eb42", None,  9.75),
    ("vgg16",       "v0.0.401", "0865", "5ca155da3dc6687e070ff34815cb5aabd0bed4b9", 26.98, 8.65),
    ("vgg19",       "v0.0.420", "0790", "9bd923a82ece9f038e944d7666f1c11b478dc7e6", 25.74, 7.90),
    ("bninception", "v0.0.405", "0774", "d79ba5f573ba2da5fea5e4c9a7f67ddd526e234b", 25.37, 7.74),
    ("resnet18",    "v0.0.478", "0896", "77a56f155214819bfc79ff09795370f955b20e6d", 26.94, 8.96),
    ("resnet34",    "v0.0.291", "0780", "3f775482a327e5fc4850fbb77785bfc55e171e5f", 24.84, 7.80),
    ("resnet50",    "v0.0.329", "0633", "b00d1c8e52aa7a2badc705b1545aaf6ccece6ce9", 22.28, 6.33),
    ("resnet50b",   "v0.0.308", "0638", "8a5473ef985d65076a3758117ad5700d726bd952", 22.39, 6.38),
    ("resnet101",   "v0.0.499", "0540", "65faf44721096a75fa72b875efb416513f864078", None,  5.40),
    ("resnet152",   "v0.0.518", "0468", "d46977ddb5660bb523e9f2de50e5d16cef8e3027", 19.29, 4.68),
    ("preresnet50", "v0.0.330", "0647", "222ca73b021f893b925c15e24ea2a6bc0fdf2546", None,  6.47),
    ("densenet121", "v0.0.314", "0704", "cf90d1394d197fde953f57576403950345bd0a66", 23.48, 7.04),
    ("densenet161", "v0.0.432", "0606", "da489277afe7f53048ec15bed7919486e22f1afa", None,  6.06),
    ("densenet169", "v0.0.406", "0629", "44974a17309bb378e97c8f70f96f961ffbf9458d", None,  6.29),
    ("densenet201", "v0.0.426", "0612", "6adc8625a4afa53e335272bab01b4908a0ca3f00", None,  6.12),
    ("inceptionv3", "v0.0.552", "0533", "025fb71c673f8e325f4c24f25cbd4185540cca72", 20.44, 5.33),
    ("inceptionv4", "v0.0.543", "0488", "4ae4f331a5ff649e39626fc49cd5c24b8159cd8c", 19.83, 4.88),
    ("inceptionresnetv1", "v0.0.552", "0480", "f8b3e9e369ff38e28b4ae4def273ef78741e2e28", 19.63, 4.80),
    ("inceptionresnetv2", "v0.0.547", "0474", "19f51781f8a454803207e319289f404d50e252cb", 19.40, 4.74),
    ("nin_cifar10", "v0.0.175", "0743", "795b082470b58c1aa94e2f861514b7914f6e2f58", 7.43, None),
    ("resnet20_cifar10",   "v0.0.163", "0597", "9b0024ac4c2f374cde2c5052e0d0344a75871cdb", 5.97, None),
    ("resnet56_cifar10",   "v0.0.163", "0452", "628c42a26fe347b84060136212e018df2bb35e0f", 4.52, None),
    ("resnet110_cifar10",  "v0.0.163", "0369", "4d6ca1fc02eaeed724f4f596011e391528536049", 3.69, None),
    ("resnet1202_cifar10", "v0.0.214", "0353", "1d5a21290117903fb5fd6ba59f3f7e7da7c08836", 3.53, None),
    ("densenet100_k12_bc_cifar10", "v0.0.189", "0416", "b9232829b13c3f3f2ea15f4be97f500b7912c3c2", 4.16, None),
)
CAFFE_VALUES = {"order": "BGR", "scale": 255, "mean": (103.939, 116.779, 123.68)}
OXFORD, HE = "CC-BY (Oxford's weights; an early release said non-commercial research only)", "MIT (He et al.'s weights)"
# Network; folder and file; md5; what it wants to see; top-1, top-5 by keras.io; licence.
KERAS = (
    ("vgg16",        "vgg16/vgg16",             "64373286793e3c8b2b4e3219cbf3544b", CAFFE_VALUES, 71.3, 90.1, "CC-BY"),
    ("vgg19",        "vgg19/vgg19",             "cbe5617147190e668d6c5d5026f83318", CAFFE_VALUES, 71.3, 90.0, "CC-BY"),
    ("resnet50",     "resnet/resnet50",         "2cb95161c43110f7111970584f804107", CAFFE_VALUES, 74.9, 92.1, HE),
    ("resnet101",    "resnet/resnet101",        "f1aeb4b969a6efcfb50fad2f0c20cfc5", CAFFE_VALUES, 76.4, 92.8, HE),
    ("resnet152",    "resnet/resnet152",        "100835be76be38e30d865e96f2aaae62", CAFFE_VALUES, 76.6, 93.1, HE),
    ("resnet50_v2",  "resnet/resnet50v2",       "3ef43a0b657b3be2300d5770ece849e0", HALF, 76.0, 93.0, MIT),
    ("resnet101_v2", "resnet/resnet101v2",      "6343647c601c52e1368623803854d971", HALF, None, None, MIT),
    ("densenet121",  "densenet/densenet121",    "9d60b8095a5708f2dcce2bca79d332c7", IMAGENET, 75.0, 92.3, MIT),
    ("densenet169",  "densenet/densenet169",    "d699b8f76981ab1b30698df4c175e90b", IMAGENET, None, None, MIT),
    ("densenet201",  "densenet/densenet201",    "1ceb130c1ea1b78c3bf6114dbdfd8807", IMAGENET, None, None, MIT),
    ("inception_v3", "inception_v3/inception_v3", "9a0d58056eeedaa3f26cb7ebd46da564", HALF, 77.9, 93.7, MIT),
    ("inception_resnet_v2", "inception_resnet_v2/inception_resnet_v2", "e693bd0210a403b3192acc6073ad2e96", HALF,
     80.3, 95.3, MIT),
)
BVLC = {"order": "BGR", "scale": 255, "mean": (104.0, 117.0, 123.0)}
CAFFE = (
    ("alexnet",   "bvlc_alexnet",   "sha1:9116a64c0fbe4459d18f4bb6b56d647b63920377", 57.1, 80.2),
    ("googlenet", "bvlc_googlenet", "sha1:405fc5acd08a3bb12de8ee5e23a96bec22f08204", 68.7, 88.9),
)
# fmt: on


def _timm() -> list[Record]:
    records, seen = [], set()
    for architecture, tag, top1, top5, crop, interpolation, licence in TIMM:
        inception = architecture.startswith("inception")
        values = HALF if inception and tag != "gluon_in1k" else IMAGENET
        records.append(_record(
            f"{architecture}.timm" if architecture not in seen else f"{architecture}.timm.{tag}",
            "timm", architecture, f"https://huggingface.co/timm/{architecture}.{tag}/resolve/main/model.safetensors",
            None, licence, top1=top1, top5=top5,
            transform=_transform(299 if inception else 224, crop, interpolation, values),
        ))  # fmt: skip
        seen.add(architecture)
    return records


def _torchvision() -> list[Record]:
    records = []
    for name, file, top1, top5, side in TORCHVISION:
        architecture, _, version = name.partition(".")
        size = port("torchvision", architecture).size
        # These two subtract other means inside the network (transform_input), which comes to inputs of -1 to 1
        values = HALF if architecture in ("googlenet", "inception_v3") else IMAGENET
        records.append(_record(
            f"{architecture}.torchvision" + (f".{version}" if version else ""), "torchvision", architecture,
            f"https://download.pytorch.org/models/{file}.pth", f"sha256:{file.rpartition('-')[2]}", BSD,
            top1=top1, top5=top5, transform=_transform(size, size / side, "bilinear", values),
        ))  # fmt: skip
    return records


def _pytorchcv() -> list[Record]:
    base, records = "https://github.com/osmr/imgclsmob/releases/download", []
    for architecture, release, error, sha1, top1, top5 in PYTORCHCV:
        row = port("pytorchcv", architecture)
        cifar = architecture.endswith("cifar10")
        values = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)} if cifar else IMAGENET
        records.append(_record(
            f"{architecture}.pytorchcv", "pytorchcv", architecture,
            f"{base}/{release}/{architecture}-{error}-{sha1[:8]}.pth.zip", f"sha1:{sha1}", MIT,
            top1=top1 and round(100 - top1, 2), top5=top5 and round(100 - top5, 2),
            protocol="CIFAR-10's 10,000 test images" if cifar else CENTRE,
            transform=_transform(row.size, 1.0 if cifar else 0.875, "bilinear", values),
        ))  # fmt: skip
    return records


def _keras() -> list[Record]:
    base = "https://storage.googleapis.com/tensorflow/keras-applications"
    return [
        _record(
            f"{architecture}.keras", "keras", architecture,
            f"{base}/{file}_weights_tf_dim_ordering_tf_kernels.h5", f"md5:{md5}",
            OXFORD if licence == "CC-BY" else licence, top1=top1, top5=top5, protocol="one crop, by keras.io",
            transform=_transform(port("keras", architecture).size, 0.875, "bilinear", values),
        )
        for architecture, file, md5, values, top1, top5, licence in KERAS
    ]  # fmt: skip


def _caffe() -> list[Record]:
    """Both sides were squashed to 256 before the crop."""
    base, records = "http://dl.caffe.berkeleyvision.org", []
    for architecture, file, digest, top1, top5 in CAFFE:
        size = port("caffe", architecture).size
        records.append(_record(
            f"{architecture}.caffe", "caffe", architecture, f"{base}/{file}.caffemodel", digest, "unrestricted",
            top1=top1, top5=top5, transform=_transform(size, size / 256, "bilinear", {**BVLC, "resize": "squash"}),
        ))  # fmt: skip
    return records


RECORDS: dict[str, Record] = {
    record.name: record for record in (*_timm(), *_torchvision(), *_keras(), *_pytorchcv(), *_caffe())
}


def record(name: str) -> Record:
    """A record by its name, "vgg16.timm". Raises `CnnjaxError` naming those of the same network."""
    if name in RECORDS:
        return RECORDS[name]
    network = name.partition(".")[0]
    similar = [known for known in RECORDS if known.partition(".")[0] == network]
    raise unknown("weights", name, similar or [known for known in RECORDS if known.count(".") == 1])


def load(
    name: str,
    *,
    file: str | Path | None = None,
    cache: Path | None = None,
    hub: bool = False,
    accept_noncommercial: bool = False,
) -> tuple[Chain, dict[str, Any], Transform, Record]:
    """A published network: itself, its variables, what it wants to see, and its record, of which two lines are printed.

    `name`: a key of `RECORDS`, or a folder that `cnnjax.weights.save` wrote. `file`: a copy of the file, for a machine
    without a network; nothing is downloaded then, and the result is the same. `hub`: fetch by huggingface_hub, into its
    own cache.

    Raises `CnnjaxError` for an unknown name, a licence that has not been accepted, a download that fails or is not the
    file it should be, and weights that do not fit.
    """
    if Path(name).is_dir():
        net, variables, known = _saved(Path(name))
        print(described(known))
        return net, variables, known.transform, known
    known = record(name)
    if known.restricted and not accept_noncommercial:
        raise CnnjaxError(
            f"the weights {name} are under {known.licence}: no commercial use\n"
            "say accept_noncommercial=True (--accept-noncommercial) if yours is none"
        )
    path = Path(file) if file is not None else _fetched(known, cache or cache_folder(), hub)
    net, variables = convert(known.source, known.architecture, read(path))
    print(described(known))
    return net, variables, known.transform, known


def described(known: Record) -> str:
    """Two lines: the licence and what is known of the accuracy; the deviations from the paper."""
    scores = [f"{what} {value:.1f} %" for what, value in (("top-1", known.top1), ("top-5", known.top5)) if value]
    score = f"; {', '.join(scores)} ({known.protocol}, as published)" if scores else ""
    return (
        f"{known.name}: licence {known.licence}{score}; trained on images under their own terms\n"
        f"{known.name}: {'; '.join(known.deviations) or 'as in the paper'}"
    )


def _saved(folder: Path) -> tuple[Chain, dict[str, Any], Record]:
    """What is in a folder that `save` wrote."""
    file = folder / "config.json"
    try:
        facts = json.loads(file.read_text())["cnnjax"]
        known = Record(
            name=str(folder), source=facts["source"], architecture=facts["architecture"],
            url=(folder / "model.safetensors").resolve().as_uri(), digest=facts["digest"], licence=facts["licence"],
            transform=_as_transform(facts["transform"]), top1=facts["accuracy"].get("top-1"),
            top5=facts["accuracy"].get("top-5"), protocol=facts["data"],
        )  # fmt: skip
        classes, image_shape = int(facts["classes"]), tuple(facts["image_shape"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CnnjaxError(
            f"{file} is not what saving a network writes: {type(error).__name__} {error}\n"
            f"legal: a folder that was saved, or one of {', '.join(list(RECORDS)[:3])}, …"
        ) from None
    tensors = read(folder / "model.safetensors")
    if known.source != "cnnjax":
        net, variables = convert(known.source, known.architecture, tensors, classes=classes)
        return net, variables, known
    net = with_head(entry(known.architecture).make(), classes)
    return net, ours(net, tensors, image_shape), known


def _as_transform(fields: dict[str, Any]) -> Transform:
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    return Transform(**values)


def _fetched(known: Record, cache: Path, hub: bool) -> Path:
    path = cache / "weights" / known.name / known.url.rpartition("/")[2]
    try:
        if hub:
            return _from_hub(known)
        return fetch(known.url, path, known.digest)
    except CnnjaxError as error:
        raise CnnjaxError(f"{error}\nwhere you have the file, give it: file=PATH") from error


def _from_hub(known: Record) -> Path:
    matched = re.fullmatch(r"https://huggingface\.co/(.+)/resolve/main/(.+)", known.url)
    if matched is None:
        raise CnnjaxError(f"{known.name} is not on the Hugging Face hub but at {known.url}")
    try:
        from huggingface_hub import hf_hub_download  # type: ignore[import-not-found]
    except ImportError as error:
        raise CnnjaxError("huggingface_hub is missing\npip install 'cnnjax[hub]'") from error
    try:
        return Path(hf_hub_download(matched[1], matched[2]))
    except Exception as error:  # its own kinds, of several libraries
        raise CnnjaxError(f"cannot download {known.url}\n{' '.join(str(error).split())[:200]}") from error
