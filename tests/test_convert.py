"""Weights of other libraries: names, layouts, the way back, and what a file that does not fit is told."""

import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import FACTS

from cnnjax.data.images import Transform, normalise
from cnnjax.errors import CnnjaxError
from cnnjax.weights import convert
from cnnjax.weights.ports import PORTS

ALL = [(source, architecture) for source, ports in PORTS.items() for architecture in ports]
QUICK = [
    ("timm", "resnet18"),
    ("torchvision", "alexnet"),
    ("torchvision", "googlenet"),
    ("pytorchcv", "nin_cifar10"),
    ("pytorchcv", "resnet20_cifar10"),
    ("keras", "densenet121"),
    ("keras", "inception_v3"),
    ("caffe", "googlenet"),
    ("caffe", "resnet50"),
    ("onnx", "resnet50"),
]


def random_tensors(source: str, architecture: str, net=None) -> dict[str, np.ndarray]:
    """A file with a source's real keys and shapes."""
    rng, tensors = np.random.default_rng(0), {}
    for leaf in convert.leaves(source, architecture, net or convert.network(source, architecture)):
        tensors[leaf.key] = rng.random(leaf.source_shape, np.float32)
        if leaf.factor:
            tensors[leaf.factor] = np.ones(1, np.float32)
    return tensors


@pytest.mark.parametrize(("source", "architecture"), QUICK)
def test_the_way_there_and_back_changes_no_bit(source, architecture):
    tensors = random_tensors(source, architecture)
    net, variables = convert.convert(source, architecture, tensors)
    back = convert.to_source(source, architecture, net, variables)
    assert back.keys() == tensors.keys()
    for key, array in tensors.items():
        assert back[key].dtype == np.float32
        np.testing.assert_array_equal(back[key], array, err_msg=key)
    again = convert.convert(source, architecture, back)[1]
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def check_names(source, architecture):
    row, net = PORTS[source][architecture], convert.network(source, architecture)
    leaves = convert.leaves(source, architecture, net)
    want = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, row.size, row.size, 3))))
    assert len(leaves) == len(jax.tree.leaves(want)) == len({leaf.key for leaf in leaves})


@pytest.mark.parametrize(("source", "architecture"), QUICK)
def test_every_array_has_one_name(source, architecture):
    check_names(source, architecture)


@pytest.mark.long
@pytest.mark.parametrize(("source", "architecture"), [row for row in ALL if row not in QUICK])
def test_every_array_has_one_name_in_all_ports(source, architecture):
    check_names(source, architecture)


SOURCE = {"tv": "torchvision", "timm": "timm"}
KNOWN = [
    (SOURCE[kind], name.partition(".")[0], facts)
    for key, facts in FACTS["state_dict"].items()
    for kind, _, name in [key.partition(":")]
    if name.partition(".")[0] in PORTS[SOURCE[kind]]
]


@pytest.mark.parametrize(("source", "architecture", "facts"), KNOWN, ids=[f"{s}-{a}" for s, a, _ in KNOWN])
def test_names_and_shapes_are_those_of_the_library(source, architecture, facts):
    net = convert.network(source, architecture)
    if source == "timm":
        net = net.clone(aux=())
    shapes = {leaf.key: list(leaf.source_shape) for leaf in convert.leaves(source, architecture, net)}
    counters = sum(key.endswith("running_mean") for key in shapes)
    assert len(shapes) + counters == facts["n"]
    for key, shape in (*facts["first"], *facts["last"]):
        assert key.endswith("num_batches_tracked") or shapes[key] == shape
    assert all(key in shapes or key.endswith("num_batches_tracked") for key in facts["mid"])


# As the published prototxt files have them.
CAFFE = {
    "alexnet": {"conv2.0": (256, 48, 5, 5), "conv3.0": (384, 256, 3, 3), "fc6.0": (4096, 9216), "fc8.1": (1000,)},
    "googlenet": {"conv1/7x7_s2.0": (64, 3, 7, 7), "inception_3a/5x5.0": (32, 16, 5, 5), "loss1/fc.0": (1024, 2048),
                  "loss2/classifier.0": (1000, 1024), "loss3/classifier.1": (1000,)},
    "nin_imagenet": {"conv4-1024.0": (1024, 384, 3, 3), "cccp8-1024.0": (1000, 1024, 1, 1)},
    "vgg16": {"conv5_3.0": (512, 512, 3, 3), "fc6.0": (4096, 25088)},
    "resnet50": {"conv1.1": (64,), "bn_conv1.0": (64,), "scale_conv1.1": (64,), "res4f_branch2c.0": (1024, 256, 1, 1),
                 "scale3d_branch2a.0": (128,), "res5a_branch1.0": (2048, 1024, 1, 1), "fc1000.1": (1000,)},
    "resnet101": {"res4b22_branch2a.0": (256, 1024, 1, 1), "bn3b3_branch2b.1": (128,), "scale2c_branch2a.0": (64,)},
    "resnet152": {"res4b35_branch2c.0": (1024, 256, 1, 1), "res3b7_branch2a.0": (128, 512, 1, 1)},
}  # fmt: skip


