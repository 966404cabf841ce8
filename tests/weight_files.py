"""Small writers of the formats of weight files, one function each: tensors by name in, the bytes of a file out.

They are written from the descriptions of the formats, know nothing of the readers, and can be asked for what no honest
writer would make.
"""

import io
import json
import struct
import zipfile
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

# --- safetensors -----------------------------------------------------------------------------------------------------

SAFETENSORS = {"float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "uint8": "U8"}


def safetensors(tensors: Mapping[str, np.ndarray], *, metadata: dict | None = None, **changes: dict) -> bytes:
    """`changes`: tensor name -> entries of its header to replace."""
    header, data = ({"__metadata__": metadata} if metadata else {}), b""
    for name, values in tensors.items():
        place = [len(data), len(data) + values.nbytes]
        header[name] = {"dtype": SAFETENSORS[values.dtype.name], "shape": list(values.shape), "data_offsets": place}
        header[name] |= changes.get(name, {})
        data += values.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


# --- pickle and PyTorch ----------------------------------------------------------------------------------------------


class Global(NamedTuple):
    """A name that a pickle asks for."""

    module: str
    name: str


class Call(NamedTuple):
    """What a pickle calls (REDUCE)."""

    function: Global
    arguments: tuple


class Persistent(NamedTuple):
    """What a pickle refers to as kept elsewhere (BINPERSID)."""

    identity: tuple


class State(NamedTuple):
    """An object whose state is set (BUILD)."""

    target: object
    state: object


class Raw(NamedTuple):
    """Opcodes as they are."""

    content: bytes


def opcodes(value: object) -> bytes:
    match value:
        case Raw(content):
            return content
        case Global(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, arguments):
            return opcodes(function) + opcodes(arguments) + b"R"
        case Persistent(identity):
            return opcodes(identity) + b"Q"
        case State(target, state):
            return opcodes(target) + opcodes(state) + b"b"
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int() if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        case int():
            return b"\x8a\x0b" + value.to_bytes(11, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(opcodes, value)) + b"t"
        case list():
            return b"](" + b"".join(map(opcodes, value)) + b"e"
        case dict():
            return b"}(" + b"".join(opcodes(key) + opcodes(inner) for key, inner in value.items()) + b"u"
    raise TypeError(type(value))


def pickled(value: object) -> bytes:
    return b"\x80\x02" + opcodes(value) + b"."


STORAGES = {
    "float32": "Float", "float64": "Double", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long", "int32": "Int",
    "int16": "Short", "int8": "Char", "uint8": "Byte", "bool": "Bool",
}  # fmt: skip
ORDERED = Call(Global("collections", "OrderedDict"), ())


def torch_tensor(key: str, values: np.ndarray, *, parameter: bool = False, **changes) -> Call:
    """`changes`: of kind, count (of the storage), offset, shape, strides."""
    view = {
        "kind": f"{STORAGES[values.dtype.name]}Storage",
        "count": values.size,
        "offset": 0,
        "shape": values.shape,
        "strides": tuple(s // values.itemsize for s in values.strides),
    } | changes
    storage = Persistent(
        ("storage", Global("torch", view["kind"]), key, "cpu", view["count"], *changes.get("more", ()))
    )
    tensor = Call(
        Global("torch._utils", "_rebuild_tensor_v2"),
        (storage, view["offset"], view["shape"], view["strides"], False, ORDERED),
    )
    return Call(Global("torch._utils", "_rebuild_parameter"), (tensor, True, ORDERED)) if parameter else tensor


def state_dict(tensors: Mapping[str, np.ndarray]) -> "Raw":
    """As `torch.save` pickles it: an OrderedDict with its `_metadata`."""
    content = b"".join(opcodes(n) + opcodes(torch_tensor(str(i), v)) for i, (n, v) in enumerate(tensors.items()))
    return Raw(opcodes(ORDERED) + b"(" + content + b"u" + opcodes({"_metadata": {"": {"version": 1}}}) + b"b")


def storages(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {str(i): values for i, values in enumerate(tensors.values())}


def torch_zip(root: object, stored: Mapping[str, np.ndarray], *, byteorder: bytes = b"little", **zipped) -> bytes:
    """The format of PyTorch since 1.6."""
    members = {"data.pkl": pickled(root), "byteorder": byteorder, "version": b"3\n"}
    members |= {f"data/{key}": values.tobytes() for key, values in stored.items()}
    return archive({f"archive/{name}": content for name, content in members.items()}, **zipped)


def torch_stream(root: object, stored: Mapping[str, np.ndarray], *, little_endian: bool = True) -> bytes:
    """The format of PyTorch before 1.6."""
    machine = {
        "protocol_version": 1001,
        "little_endian": little_endian,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    heads = [0x1950A86A20F9469CFC6C, 1001, machine, root, list(stored)]
    head = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19." + b"".join(map(pickled, heads[1:]))
    return head + b"".join(struct.pack("<q", values.size) + values.tobytes() for values in stored.values())


# --- zip archives and NumPy ------------------------------------------------------------------------------------------


def archive(members: Mapping[str, bytes], *, compress: bool = False) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as opened:
        for name, content in members.items():
            opened.writestr(zipfile.ZipInfo(name), content, opened.compression)
    return file.getvalue()


def npy(values: np.ndarray, *, pickles: bool = False, **changes) -> bytes:
    """`changes`: entries of the header to replace."""
    file = io.BytesIO()
    np.lib.format.write_array(file, values, allow_pickle=pickles)
    if not changes:
        return file.getvalue()
    content = file.getvalue()[np.lib.format.MAGIC_LEN + 2 + struct.unpack_from("<H", file.getvalue(), 8)[0] :]
    head = {"descr": values.dtype.str, "fortran_order": False, "shape": values.shape} | changes
    text = repr(head).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def npz(tensors: Mapping[str, np.ndarray], *, compress: bool = False) -> bytes:
    return archive({f"{name}.npy": npy(values) for name, values in tensors.items()}, compress=compress)


# --- protocol buffers: Caffe and ONNX --------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    value %= 1 << 64
    content = bytearray()
    while value > 0x7F:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(content + bytes([value]))


def message(fields: Iterable[tuple[int, int | bytes | str]]) -> bytes:
    content = b""
    for number, value in fields:
        value = value.encode() if isinstance(value, str) else value
        wire = 0 if isinstance(value, int) else 2
        content += varint(number << 3 | wire) + (
            varint(value) if isinstance(value, int) else varint(len(value)) + value
        )
    return content


def packed(numbers: Iterable[int]) -> bytes:
    return b"".join(map(varint, numbers))


def blob(values: np.ndarray, *, four: bool = False, shape: tuple[int, ...] | None = None, pieces: int = 1) -> bytes:
    """`four`: its shape as num, channels, height, width."""
    shape = values.shape if shape is None else shape
    dims = list(enumerate((1,) * (4 - len(shape)) + shape, 1)) if four else [(7, message([(1, packed(shape))]))]
    field, content = (8 if values.dtype == np.float64 else 5), values.tobytes()
    cut = -(-len(values.reshape(-1)) // pieces) * values.itemsize
    return message(dims + [(field, content[i : i + cut]) for i in range(0, len(content), cut)])


def caffe(layers: Mapping[str, list[bytes]], *, version: int = 2) -> bytes:
    """Layer name -> its blobs. Version 2 is the newest form of a layer, 0 the oldest."""

    def layer(name: str, blobs: list[bytes]) -> tuple[int, bytes]:
        if version == 2:
            return 100, message([(1, name), (2, "Convolution"), *((7, content) for content in blobs)])
        if version == 1:
            return 2, message([(2, "data"), (3, name), (4, name), (5, 4), *((6, content) for content in blobs)])
        return 2, message([(1, message([(1, name), (2, "conv"), *((50, content) for content in blobs)])), (2, "data")])

    return message([(1, "net"), (3, "data"), *(layer(name, blobs) for name, blobs in layers.items())])


ONNX = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
    "bfloat16": 16,
}


def initialiser(name: str, values: np.ndarray, *, raw: bool = True, **changes) -> bytes:
    """`changes`: dims, or external, a dict of where the values are."""
    head = [(1, dim) for dim in changes.get("dims", values.shape)] + [(2, ONNX[values.dtype.name]), (8, name)]
    if "external" in changes:
        entries = [(13, message([(1, key), (2, value)])) for key, value in changes["external"].items()]
        return message(head + entries + [(14, 1)])
    if raw:
        return message(head + [(9, values.tobytes())])
    if values.dtype.name in ("float32", "float64"):
        return message(head + [(4 if values.dtype == np.float32 else 10, values.tobytes())])
    half = values.dtype.name in ("float16", "bfloat16")
    whole = values.view(np.uint16) if half else values
    return message(head + [(7 if values.dtype == np.int64 else 5, packed(whole.reshape(-1).tolist()))])


def onnx(initialisers: Iterable[bytes]) -> bytes:
    node = message([(1, "x"), (2, "y"), (4, "Conv")])
    graph = message([(1, node), (2, "graph"), *((5, content) for content in initialisers)])
    return message([(1, 8), (2, "by hand"), (7, graph), (8, message([(2, 17)]))])


# --- HDF5: by h5py, the format is too large to be written by hand ----------------------------------------------------


def hdf5(tensors: Mapping[str, np.ndarray], *, names: Mapping[str, str] | None = None, **dataset) -> bytes:
    """`names`: group -> its attribute "name"; `dataset`: how to store, as h5py says it."""
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        for path, values in tensors.items():
            opened.create_dataset(path, data=values, **dataset)
        for path, name in (names or {}).items():
            opened.require_group(path).attrs["name"] = name
    return file.getvalue()


def keras(weights: bytes, *, config: str = '{"class_name": "Sequential"}') -> bytes:
    return archive({"metadata.json": b"{}", "config.json": config.encode(), "model.weights.h5": weights})


# --- one file of every kind ------------------------------------------------------------------------------------------


def tensors() -> dict[str, np.ndarray]:
    """A convolution, a dense layer, statistics and a counter: float32, float16 and int64, up to four dimensions."""
    rng = np.random.default_rng(0)
    return {
        "conv1.weight": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "conv1.bias": rng.standard_normal(4).astype(np.float16),
        "bn1.num_batches_tracked": np.array(7, np.int64),
        "fc.weight": rng.standard_normal((5, 16)).astype(np.float32),
    }


def samples() -> dict[str, bytes]:
    """A small whole file of every format and form, by file name; those of HDF5 only where h5py is."""
    kept = tensors()
    half = {name: values.astype(ml_dtypes.bfloat16) for name, values in kept.items() if values.dtype == np.float32}
    blobs = {name: [blob(values)] for name, values in kept.items() if values.dtype == np.float32}
    old = {name: [blob(values, four=True)] for name, values in kept.items() if values.dtype == np.float32}
    files = {
        "plain.safetensors": safetensors(kept, metadata={"format": "pt"}),
        "half.safetensors": safetensors(half),
        "zip.pth": torch_zip(state_dict(kept), storages(kept)),
        "stream.pth": torch_stream(state_dict(kept), storages(kept)),
        "zip.pth.zip": archive({"net.pth": torch_zip(state_dict(kept), storages(kept))}, compress=True),
        "stream.pth.zip": archive({"net.pth": torch_stream(state_dict(kept), storages(kept))}, compress=True),
        "new.caffemodel": caffe(blobs),
        "old.caffemodel": caffe(old, version=1),
        "oldest.caffemodel": caffe(old, version=0),
        "raw.onnx": onnx(initialiser(name, values) for name, values in kept.items()),
        "fields.onnx": onnx(initialiser(name, values, raw=False) for name, values in kept.items()),
        "stored.npz": npz(kept),
        "packed.npz": npz(kept, compress=True),
    }
    try:
        import h5py  # noqa: F401
    except ImportError:
        return files
    paths = {name.replace(".", "/"): values for name, values in kept.items()}
    return files | {
        "plain.h5": hdf5(paths),
        "packed.h5": hdf5({n: v for n, v in paths.items() if v.ndim}, compression="gzip", shuffle=True),
        "net.keras": keras(hdf5(paths, names={"conv1": "block1_conv1"})),
    }
