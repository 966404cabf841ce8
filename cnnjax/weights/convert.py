"""Weights under another library's names and in its layout -> our variables, and back, bit for bit.

How a library writes its leaves is `SOURCES`; which of its networks we have, and what layers are called there, is
`cnnjax.weights.ports.PORTS`. Nothing is converted before every name and every shape has been found to fit.
"""

import collections
import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.data.images import Transform
from cnnjax.errors import CnnjaxError, differences, unknown
from cnnjax.models import ops
from cnnjax.models.chain import Chain
from cnnjax.models.layers import BatchNorm, Dense
from cnnjax.weights.paths import Site, sites
from cnnjax.weights.ports import PORTS, Port
from cnnjax.weights.tensors import Tensors, not_finite

WORKERS = min(4, os.cpu_count() or 1)  # each has a piece of a file in memory
BLOCK = 128, 400  # outputs and inputs of a kernel that are turned at a time: more fall out of the processor's cache
ALIGNMENT = 64


class Source(NamedTuple):
    """How a library writes weights. The leaves are ours -> the key there, "{0}" being the layer's name."""

    leaves: dict[str, str]
    norm_leaves: dict[str, str]
    torch_layout: bool = True
    """Kernels are [out, in, height, width]; dense ones [out, in], and what they read is flattened map by map."""
    read_key: Callable[[str], str | None] = lambda key: key
    """A key as files have it -> as the tables have it; None where it is no weight."""
    counted: str = ""
    """Pattern of a key that begins with a counter, which runs on where a session has made other networks before."""
    factor: str | None = None
    """The key of what the running statistics are divided by."""


def _torch_key(key: str) -> str | None:
    """Without counters and the prefix of a parallel wrapper; DenseNet's first files have norm.1 for norm1."""
    if key.endswith("num_batches_tracked"):
        return None
    return re.sub(r"\b(norm|conv)\.(\d)\.", r"\1\2.", key.removeprefix("module."))


