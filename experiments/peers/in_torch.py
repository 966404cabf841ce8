"""The network as a user of PyTorch writes it: modules in `nn.Sequential`, eager, channels-last, or compiled."""

import os
import tempfile
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from cnnjax.models import layers as own
from cnnjax.models.chain import Block, Concat, Residual, Rows
from cnnjax.models.ops import pair
from experiments.peers import LEARNING_RATE, MOMENTUM, Running, Task, leaf

ACTIVATIONS = {"relu": lambda: nn.ReLU(inplace=True), "tanh": nn.Tanh}


class Branches(nn.Module):
    def __init__(self, branches: list[nn.Module]):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


class Sum(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module, act: nn.Module):
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut, act

    def forward(self, x):
        return self.act(self.body(x) + self.shortcut(x))


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class Builder:
    """Modules for rows, with the weights; `channels` follows them through the network."""

    def __init__(self, weights: dict[str, Any], channels: int):
        self.weights, self.channels = weights, channels

    def rows(self, rows: Rows, path: tuple[str, ...] = ()) -> nn.Sequential:
        found = [part for row in rows for part in self.layer(row.module, (*path, row.name))]
        # A ReLU in place is right only where nobody else reads its input.
        if found and isinstance(found[0], nn.ReLU):
            found[0] = nn.ReLU()
        return nn.Sequential(*found)

    def layer(self, module: Any, path: tuple[str, ...]) -> list[nn.Module]:
        before = self.channels
        match module:
            case Block():
                return [self.rows(module.layers, path)]
            case Concat():
                parts, total = [], 0
                for branch in module.branches:
                    self.channels = before
                    parts.append(self.rows(branch, path))
                    total += self.channels
                self.channels = total
                return [Branches(parts)]
            case Residual():
                shortcut = self.rows(module.shortcut, path)
                self.channels = before
                body = self.rows(module.body, path)
                return [Sum(body, shortcut, nn.Identity() if module.act is None else ACTIVATIONS[module.act]())]
            case own.Conv() | own.Dense():
                made = self.conv(module, path) if isinstance(module, own.Conv) else self.dense(module, path)
                if module.norm is not None:
                    made.append(self.norm(module.norm, (*path, "norm")))
                if module.act is not None:
                    made.append(ACTIVATIONS[module.act]())
                return [*made, nn.Dropout(module.dropout)] if module.dropout else made
            case own.BatchNorm():
                return [self.norm(module.norm, path)]
            case own.MaxPool():
                return [nn.MaxPool2d(module.window, module.stride, module.pad, ceil_mode=module.ceil)]
            case own.AvgPool():
                return [nn.AvgPool2d(module.window, module.stride, module.pad, module.ceil, module.count_padding)]
            case own.GlobalAvgPool():
                return [Mean()]
            case own.LRN():
                alpha = module.alpha if module.alpha_over_n else module.alpha * module.n
                return [nn.LocalResponseNorm(module.n, alpha, module.beta, module.k)]
            case own.Activation():
                return [ACTIVATIONS[module.act]()]
            case own.Dropout():
                return [nn.Dropout(module.rate)]
        raise TypeError(f"no layer of PyTorch for {module}")

    def fill(self, layer: nn.Module, **arrays: np.ndarray | None) -> nn.Module:
        with torch.no_grad():
            for name, array in arrays.items():
                if array is not None:
                    getattr(layer, name).copy_(torch.from_numpy(np.array(array)))
        return layer

    def conv(self, module: own.Conv, path: tuple[str, ...]) -> list[nn.Module]:
        arrays, size, stride = leaf(self.weights, "params", path), pair(module.kernel), pair(module.stride)
        layer = nn.Conv2d(
            self.channels, module.features, size, stride, pair(module.pad), groups=module.groups, bias=module.bias
        )
        self.channels = module.features
        return [self.fill(layer, weight=arrays["kernel"].transpose(3, 2, 0, 1), bias=arrays.get("bias"))]

    def dense(self, module: own.Dense, path: tuple[str, ...]) -> list[nn.Module]:
        arrays = leaf(self.weights, "params", path)
        kernel = arrays["kernel"]
        side = round((kernel.shape[0] / self.channels) ** 0.5)  # of the map that is flattened, its channels first
        maps = kernel.reshape(side, side, self.channels, module.features).transpose(2, 0, 1, 3)
        layer = nn.Linear(kernel.shape[0], module.features, bias=module.bias)
        self.channels = module.features
        self.fill(layer, weight=maps.reshape(kernel.shape).T, bias=arrays.get("bias"))
        return [nn.Flatten(), layer] if side > 1 else [layer]

    def norm(self, norm: own.Norm, path: tuple[str, ...]) -> nn.Module:
        arrays, seen = leaf(self.weights, "params", path), leaf(self.weights, "batch_stats", path)
        layer = nn.BatchNorm2d(self.channels, norm.epsilon, 1 - norm.momentum)
        self.fill(
            layer, weight=arrays.get("scale"), bias=arrays["bias"], running_mean=seen["mean"], running_var=seen["var"]
        )
        if not norm.scale:
            layer.weight.requires_grad_(False)
        return layer


def build(task: Task) -> Running:
    """variant: "" eager as made, "channels_last", or "compile", which is channels-last, too."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Builder(dict(task.weights), task.images.shape[-1]).rows(task.net.layers).to(device)
    layout = torch.channels_last if task.variant else torch.contiguous_format
    model = model.to(memory_format=layout)
    images = torch.from_numpy(task.images.transpose(0, 3, 1, 2).copy()).to(device).contiguous(memory_format=layout)
    labels = torch.from_numpy(task.labels.astype(np.int64)).to(device)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    half = torch.autocast(device, torch.bfloat16, enabled=task.dtype == "bfloat16")
    with torch.inference_mode(), half:
        logits = model.eval()(images).float().cpu().numpy()
    model.train(task.train)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], LEARNING_RATE, MOMENTUM)
    losses: list[float] = []

    def run(forward) -> torch.Tensor:
        if not task.train:
            with torch.inference_mode(), half:
                return forward(images)
        with half:
            loss = F.cross_entropy(forward(images).float(), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return loss

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    forward, seconds = model, [None, None]
    if task.variant == "compile":
        # The first call compiles; a step that compiles is a step, so the losses of both are kept.
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
            for i in range(2):
                torch._dynamo.reset()
                begun = time.perf_counter()
                forward = torch.compile(model)
                value = run(forward)
                wait()
                seconds[i] = time.perf_counter() - begun
                losses += [float(value.detach())] if task.train else []
    elif task.train:
        losses = [float(run(forward).detach()) for _ in range(2)]

    def repeat(n: int) -> None:
        for _ in range(n):
            run(forward)
        wait()

    return Running(parameters, logits, tuple(losses), repeat, *seconds)
