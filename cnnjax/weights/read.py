"""The door to every file of weights: what it is shows in its first bytes, and nothing in it is ever run."""

import os
from pathlib import Path

from cnnjax.weights.archive import open_archive, unpack
from cnnjax.weights.protobuf import Span, Wire
from cnnjax.weights.read_caffe import LAYER, LAYERS, read_caffe
from cnnjax.weights.read_hdf5 import WEIGHTS, read_hdf5, read_keras
from cnnjax.weights.read_numpy import read_npz
from cnnjax.weights.read_onnx import GRAPH, read_onnx
from cnnjax.weights.read_safetensors import read_safetensors
from cnnjax.weights.read_torch import LEGACY, pickle_of, read_torch
from cnnjax.weights.tensors import TENSORS_ONLY, Source, Tensors, UnreadableWeights, check_finite, reading

__all__ = ["Tensors", "UnreadableWeights", "check_finite", "read"]

LEGAL = """legal: safetensors; a state_dict by torch.save (.pth, .pt, or that in a .zip); Keras .h5 and .keras;
.caffemodel; .onnx; .npz"""


def read(path: str | os.PathLike) -> Tensors:
    """The tensors of a file of weights: a mapping of name -> array whose arrays are read when they are looked up.

    Its format is told by its content: safetensors, PyTorch (zip, the older stream, or either in a zip archive), Keras
    (.h5, .weights.h5, .keras; needs h5py), Caffe, ONNX (initialisers) or .npz. Names, shapes, types and layouts are
    the file's own.

    Raises: UnreadableWeights, in one to five lines, whatever is wrong with it.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UnreadableWeights(f"there is no file of weights {path}\n{LEGAL}")
    with reading(path):
        file = open(path, "rb")  # noqa: SIM115  # closed with the `Tensors` that read from it
        source = Source(path, file, os.fstat(file.fileno()).st_size)
        with source.closed_on_error():
            if hasattr(os, "posix_fadvise"):  # the disk reads while the network is made
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
            return _read(source)


def _read(source: Source) -> Tensors:
    start = source.file.read(512)
    source.file.seek(0)
    if 0 < int.from_bytes(start[:8], "little") <= source.size - 8 and start[8:9] == b"{":
        return read_safetensors(source)
    if start.startswith(b"PK\x03\x04"):
        return _read_zip(source)
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return read_hdf5(source)
    if start.startswith(LEGACY):
        return read_torch(source)
    if start[:1] == b"\x80" or start[257:262] == b"ustar":
        raise ValueError(
            f"it is a pickle or a tar archive, and not one that PyTorch has made since 0.1.10\n{TENSORS_ONLY}"
        )
    kinds = _messages(source)
    if GRAPH in kinds:  # first: its name for the program that made it has the number of Caffe's old layers
        return read_onnx(source)
    if kinds & {LAYER, LAYERS}:
        return read_caffe(source)
    raise ValueError(f"it begins with {start[:8].hex(' ') or 'nothing'}, which is no format of weights\n{LEGAL}")


def _read_zip(source: Source) -> Tensors:
    archive = open_archive(source)
    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    if pickle_of(archive):
        return read_torch(source)
    if WEIGHTS in names:
        return read_keras(source)
    if names and all(name.endswith(".npy") for name in names):
        return read_npz(source)
    if len(names) == 1 and names[0].endswith((".pth", ".pt")):
        inner = unpack(source, archive, names[0])
        with inner.closed_on_error(), reading(inner.path):
            return read_torch(inner)
    raise ValueError(f"it is a zip archive, but of no kind that holds weights\n{LEGAL}")


def _messages(source: Source) -> set[int]:
    """The fields at the top of a file in the wire format of protocol buffers; none for another file."""
    wire = Wire(source)
    try:
        return {field for field, value in wire.fields(wire.whole) if isinstance(value, Span)}
    except ValueError:
        return set()