def _keras_key(key: str) -> str:
    """conv1/conv/conv1/conv/kernel:0, as an h5 file has it, and conv1_conv/kernel are conv1_conv/kernel."""
    *layer, leaf = key.removesuffix(":0").split("/")
    if layer[: len(layer) // 2] == layer[len(layer) // 2 :]:
        layer = layer[: len(layer) // 2]
    if old := re.fullmatch(r"\w+_([Wb])_\d+", leaf):  # as Keras 1 wrote them
        leaf = {"W": "kernel", "b": "bias"}[old[1]]
    return f"{'_'.join(layer)}/{leaf}"


def _onnx_key(key: str) -> str | None:
    return None if key.endswith("__SHAPE") else key.removeprefix("gpu_0/")


TORCH = Source(
    {"kernel": "{0}.weight", "bias": "{0}.bias"},
    {"scale": "{0}.weight", "bias": "{0}.bias", "mean": "{0}.running_mean", "var": "{0}.running_var"},
    read_key=_torch_key,
)
SOURCES: dict[str, Source] = {
    "timm": TORCH,
    "torchvision": TORCH,
    "pytorchcv": TORCH,
    "keras": Source(
        {"kernel": "{0}/kernel", "bias": "{0}/bias"},
        {"scale": "{0}/gamma", "bias": "{0}/beta", "mean": "{0}/moving_mean", "var": "{0}/moving_variance"},
        torch_layout=False,
        read_key=_keras_key,
        counted=r"(conv2d|batch_normalization)(?:_(\d+))?(/\w+)",
    ),
    # A layer's blobs are numbered, and a normalisation is two layers, which the tables write "bn1|scale1".
    "caffe": Source(
        {"kernel": "{0}.0", "bias": "{0}.1"},
        {"scale": "{1}.0", "bias": "{1}.1", "mean": "{0}.0", "var": "{0}.1"},
        factor="{0}.2",
    ),
    # Graphs that were translated from Caffe and Caffe2; those that torch exports bear torch's names.
    "onnx": Source(
        {"kernel": "{0}_w_0", "bias": "{0}_b_0"},
        {"scale": "{0}_s_0", "bias": "{0}_b_0", "mean": "{0}_rm_0", "var": "{0}_riv_0"},
        read_key=_onnx_key,
    ),
}


class Leaf(NamedTuple):
    """An array: where it is in our variables, and its key, shape and layout in the source."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    key: str
    factor: str | None
    source_shape: tuple[int, ...]
    maps: int
    torch_layout: bool


def port(source: str, architecture: str) -> Port:
    """The row of `PORTS`. Raises `CnnjaxError` naming the legal ones."""
    if source not in PORTS:
        raise unknown("source of weights", source, PORTS)
    if architecture not in PORTS[source]:
        raise unknown(f"network of {source}", architecture, PORTS[source])
    return PORTS[source][architecture]


def network(source: str, architecture: str, *, classes: int | None = None) -> Chain:
    """Our variant of a network as a source has it, with its training heads; `classes` is by default the source's."""
    row = port(source, architecture)
    return row.make(classes=row.classes if classes is None else classes)


def convert(
    source: str, architecture: str, tensors: Mapping[str, np.ndarray], *, classes: int | None = None
) -> tuple[Chain, dict[str, Any]]:
    """The network and its variables, float32, from arrays by the names that `source` gives them.

    Training heads that the file has no weights of are left out. `tensors` may read lazily: each array is asked for
    once, in pieces where it is large, and let go before the next.

    Raises `CnnjaxError` with a table of names and shapes that differ, before an array is read; and for values that are
    not finite.
    """
    net = network(source, architecture, classes=classes)
    keys = file_keys(source, tensors)
    wanted = leaves(source, architecture, net)
    absent = {head.name for head in net.aux} - {leaf.path[1] for leaf in wanted if leaf.key in keys}
    net = net.clone(aux=tuple(head for head in net.aux if head.name not in absent))
    wanted = [leaf for leaf in wanted if leaf.path[1] not in absent]
    _check(f"the weights do not fit {architecture} of {source}", keys, tensors, wanted)
    turned: dict[tuple[str, ...], np.ndarray] = {}
    with ThreadPoolExecutor(WORKERS) as pool:
        turning: collections.deque[Future[None]] = collections.deque()
        largest_first = sorted(wanted, key=lambda leaf: -math.prod(leaf.shape))  # so that its copy is the peak
        for leaf in largest_first:
            taken = turned[leaf.path] = _aligned(leaf.shape)
            factor = np.asarray(tensors[keys[leaf.factor]]).reshape(()) if leaf.factor in keys else None
            for start, read in _pieces(tensors, keys[leaf.key]):
                turning.append(pool.submit(_take, leaf, taken, start, read, keys[leaf.key], factor))
                if len(turning) > WORKERS:
                    turning.popleft().result()
        for rest in turning:
            rest.result()
    variables: dict[str, Any] = {}
    for path, value in turned.items():
        _put(variables, path, value)
    return net, variables


def to_source(source: str, architecture: str, net: Chain, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of `variables` by the names, and in the layout, of `source`: what `convert` reads."""
    tensors = {}
    for leaf in leaves(source, architecture, net):
        value: Any = variables
        for name in leaf.path:
            if name not in value:
                raise CnnjaxError(f"the variables hold no {'/'.join(leaf.path)}")
            value = value[name]
        tensors[leaf.key] = _theirs(leaf, np.asarray(value))
        if leaf.factor is not None:
            tensors[leaf.factor] = np.ones(1, np.float32)
    return tensors


def as_rgb(net: Chain, variables: Mapping[str, Any], transform: Transform) -> tuple[dict[str, Any], Transform]:
    """The same network for images in the order RGB: what BGR costs is folded into the kernel of its first layer."""
    if transform.order == "RGB":
        return dict(variables), transform
    first, params = next(sites(net)), variables["params"]
    edited = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf[:, :, ::-1] if tuple(key.key for key in path) == (*first.path, "kernel") else leaf,
        params,
    )
    folded = dataclasses.replace(transform, order="RGB", mean=transform.mean[::-1], std=transform.std[::-1])
    return {**variables, "params": edited}, folded


def ours(net: Chain, tensors: Mapping[str, np.ndarray], image_shape: tuple[int, ...]) -> dict[str, Any]:
    """The variables of `net`, float32, from arrays by our own names: "conv2_1/conv1/kernel", "conv1/norm/mean".

    Raises `CnnjaxError` as `convert` does.
    """
    want = {name: (place, leaf.shape) for name, place, leaf in _named(_shapes(net, image_shape))}
    error = differences(
        "the weights do not fit the network",
        {name: _text(_shape(tensors, name)) for name in tensors},
        {name: _text(shape) for name, (_, shape) in want.items()},
    )
    if error is not None:
        raise error
    variables: dict[str, Any] = {}
    for name, (place, shape) in want.items():
        taken = _aligned(shape)
        for start, read in _pieces(tensors, name):
            value = read()
            taken[start : start + len(value)] = _finite(name, value)
        _put(variables, place, taken)
    return variables


def to_ours(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of `variables` by our own names: what `ours` reads."""
    return {name: np.asarray(leaf) for name, _, leaf in _named(variables)}


def _named(variables: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        place = tuple(key.key for key in path)
        yield "/".join(place[1:]), place, leaf


def _shapes(net: Chain, image_shape: tuple[int, ...]) -> dict[str, Any]:
    with ops.reference_forms(True):  # quicker to trace
        return jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, *image_shape))))