@pytest.mark.parametrize("architecture", CAFFE)
def test_names_and_shapes_are_those_of_the_caffe_model(architecture):
    net = convert.network("caffe", architecture)
    shapes = {leaf.key: leaf.source_shape for leaf in convert.leaves("caffe", architecture, net)}
    assert CAFFE[architecture].items() <= shapes.items()
    assert architecture not in ("resnet101", "resnet152") or "conv1.1" not in shapes


def changed(tensors, **edits):
    return {key: edits.get(key, array) for key, array in tensors.items() if edits.get(key, array) is not None}


def test_what_does_not_fit_is_a_table():
    tensors = random_tensors("pytorchcv", "resnet20_cifar10")
    first, last = "features.init_block.conv.weight", "output.weight"
    bad = {**changed(tensors, **{first: None, last: np.zeros((100, 64), np.float32)}), "extra": np.zeros(3)}
    with pytest.raises(CnnjaxError) as error:
        convert.convert("pytorchcv", "resnet20_cifar10", bad)
    assert str(error.value).splitlines() == [
        "the weights do not fit resnet20_cifar10 of pytorchcv:",
        f"  missing: {first}",
        "  unexpected: extra",
        f"  different: {last}: have 100×64, want 10×64",
    ]


def test_another_number_of_classes_is_asked_for():
    net = convert.network("pytorchcv", "resnet20_cifar10", classes=7)
    tensors = random_tensors("pytorchcv", "resnet20_cifar10", net)
    with pytest.raises(CnnjaxError, match="have 7×64, want 10×64"):
        convert.convert("pytorchcv", "resnet20_cifar10", tensors)
    assert convert.convert("pytorchcv", "resnet20_cifar10", tensors, classes=7)[0] == net


def test_a_device_gets_an_array_when_all_of_it_is_turned(monkeypatch):
    """On a CPU the device shares the array's memory and would see what is turned later; elsewhere it would not."""
    tensors = random_tensors("pytorchcv", "nin_cifar10")
    want = convert.convert("pytorchcv", "nin_cifar10", tensors)[1]
    take, put = convert._take, convert._put
    monkeypatch.setattr(convert, "_take", lambda *a: (time.sleep(0.02), take(*a)))
    monkeypatch.setattr(convert, "_put", lambda tree, place, value: put(tree, place, value.copy()))
    chex.assert_trees_all_equal(convert.convert("pytorchcv", "nin_cifar10", tensors)[1], want)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(wrong):
    tensors = random_tensors("pytorchcv", "nin_cifar10")
    tensors["features.stage2.unit1.conv.bias"][5] = wrong
    with pytest.raises(CnnjaxError, match=r"'features.stage2.unit1.conv.bias' hold 1 value"):
        convert.convert("pytorchcv", "nin_cifar10", tensors)


def test_unknown_sources_and_networks_name_the_legal_ones():
    with pytest.raises(CnnjaxError, match="legal: timm, torchvision"):
        convert.network("mxnet", "vgg16")
    with pytest.raises(CnnjaxError, match="vgg16"):
        convert.network("timm", "vgg17")


def test_nothing_is_read_before_all_names_fit():
    class Never(dict):
        def __getitem__(self, key):
            array = super().__getitem__(key)
            return array if key == "extra" else np.broadcast_to(array, array.shape)

    tensors = random_tensors("pytorchcv", "resnet20_cifar10")
    tensors["output.bias"][0] = np.nan
    with pytest.raises(CnnjaxError, match="unexpected: extra"):
        convert.convert("pytorchcv", "resnet20_cifar10", Never(tensors, extra=np.zeros(1)))


def same(source, architecture, tensors, other):
    one, two = (convert.convert(source, architecture, t)[1] for t in (tensors, other))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_counters_and_wrappers_of_torch_are_passed_over():
    tensors = random_tensors("pytorchcv", "resnet20_cifar10")
    other = {f"module.{key}": array for key, array in tensors.items()}
    other["module.features.init_block.bn.num_batches_tracked"] = np.array(7)
    same("pytorchcv", "resnet20_cifar10", tensors, other)


def test_densenets_first_names_are_known():
    tensors = random_tensors("torchvision", "densenet121")
    old = {
        key.replace("norm1", "norm.1").replace("norm2", "norm.2").replace("conv1", "conv.1").replace("conv2", "conv.2")
        if "denselayer" in key else key: array
        for key, array in tensors.items()
    }  # fmt: skip
    assert old.keys() != tensors.keys()
    same("torchvision", "densenet121", tensors, old)


