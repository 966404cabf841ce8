"""Other libraries' networks with random weights, for parity: what they hold by name, and what they make of images.

torchvision's wheel for CUDA does not load its compiled operations beside torch's CPU build; the networks need none.
"""

import importlib
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Case = tuple[dict[str, np.ndarray], Callable[[np.ndarray], np.ndarray]]
"""The arrays by the library's names, and a function from images [1, height, width, 3] to logits [1, classes]."""


def library(name: str) -> Any:
    """Import a library, or skip the test."""
    if name in ("torchvision.models", "timm", "pytorchcv.model_provider"):
        pytest.importorskip("torch", reason="parity needs the extra `peers`")
        sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
    os.environ.setdefault("KERAS_BACKEND", "jax")
    return pytest.importorskip(name, reason="parity needs the extra `peers`")


def value(rng: np.random.Generator, name: str, shape: tuple[int, ...], *, outputs: int = 0) -> np.ndarray:
    """Weights that keep the scale, so that logits tell images apart; normalisations whose every array matters.

    outputs: the axis of a kernel that counts what it computes.
    """
    if len(shape) > 1:
        fan_in = np.prod(shape) / shape[outputs]
        return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / fan_in))
    if name.endswith(("var", "variance", "gamma", "weight", "_s_0", "_riv_0")):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return rng.standard_normal(shape, np.float32) * np.float32(0.1)


def torch_case(model: Any, seed: int) -> Case:
    import torch

    rng, state = np.random.default_rng(seed), model.state_dict()
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            tensor.copy_(torch.from_numpy(value(rng, name, tuple(tensor.shape))))
    model.eval()

    def logits(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()

    return {name: tensor.numpy() for name, tensor in state.items()}, logits


def keras_case(model: Any, seed: int) -> Case:
    rng, tensors = np.random.default_rng(seed), {}
    for layer in model.layers:
        for weight in layer.weights:
            tensors[f"{layer.name}/{weight.name}"] = value(rng, weight.name, tuple(weight.shape), outputs=-1)
            weight.assign(tensors[f"{layer.name}/{weight.name}"])
    return tensors, lambda images: np.asarray(model(images, training=False))


def onnx_case(name: str, seed: int) -> Case:
    """A light graph of the wheel `onnx`, whose constants become weights; it ends before the softmax."""
    onnx, onnxruntime = library("onnx"), library("onnxruntime")
    file = Path(onnx.__file__).parent / "backend/test/data/light" / f"light_{name}.onnx"
    model = onnx.load(file)
    rng, tensors, kept = np.random.default_rng(seed), {}, []
    made = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape":
            shape = tuple(made[node.input[0]])
            tensors[node.output[0]] = value(rng, node.output[0], shape)
        elif node.op_type == "Softmax":
            ends = node.input[0]
        else:
            kept.append(node)
    for key, array in made.items():
        if key.endswith(("_w_0", "_b_0", "_s_0", "_rm_0", "_riv_0")):
            tensors[key] = value(rng, key, array.shape)
    used = {name for node in kept for name in node.input}
    rest = [item for item in model.graph.initializer if item.name in used - tensors.keys()]
    initialisers = [*rest, *(onnx.numpy_helper.from_array(array, key) for key, array in tensors.items())]
    images_name = next(item.name for item in model.graph.input if item.name.endswith("data_0"))
    graph = onnx.helper.make_graph(
        kept,
        "light",
        [item for item in model.graph.input if item.name == images_name],
        [onnx.helper.make_tensor_value_info(ends, onnx.TensorProto.FLOAT, [1, 1000])],
        initialisers,
    )
    whole = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    session = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    return tensors, lambda images: session.run(None, {images_name: images.transpose(0, 3, 1, 2).copy()})[0]


def case(source: str, architecture: str, size: int, seed: int = 0) -> Case:
    if source == "timm":
        return torch_case(library("timm").create_model(architecture), seed)
    if source == "torchvision":
        models = library("torchvision.models")
        aux = {"init_weights": False} if architecture in ("googlenet", "inception_v3") else {}
        return torch_case(getattr(models, architecture)(**aux), seed)
    if source == "pytorchcv":
        model = library("pytorchcv.model_provider").get_model(architecture)
        return torch_case(model, seed)
    if source == "keras":
        library("keras")
        module = importlib.import_module("keras.applications")
        make = getattr(module, KERAS[architecture])
        return keras_case(make(weights=None, input_shape=(size, size, 3), classifier_activation=None), seed)
    return onnx_case(ONNX[architecture], seed)


KERAS = {
    "vgg16": "VGG16",
    "vgg19": "VGG19",
    "resnet50": "ResNet50",
    "resnet50_v2": "ResNet50V2",
    "densenet121": "DenseNet121",
    "inception_v3": "InceptionV3",
    "inception_resnet_v2": "InceptionResNetV2",
}
ONNX = {
    "alexnet": "bvlc_alexnet",
    "googlenet": "inception_v1",
    "zfnet512": "zfnet512",
    "vgg19": "vgg19",
    "resnet50": "resnet50",
}