def _put(variables: dict[str, Any], place: tuple[str, ...], value: np.ndarray) -> None:
    for name in place[:-1]:
        variables = variables.setdefault(name, {})
    variables[place[-1]] = jax.device_put(value)


def _finite(name: str, value: np.ndarray) -> np.ndarray:
    if wrong := not_finite(value):
        raise CnnjaxError(
            f"the weights {name!r} hold {wrong} values that are not finite\n"
            "the file is damaged, or the training that made it diverged"
        )
    return value


def leaves(source: str, architecture: str, net: Chain) -> list[Leaf]:
    """Every array of a network, under its name in a source."""
    row, written = port(source, architecture), SOURCES[source]
    rules = row.rules(net) if callable(row.rules) else row.rules
    variables = _shapes(net, (row.size, row.size, 3))
    found = []
    for site in sites(net):
        weights, norm = _names(rules, site)
        for collection, path, key, inner in _places(site, weights, norm, written):
            tree: Any = variables.get(collection, {})
            for name in path:
                tree = tree.get(name, {})
            if inner in tree:
                shape = tuple(tree[inner].shape)
                factor = written.factor if inner in ("mean", "var") else None
                theirs = _source_shape(shape, site, written.torch_layout, site.path[-1] in row.as_convolutions)
                found.append(
                    Leaf(
                        (collection, *path, inner),
                        shape,
                        key,
                        factor and factor.format(*norm.split("|")),
                        theirs,
                        site.maps if isinstance(site.module, Dense) else 0,
                        written.torch_layout,
                    )
                )
    return found


def _names(rules: Mapping[str, Any], site: Site) -> tuple[str, str]:
    """What a rule calls a layer and its normalisation."""
    for pattern, rule in rules.items():
        if matched := re.fullmatch(pattern, site.name):
            called: Any = rule
            if callable(rule):
                called = rule(*(int(group) if group.isdigit() else group for group in matched.groups()))
            weights, norm = (called, called) if isinstance(called, str) else called
            return weights, weights if isinstance(site.module, BatchNorm) else norm
    raise CnnjaxError(f"the layer {site.name!r} has no name in the source")


def _places(site: Site, weights: str, norm: str, written: Source) -> Iterator[tuple[str, tuple[str, ...], str, str]]:
    """(collection, path, key, leaf) of what a layer may hold."""
    normed = site.path if isinstance(site.module, BatchNorm) else (*site.path, "norm")
    if normed != site.path:
        for inner, key in written.leaves.items():
            yield "params", site.path, key.format(weights), inner
    for inner, key in written.norm_leaves.items():
        yield "batch_stats" if inner in ("mean", "var") else "params", normed, key.format(*norm.split("|"), norm), inner


