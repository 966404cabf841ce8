"""Parity: a network of another library with random weights, and ours with the same weights converted, agree.

`pytest -m long tests/test_parity.py -s` prints family × source × error. Sizes are the smallest that a network takes
without its poolings or its classifier becoming trivial.
"""

import jax
import numpy as np
import peers
import pytest

from cnnjax.data.images import Transform
from cnnjax.weights import convert, save

pytestmark = pytest.mark.long

LARGEST = 1e-4
# fmt: off
CASES = {
    "timm": {"vgg11": 224, "vgg11_bn": 224, "resnet18": 96, "resnet50": 96, "densenet121": 96, "inception_v3": 139,
             "inception_v4": 139, "inception_resnet_v2": 139},
    "torchvision": {"alexnet": 224, "vgg11": 224, "vgg11_bn": 224, "googlenet": 96, "inception_v3": 139,
                    "resnet18": 96, "resnet50": 96, "densenet121": 96},
    "keras": {"vgg16": 224, "resnet50": 96, "resnet50_v2": 96, "densenet121": 96, "inception_v3": 139,
              "inception_resnet_v2": 139},
    "pytorchcv": {"alexnet": 224, "alexnetb": 224, "zfnet": 224, "nin_cifar10": 32, "vgg11": 224, "bninception": 224,
                  "resnet18": 224, "resnet50": 224, "resnet50b": 224, "preresnet50": 224, "resnet20_cifar10": 32,
                  "densenet121": 224, "densenet100_k12_bc_cifar10": 32, "inceptionv3": 299, "inceptionv4": 299,
                  "inceptionresnetv1": 299, "inceptionresnetv2": 299},
    "onnx": {"alexnet": 224, "zfnet512": 224, "googlenet": 224, "vgg19": 224, "resnet50": 224},
}
# fmt: on
TABLE = [(source, name, size) for source, row in CASES.items() for name, size in row.items()]


@pytest.mark.parametrize(("source", "architecture", "size"), TABLE, ids=lambda value: str(value))
def test_converted_weights_give_the_logits_of_their_library(source, architecture, size, capsys):
    tensors, logits = peers.case(source, architecture, size)
    images = np.random.default_rng(1).standard_normal((1, size, size, 3), np.float32)
    net, variables = convert.convert(source, architecture, tensors)
    forward = jax.jit(
        lambda variables, images: net.apply(variables, images).logits,
        compiler_options={"xla_backend_optimization_level": 1},
    )
    want, have = logits(images), np.asarray(forward(variables, images))
    error = np.abs(have - want).max() / np.abs(want).max()
    with capsys.disabled():
        print(f"\n{source:12} {architecture:28} {size:4}  {error:.1e}", end="")
    assert error <= LARGEST
    moved = np.abs(logits(np.zeros_like(images)) - want).max()
    assert moved > 1e-2 * np.abs(want).max(), "the logits hardly depend on the image: nothing is proved"
    back = convert.to_source(source, architecture, net, variables)
    keys = convert.file_keys(source, tensors)
    assert back.keys() == keys.keys()
    for key, name in keys.items():
        np.testing.assert_array_equal(back[key].reshape(tensors[name].shape), tensors[name], err_msg=name)


def test_timm_loads_what_we_save(tmp_path):
    timm = peers.library("timm")
    net = convert.network("timm", "resnet18", classes=7)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32)))
    variables = jax.tree.map(lambda leaf: rng.uniform(0.01, 0.1, leaf.shape).astype(np.float32), shapes)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    folder = save.save(
        tmp_path / "net", net, variables, image_shape=(64, 64, 3), transform=Transform((64, 64), mean=mean, std=std),
        data="none", recipe="none", accuracy={},
    )  # fmt: skip
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    read = model.pretrained_cfg
    assert (model.num_classes, tuple(read["mean"]), tuple(read["std"])) == (7, mean, std)
    torch = peers.library("torch")
    images = rng.standard_normal((1, 64, 64, 3), np.float32)
    with torch.no_grad():
        want = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    have = np.asarray(net.apply(variables, images).logits)
    assert np.abs(have - want).max() <= LARGEST * np.abs(want).max()