def test_keras_counters_may_start_anywhere_and_keys_may_be_paths():
    tensors = random_tensors("keras", "inception_v3")

    def late(key):
        layer, leaf = key.split("/")
        kind, _, number = layer.rpartition("_")
        if layer in ("conv2d", "batch_normalization"):
            layer = f"{layer}_189"
        elif kind in ("conv2d", "batch_normalization"):
            layer = f"{kind}_{int(number) + 189}"
        return f"{layer}/{layer}/{leaf}:0"

    same("keras", "inception_v3", tensors, {late(key): array for key, array in reversed(tensors.items())})


@pytest.mark.parametrize(("key", "read"), [
    ("block1_conv1/block1_conv1_W_1:0", "block1_conv1/kernel"),
    ("block1_conv1/block1_conv1_b_1:0", "block1_conv1/bias"),
    ("conv1/bn/conv1/bn/moving_mean:0", "conv1_bn/moving_mean"),
    ("conv1_bn/conv1_bn/gamma:0", "conv1_bn/gamma"),
    ("fc1/kernel", "fc1/kernel"),
])  # fmt: skip
def test_keys_of_every_keras_are_read(key, read):
    assert convert.SOURCES["keras"].read_key(key) == read


def test_caffe_statistics_are_divided_by_their_factor():
    tensors = random_tensors("caffe", "resnet50")
    scaled = {
        key: array * np.float32(4) if key.startswith("bn") else array
        for key, array in tensors.items()
    }  # fmt: skip
    assert scaled["bn_conv1.2"][0] == 4
    same("caffe", "resnet50", tensors, scaled)


def test_four_axes_of_old_caffe_files_are_read():
    tensors = random_tensors("caffe", "googlenet")
    old = {
        key: array.reshape((1,) * (4 - array.ndim) + array.shape) if key.startswith(("loss", "conv1")) else array
        for key, array in tensors.items()
    }
    assert old["loss3/classifier.0"].shape == (1, 1, 1000, 1024)
    same("caffe", "googlenet", tensors, old)


def test_heads_that_a_file_lacks_are_left_out():
    tensors = random_tensors("torchvision", "googlenet")
    net, variables = convert.convert("torchvision", "googlenet", tensors)
    assert {head.name for head in net.aux} == {"aux_4a", "aux_4d"}
    bare = {key: array for key, array in tensors.items() if not key.startswith("aux")}
    net, variables = convert.convert("torchvision", "googlenet", bare)
    assert not net.aux and "aux_4a" not in variables["params"]
    with pytest.raises(CnnjaxError, match=r"missing: aux1\.fc1\.weight"):
        convert.convert("torchvision", "googlenet", {k: a for k, a in tensors.items() if k != "aux1.fc1.weight"})


def test_a_dense_kernel_is_flattened_row_by_row():
    """What stands at map c, row h, column w of a torch weight is at h, w, c of ours."""
    tensors = random_tensors("torchvision", "alexnet")
    kernel = convert.convert("torchvision", "alexnet", tensors)[1]["params"]["fc6"]["kernel"]
    c, h, w, out = 7, 1, 4, 1000
    assert kernel.reshape(6, 6, 256, 4096)[h, w, c, out] == tensors["classifier.1.weight"][out, c * 36 + h * 6 + w]


def test_our_own_names_go_there_and_back():
    net = convert.network("pytorchcv", "resnet20_cifar10")
    variables = convert.convert("pytorchcv", "resnet20_cifar10", random_tensors("pytorchcv", "resnet20_cifar10"))[1]
    tensors = convert.to_ours(variables)
    assert {"conv1/kernel", "conv1/norm/mean", "conv3_1/shortcut/norm/scale", "fc/bias"} <= tensors.keys()
    jax.tree.map(np.testing.assert_array_equal, convert.ours(net, tensors, (32, 32, 3)), variables)
    with pytest.raises(CnnjaxError, match="different: fc/bias: have 9, want 10"):
        convert.ours(net, {**tensors, "fc/bias": np.zeros(9)}, (32, 32, 3))


def test_the_order_of_the_channels_is_folded_into_the_first_layer():
    net = convert.network("pytorchcv", "resnet20_cifar10")
    variables = net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    bgr = Transform((32, 32), order="BGR", scale=255, mean=(103.939, 116.779, 123.68), std=(2.0, 3.0, 4.0))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    want = net.apply(variables, normalise(bgr, images)).logits
    folded, rgb = convert.as_rgb(net, variables, bgr)
    assert (rgb.order, rgb.mean) == ("RGB", (123.68, 116.779, 103.939))
    np.testing.assert_allclose(net.apply(folded, normalise(rgb, images)).logits, want, rtol=1e-4)
    assert not np.allclose(net.apply(variables, normalise(rgb, images)).logits, want, rtol=1e-2)
    assert convert.as_rgb(net, folded, rgb)[1] == rgb