def _source_shape(shape: tuple[int, ...], site: Site, torch_layout: bool, as_convolution: bool) -> tuple[int, ...]:
    if not torch_layout or len(shape) == 1:
        return shape
    if len(shape) == 4:
        return shape[3], shape[2], shape[0], shape[1]
    if as_convolution:
        side = math.isqrt(shape[0] // site.maps) if site.maps > 1 else 1
        return shape[1], shape[0] // side**2, side, side
    return shape[1], shape[0]


def _pieces(tensors: Mapping[str, np.ndarray], name: str) -> Iterator[tuple[int, Callable[[], np.ndarray]]]:
    """An array, if it can be in pieces, so that it is not in memory twice: `Tensors.pieces` of any mapping."""
    if isinstance(tensors, Tensors):
        yield from tensors.pieces(name)
    else:
        whole = np.asarray(tensors[name])
        yield 0, lambda: whole


def _take(
    leaf: Leaf,
    taken: np.ndarray,
    start: int,
    read: Callable[[], np.ndarray],
    name: str,
    factor: np.ndarray | None,
) -> None:
    """Reads the source's rows from `start` on and puts them into `taken`, which has our layout, if they are finite."""
    value = read() if factor is None else read() / (factor or 1)
    value = _finite(name, value)
    stop = start + len(value) if value.ndim else 1
    if not leaf.torch_layout or len(leaf.shape) == 1:
        whole = value.size == math.prod(leaf.shape)
        taken[... if whole else slice(start, stop)] = value.reshape(leaf.shape) if whole else value
    else:  # [out, in, positions] there, [positions, in, out] here
        maps = leaf.shape[2] if len(leaf.shape) == 4 else leaf.maps if leaf.maps > 1 else leaf.shape[0]
        outputs = leaf.shape[-1]
        positions = taken.size // (outputs * maps)
        source, target = value.reshape(-1, maps, positions), taken.reshape(positions, maps, outputs)
        rows, columns = BLOCK[0], max(1, BLOCK[1] // positions)
        for i in range(0, len(source), rows):
            for j in range(0, maps, columns):
                block = source[i : i + rows, j : j + columns]
                target[:, j : j + columns, start + i : start + i + len(block)] = block.transpose(2, 1, 0)


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An empty float32 array at an address that XLA asks for; others it would copy."""
    count, item = math.prod(shape), np.dtype(np.float32).itemsize
    values = np.empty(count + ALIGNMENT // item, np.float32)
    start = -values.ctypes.data % ALIGNMENT // item
    return values[start : start + count].reshape(shape)


def _theirs(leaf: Leaf, value: np.ndarray) -> np.ndarray:
    if not leaf.torch_layout or len(leaf.shape) == 1:
        return value
    if len(leaf.shape) == 4:
        return np.ascontiguousarray(value.transpose(3, 2, 0, 1))
    maps = leaf.maps if leaf.maps > 1 else leaf.shape[0]
    return np.ascontiguousarray(value.reshape(-1, maps, leaf.shape[1]).transpose(2, 1, 0)).reshape(leaf.source_shape)


def file_keys(source: str, tensors: Iterable[str]) -> dict[str, str]:
    """The keys of a file that are weights: as the tables have them -> as the file has them."""
    written = SOURCES[source]
    keys = {read: key for key in tensors if (read := written.read_key(key)) is not None}
    if not written.counted:
        return keys
    counters: dict[str, set[int]] = {}
    for key in keys:
        if matched := re.fullmatch(written.counted, key):
            counters.setdefault(matched[1], set()).add(int(matched[2] or 0))
    ranks = {kind: {n: rank for rank, n in enumerate(sorted(found))} for kind, found in counters.items()}

    def from_zero(matched: re.Match) -> str:
        rank = ranks[matched[1]][int(matched[2] or 0)]
        return matched[1] + (f"_{rank}" if rank else "") + matched[3]

    return {re.sub(written.counted, from_zero, key): name for key, name in keys.items()}


def _check(heading: str, keys: Mapping[str, str], tensors: Mapping[str, Any], wanted: list[Leaf]) -> None:
    fit, factors = {leaf.key: leaf for leaf in wanted}, {leaf.factor for leaf in wanted}
    have = {}
    for key, name in keys.items():
        if key not in factors:
            shape = _shape(tensors, name)
            have[key] = _text(fit[key].source_shape if key in fit and _fits(fit[key], shape) else shape)
    error = differences(heading, have, {leaf.key: _text(leaf.source_shape) for leaf in wanted})
    if error is not None:
        raise error


def _shape(tensors: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Of an array in a file without reading it."""
    return tensors.shape(name) if isinstance(tensors, Tensors) else tuple(tensors[name].shape)


def _fits(leaf: Leaf, shape: tuple[int, ...]) -> bool:
    """Whether an array has the leaf's shape; of a vector or matrix, also with the axes of the map, and ones before."""

    def matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
        first, *rest = [n for n in shape if n != 1] or [1]
        return first, math.prod(rest)

    return shape == leaf.source_shape or (len(leaf.shape) < 4 and matrix(shape) == matrix(leaf.source_shape))


def _text(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"
