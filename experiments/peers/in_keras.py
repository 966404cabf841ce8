"""The network as a user of Keras writes it, on the JAX backend: a functional model, `train_on_batch`,
`predict_on_batch`.
"""

import os
import time

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np

from cnnjax.models.ops import pair
from experiments.peers import LEARNING_RATE, MOMENTUM, Running, Task, explicit, kept_programs, leaf, same, through


class Symbols:
    """A chain's rows as Keras' layers; `placed` lists those with weights, in order."""

    def __init__(self):
        self.placed: list[tuple[keras.Layer, tuple[str, ...]]] = []

    def place(self, layer, x, path):
        self.placed.append((layer, path))
        return layer(x)

    def padded(self, module, x, window, value=0.0):
        """Padding as Keras has it, "same", else a layer of zeros before: after a ReLU they never win a maximum."""
        padding = explicit(x.shape[1:3], module)
        if same(window, pair(module.stride), padding):
            return "same", x
        return "valid", keras.layers.ZeroPadding2D(padding)(x) if any(map(any, padding)) else x

    def conv(self, module, x, path):
        size, stride = pair(module.kernel), pair(module.stride)
        padding, x = self.padded(module, x, size)
        layer = keras.layers.Conv2D(module.features, size, stride, padding, groups=module.groups, use_bias=module.bias)
        return self.place(layer, x, path)

    def dense(self, module, x, path):
        x = x if len(x.shape) == 2 else keras.layers.Flatten()(x)
        return self.place(keras.layers.Dense(module.features, use_bias=module.bias), x, path)

    def norm(self, norm, x, path):
        layer = keras.layers.BatchNormalization(momentum=norm.momentum, epsilon=norm.epsilon, scale=norm.scale)
        return self.place(layer, x, path)

    def max_pool(self, module, x):
        padding, x = self.padded(module, x, pair(module.window))
        return keras.layers.MaxPooling2D(module.window, module.stride, padding)(x)

    def avg_pool(self, module, x):
        padding = explicit(x.shape[1:3], module)
        kind = "same" if any(map(any, padding)) else "valid"  # "same" counts pixels alone
        return keras.layers.AveragePooling2D(module.window, module.stride, kind)(x)

    def global_pool(self, x):
        return keras.layers.GlobalAveragePooling2D()(x)

    def lrn(self, module, alpha, x):
        half, channels = module.n // 2, x.shape[-1]
        squares = keras.ops.pad(keras.ops.square(x), ((0, 0), (0, 0), (0, 0), (half, half)))
        total = sum(squares[..., i : i + channels] for i in range(module.n))
        return x / (module.k + alpha * total) ** module.beta

    def activation(self, act, x):
        return keras.layers.Activation(act)(x)

    def dropout(self, rate, x):
        return keras.layers.Dropout(rate)(x)

    def concat(self, parts):
        return keras.layers.Concatenate()(parts)


def build(task: Task) -> Running:
    if task.dtype == "bfloat16":
        keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    library, inputs = Symbols(), keras.Input(task.images.shape[1:])
    outputs = keras.layers.Activation("linear", dtype="float32")(through(library, task.net.layers, inputs))
    model = keras.Model(inputs, outputs)
    for layer, path in library.placed:
        params, seen = leaf(task.weights, "params", path), leaf(task.weights, "batch_stats", path)
        arrays = [params.get(name) for name in ("kernel", "scale", "bias")] + [
            seen.get(name) for name in ("mean", "var")
        ]
        layer.set_weights([np.asarray(array) for array in arrays if array is not None])
    parameters = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    images, labels = jax.device_put((task.images, task.labels))
    logits = np.asarray(model.predict_on_batch(images))
    losses, seconds = [], []

    def run():
        return model.train_on_batch(images, labels) if task.train else model.predict_on_batch(images)

    with kept_programs():
        for i in range(2):
            jax.clear_caches()
            if task.train and i == 0:
                model.compile(
                    keras.optimizers.SGD(LEARNING_RATE, MOMENTUM),
                    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                )
            begun = time.perf_counter()
            value = run()
            seconds.append(time.perf_counter() - begun)
            if task.train:
                losses.append(float(np.asarray(value)))
                model.reset_metrics()

    def repeat(n: int) -> None:
        for _ in range(n):
            run()

    return Running(parameters, logits, tuple(losses), repeat, *seconds)
