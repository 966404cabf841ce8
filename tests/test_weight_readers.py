"""Files of weights: what is written is read, what is hostile is refused before it costs anything, nothing is run."""

import importlib.util
import io
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import weight_files as wf

from cnnjax.weights import unpickle
from cnnjax.weights.read import UnreadableWeights, check_finite, read

ROOT = Path(__file__).parent.parent
SAMPLES = wf.samples()
TENSORS = wf.tensors()
ONE = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}


def written(folder: Path, content: bytes, name: str = "weights.bin") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def refusal(path: Path, *words: str) -> str:
    """What is said of a file when it is opened or read; it has to hold the words."""
    with pytest.raises(UnreadableWeights) as caught:
        tensors = read(path)
        for name in tensors:
            tensors[name]
    said = str(caught.value)
    assert 2 <= len(said.splitlines()) <= 5 and max(map(len, said.splitlines())) < 500
    assert path.name in said
    for word in words:
        assert word in said.replace(str(path), ""), said
    return said


def equal(tensors, expected: dict[str, np.ndarray]) -> None:
    assert set(tensors) == set(expected)
    for name, values in expected.items():
        assert tensors.shape(name) == values.shape and tensors.dtype(name) == values.dtype
        found = tensors[name]
        assert found.shape == values.shape and found.dtype == values.dtype and found.flags.c_contiguous
        assert found.tobytes() == np.ascontiguousarray(values).tobytes()


# --- what is written is read -----------------------------------------------------------------------------------------


def expected_of(name: str) -> dict[str, np.ndarray]:
    """What the sample of that name holds."""
    kept = TENSORS
    if name == "half.safetensors" or "caffemodel" in name:
        kept = {key: values for key, values in kept.items() if values.dtype == np.float32}
    if name == "half.safetensors":
        kept = {key: values.astype(ml_dtypes.bfloat16) for key, values in kept.items()}
    if "caffemodel" in name:
        four = not name.startswith("new")
        kept = {f"{k}.0": v.reshape((1,) * (4 - v.ndim) + v.shape) if four else v for k, v in kept.items()}
    if name.endswith((".h5", ".keras")):
        kept = {k.replace(".", "/"): v for k, v in kept.items() if v.ndim or name != "packed.h5"}
    return kept


@pytest.mark.parametrize("name", SAMPLES)
def test_what_is_written_is_read_whatever_the_file_is_called(name, tmp_path):
    equal(read(written(tmp_path, SAMPLES[name])), expected_of(name))


def test_looking_for_a_name_reads_nothing_and_a_wrong_one_is_a_key_error(tmp_path):
    content = bytearray(wf.torch_zip(wf.state_dict(TENSORS), wf.storages(TENSORS)))
    content[content.index(TENSORS["fc.weight"].tobytes()) + 5] ^= 1
    tensors = read(written(tmp_path, bytes(content)))
    assert "fc.weight" in tensors and "fc" not in tensors and len(tensors) == 4
    assert tensors.shape("fc.weight") == (5, 16)
    assert tensors.get("fc") is None
    np.testing.assert_array_equal(tensors["conv1.weight"], TENSORS["conv1.weight"])
    with pytest.raises(UnreadableWeights, match=r"tensor 'fc\.weight' is damaged: Bad CRC"):
        tensors["fc.weight"]


def test_a_file_is_closed_when_its_tensors_are_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where zipped files are unpacked

    def opened() -> int:
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return sum(os.readlink(link).startswith(str(tmp_path)) for link in links if os.path.islink(link))

    for name, content in SAMPLES.items():
        tensors = read(written(tmp_path, content, name))
        assert opened() == 1, name
        del tensors
        with pytest.raises(UnreadableWeights):
            read(written(tmp_path, content[: len(content) // 3], name))
        assert opened() == 0, name


def test_metadata_is_passed_on_as_text(tmp_path):
    assert read(written(tmp_path, SAMPLES["plain.safetensors"])).metadata == {"format": "pt"}


BOTH = {"zip": wf.torch_zip, "stream": wf.torch_stream}


@pytest.mark.parametrize("form", BOTH)
@pytest.mark.parametrize("dtype", [*wf.STORAGES])
def test_torch_storages_of_every_type_are_read(form, dtype, tmp_path):
    kind = np.dtype(getattr(ml_dtypes, dtype)) if dtype == "bfloat16" else np.dtype(dtype)
    values = {"w": np.arange(6).reshape(3, 2).astype(kind)}
    equal(read(written(tmp_path, BOTH[form](wf.state_dict(values), wf.storages(values)))), values)


@pytest.mark.parametrize("form", BOTH)
def test_torch_tensors_may_be_views_of_one_storage_and_parameters(form, tmp_path):
    whole = np.arange(24, dtype=np.float32)
    root = {
        "whole": wf.torch_tensor("s", whole.reshape(4, 6)),
        "turned": wf.torch_tensor("s", whole.reshape(4, 6), shape=(6, 4), strides=(1, 6)),
        "part": wf.torch_tensor("s", whole, offset=5, shape=(2, 3), strides=(7, 2)),
        "scalar": wf.torch_tensor("s", whole, offset=23, shape=(), strides=()),
        "none": wf.torch_tensor("s", whole, shape=(0, 3), strides=(3, 1)),
        "parameter": wf.torch_tensor("s", whole, parameter=True),
    }
    expected = {
        "whole": whole.reshape(4, 6),
        "turned": whole.reshape(4, 6).T,
        "part": whole[5 + np.array([[0, 2, 4], [7, 9, 11]])],
        "scalar": whole[23],
        "none": np.zeros((0, 3), np.float32),
        "parameter": whole,
    }
    equal(read(written(tmp_path, BOTH[form](root, {"s": whole}))), expected)


@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "model"])
def test_the_state_of_the_network_is_found_in_a_checkpoint(name, tmp_path):
    momentum = np.ones(2, np.float32)
    root = {"epoch": 3, name: {"w": wf.torch_tensor("0", ONE["w"])}, "optimizer": {"m": wf.torch_tensor("1", momentum)}}
    equal(read(written(tmp_path, wf.torch_zip(root, {"0": ONE["w"], "1": momentum}))), ONE)


def test_nested_dicts_are_named_by_their_path(tmp_path):
    root = {"net": {"body": {"w": wf.torch_tensor("0", ONE["w"])}, "lr": 0.1, 3: [1, None]}, "done": True}
    equal(read(written(tmp_path, wf.torch_stream(root, {"0": ONE["w"]}))), {"net.body.w": ONE["w"]})


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    "values",
    [np.asfortranarray(ONE["w"]), ONE["w"].astype(">f4"), np.zeros((0, 3), np.float32), np.array([True, False])],
    ids=["fortran", "big-endian", "empty", "bool"],
)
def test_npz_arrays_come_native_and_in_c_order(values, compress, tmp_path):
    content = wf.npz({"w": values}, compress=compress)
    equal(read(written(tmp_path, content)), {"w": np.ascontiguousarray(values, values.dtype.newbyteorder("="))})


@pytest.mark.parametrize("dtype", wf.ONNX)
@pytest.mark.parametrize("raw", [True, False], ids=["raw", "fields"])
def test_onnx_initialisers_of_every_type_are_read(dtype, raw, tmp_path):
    kind = np.dtype(getattr(ml_dtypes, dtype)) if dtype == "bfloat16" else np.dtype(dtype)
    values = np.array([[0, 1, 2], [100, 5, 6]]).astype(kind)
    if kind.kind == "i":
        values = -values
    equal(read(written(tmp_path, wf.onnx([wf.initialiser("w", values, raw=raw)]))), {"w": values})


@pytest.mark.parametrize("version", [0, 1, 2])
def test_caffe_blobs_may_be_double_and_come_in_pieces(version, tmp_path):
    weight, bias = np.arange(24.0).reshape(2, 3, 2, 2), np.arange(2, dtype=np.float32)
    content = wf.caffe({"a/b": [wf.blob(weight, pieces=3), wf.blob(bias)], "relu": []}, version=version)
    equal(read(written(tmp_path, content)), {"a/b.0": weight, "a/b.1": bias})


def test_onnx_values_beside_the_model_are_read(tmp_path):
    written(tmp_path, b"....." + ONE["w"].tobytes(), "values.bin")
    entry = wf.initialiser("w", ONE["w"], external={"location": "values.bin", "offset": "5", "length": "24"})
    equal(read(written(tmp_path, wf.onnx([entry]))), ONE)


# --- values that are no numbers --------------------------------------------------------------------------------------


def test_values_that_are_not_finite_are_counted_by_name(tmp_path):
    tensors = {"good": np.ones((2, 2), np.float32), "count": np.array(3), "half": np.ones(4, ml_dtypes.bfloat16)}
    large = np.ones((1 << 20) + 3, np.float32)
    large[[0, -1]] = np.nan, -np.inf
    check_finite(read(written(tmp_path, wf.safetensors(tensors))))
    tensors |= {"bad": large, "worse": np.full(2, np.inf, np.float16), "half": np.full(4, np.nan, ml_dtypes.bfloat16)}
    with pytest.raises(UnreadableWeights) as caught:
        check_finite(read(written(tmp_path, wf.safetensors(tensors))))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("weights.bin: values that are NaN or infinite in 3 of 5 tensors")
    assert lines[1] == "'half': 4, 'bad': 2, 'worse': 2"
    with pytest.raises(UnreadableWeights, match=r"the weights: .*1 of 1"):
        check_finite({"w": np.array([np.nan])})


# --- nothing runs ----------------------------------------------------------------------------------------------------


def payloads(sentinel: Path) -> dict[str, bytes]:
    """Opcodes that would make the file `sentinel`, or set about it, if a pickle could run what it names."""
    make = f"open({str(sentinel)!r}, 'w').close()"
    system = wf.Call(wf.Global("os", "system"), (f"touch {sentinel}",))
    execute = wf.Call(wf.Global("builtins", "exec"), (make,))
    text = wf.opcodes(make)
    return {
        "os.system": wf.opcodes(system),
        "posix.system": wf.opcodes(wf.Call(wf.Global("posix", "system"), (f"touch {sentinel}",))),
        "builtins.exec": wf.opcodes(execute),
        "nested": wf.opcodes({"a": {"b": ({}, [execute])}}),
        "a key": b"}" + wf.opcodes(execute) + b"Ns",
        "INST": b"(" + text + b"ibuiltins\nexec\n",
        "OBJ": b"(cbuiltins\nexec\n" + text + b"o",
        "NEWOBJ": b"cbuiltins\ntuple\n(cbuiltins\nmap\n(cbuiltins\nexec\n](" + text + b"et\x81t\x81",
        "STACK_GLOBAL": wf.opcodes("builtins") + wf.opcodes("exec") + b"\x93" + wf.opcodes((make,)) + b"R",
        "dotted": b"\x80\x04" + wf.opcodes("pathlib") + wf.opcodes("os.system") + b"\x93"
        + wf.opcodes((f"touch {sentinel}",)) + b"R",
        "BUILD": wf.opcodes(
            wf.State(wf.Call(wf.Global("logging", "LogRecord"), ("", 0, "", 0, "", (), None)), {"x": execute})
        ),
        "thrown away": wf.opcodes(execute) + b"0" + wf.opcodes({}),
        "in a persistent id": wf.opcodes(wf.Persistent(("storage", execute, "0", "cpu", 1))),
    }  # fmt: skip


PAYLOADS = list(payloads(Path("x")))


class Lenient(pickle.Unpickler):
    def persistent_load(self, pid):
        return None


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_payloads_would_work_on_pickle(payload, tmp_path):
    sentinel = tmp_path / "sentinel"
    Lenient(io.BytesIO(b"\x80\x02" + payloads(sentinel)[payload] + b".")).load()
    for _ in range(200):  # one of them is a process of its own
        if sentinel.exists():
            return
        time.sleep(0.02)
    raise AssertionError("no trace")


CARRIERS = {
    "zip": lambda root: wf.torch_zip(root, {}),
    "stream": lambda root: wf.torch_stream(root, {}),
    "zip in zip": lambda root: wf.archive({"net.pth": wf.torch_zip(root, {})}),
    "stream in zip": lambda root: wf.archive({"net.pth": wf.torch_stream(root, {})}, compress=True),
    "npz": lambda root: wf.archive({"w.npy": npy_of_objects(wf.pickled(root))}),
    "first pickle of a stream": lambda root: wf.pickled(root),
    "machine of a stream": lambda root: wf.torch_stream({}, {})[:15] + wf.pickled(1001) + wf.pickled(root),
    "storages of a stream": lambda root: wf.torch_stream({}, {})[: -len(wf.pickled([]))] + wf.pickled(root),
}


def npy_of_objects(pickled: bytes) -> bytes:
    whole = wf.npy(np.array([None]), pickles=True)
    return whole[: whole.index(b"\x80")] + pickled


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_pickle_that_would_run_code_is_refused_and_leaves_no_trace(payload, carrier, tmp_path):
    sentinel = tmp_path / "sentinel"
    modules = set(sys.modules)
    said = refusal(written(tmp_path, CARRIERS[carrier](wf.Raw(payloads(sentinel)[payload]))))
    assert "npz" in carrier or "tensors" in said
    assert not sentinel.exists() and not (tmp_path / "x").exists()
    assert not {"logging.handlers", "pathlib.os"} & (set(sys.modules) - modules)


def test_what_a_pickle_asks_for_is_named():
    whole = {"net": wf.Call(wf.Global("torchvision.models.vgg", "VGG"), ())}
    path = written(Path(os.environ.get("TMPDIR", "/tmp")), wf.torch_zip(whole, {}), f"{os.getpid()}.pth")
    try:
        assert "it asks for 'torchvision.models.vgg.VGG'\n" in refusal(path, "torch.save(model.state_dict(), …)")
    finally:
        path.unlink()


# A tuple of twice the tuple before, 60 times over, as a key
FOREVER = (
    b"})q\x000"
    + b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) + b"0" for i in range(60))
    + b"h\x3cNs"
)

# fmt: off
PICKLES = {
    "a hash that takes forever": (FOREVER, "no dict of strings"),
    "dicts that hold one another": (b"}q\x00X\x01\x00\x00\x00ah\x00s", "nested more than 16 deep"),
    "dicts doubled over and over": (
        b"}q\x00" + b"".join(b"}X\x01\0\0\0ah" + bytes([i]) + b"sX\x01\0\0\0bh" + bytes([i]) + b"sq" + bytes([i + 1])
                             for i in range(60)), "nested more than 16 deep"),
    "a text of 4 GB": (b"X\xff\xff\xff\xff", "4,294,967,295 bytes long"),
    "a text of 2^63 bytes": (b"\x8d" + b"\xff" * 7 + b"\x7f", "bytes long"),
    "too many steps": (b"N0" * 600, "more than 1,000 steps"),
    "a memo at 2^31": (b"}r\xff\xff\xff\x7f", "no tensors"),
    "nothing taken": (b"R", "takes more than it has put"),
    "no group": (b"t", "a group that it has not begun"),
    "below its group": (b"N(\x85", "takes more than it has put"),
    "nothing stored": (b"h\x07", "has not stored"),
    "a tensor as a list": (b"}Na", "appends to what is no list"),
    "a text as a dict": (b"X\0\0\0\0NNs", "no dict"),
    "a call of a type": (b"ctorch\nFloatStorage\n)R", "cannot be called"),
    "a tensor of nothing": (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "from what makes none"),
    "a storage that is none": (wf.opcodes(wf.Persistent(("storage", 1, "0", "cpu", 4))), "no storage"),
    "a list": (b"]", "no dict of tensors"),
    "no tensors": (b"}", "no tensors"),
    "no end": (b"", "exhausted before"),
}
# fmt: on


@pytest.mark.timeout(60)
@pytest.mark.parametrize("form", BOTH)
@pytest.mark.parametrize("what", PICKLES)
def test_a_pickle_that_would_take_everything_is_refused(what, form, tmp_path, monkeypatch):
    monkeypatch.setattr(unpickle, "MOST", 1000)
    body, words = PICKLES[what]
    content = BOTH[form](wf.Raw(body), {})
    if not body:
        content = wf.archive({"a/data.pkl": b"\x80\x02"}) if form == "zip" else content[:15]
    refusal(written(tmp_path, content), words)


# --- headers that lie ------------------------------------------------------------------------------------------------


def torch_of(**changes) -> bytes:
    return wf.torch_zip({"w": wf.torch_tensor("0", ONE["w"], **changes)}, {"0": ONE["w"]})


def stream_of(**changes) -> bytes:
    return wf.torch_stream({"w": wf.torch_tensor("0", ONE["w"], **changes)}, {"0": ONE["w"]})


def zip_with(name: str, **info) -> bytes:
    """The archive of a small state_dict and one more member."""
    file = io.BytesIO(wf.torch_zip(wf.state_dict(ONE), wf.storages(ONE)))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(name, b"evil")
    return file.getvalue()


def bomb() -> bytes:
    """300 MB of zeros in 300 KB."""
    return wf.archive({"w.npy": wf.npy(np.zeros(75_000_000, np.float32))}, compress=True)


def overlapping() -> bytes:
    """A directory of four members that are all the same bytes of the file."""
    content = wf.archive({f"{i}.npy": wf.npy(np.arange(64.0)) for i in range(4)})
    at = content.index(b"PK\x01\x02")
    directory = bytearray(content[at:])
    member = len(content[:at]) // 4
    for i in range(4):
        entry = directory.index(f"{i}.npy".encode()) - 46
        directory[entry + 42 : entry + 46] = struct.pack("<I", 0)
        directory[entry + 46 : entry + 47] = str(i).encode()
    end = directory.index(b"PK\x05\x06")
    directory[end + 16 : end + 20] = struct.pack("<I", member)
    return content[:member] + bytes(directory)


def encrypted() -> bytes:
    content = bytearray(wf.npz(ONE))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def wide(content: bytes) -> bytes:
    """With a directory that claims to be 3 GB long."""
    end = content.index(b"PK\x05\x06")
    return content[: end + 12] + struct.pack("<I", 3_000_000_000) + content[end + 16 :]


# fmt: off
LIES = {
    "nothing": (lambda: b"", "begins with nothing"),
    "text": (lambda: b"a picture of a dog, in words", "no format of weights"),
    "one array": (lambda: wf.npy(ONE["w"]), "no format of weights"),
    "tar": (lambda: bytes(257) + b"ustar" + bytes(250), "a tar archive"),
    "a plain pickle": (lambda: wf.pickled({"w": 1}), "a pickle"),
    "a zip of texts": (lambda: wf.archive({"readme.txt": b"hello"}), "no kind that holds weights"),
    "an empty zip": (lambda: wf.archive({}) + b"", "no format of weights"),
    "two .pth in a zip": (lambda: wf.archive({"a.pth": b"", "b.pth": b""}), "no kind that holds weights"),
    "a zip without a state_dict": (lambda: wf.archive({"a.pth": wf.npz(ONE)}), "without a state_dict"),

    "safetensors: a huge header": (lambda: struct.pack("<Q", 1 << 40) + b'{"w', "no format of weights"),
    "safetensors: 20 MB of header": (lambda: struct.pack("<Q", 20 << 20) + b"{" + b" " * (20 << 20), "20,971,520"),
    "safetensors: overlap": (
        lambda: wf.safetensors({**ONE, "v": ONE["w"]}, v={"data_offsets": [0, 24]}), "invalid offset"),
    "safetensors: a gap": (lambda: wf.safetensors(ONE, w={"data_offsets": [4, 28]}), "w"),
    "safetensors: behind the end": (lambda: wf.safetensors(ONE, w={"data_offsets": [0, 48], "shape": [4, 3]}), ""),
    "safetensors: shape": (lambda: wf.safetensors(ONE, w={"shape": [2, 4]}), ""),
    "safetensors: overflow": (lambda: wf.safetensors(ONE, w={"shape": [1 << 40, 1 << 40]}), ""),
    "safetensors: absurd zeros": (
        lambda: wf.safetensors({"w": np.zeros(0, np.float32)}, w={"shape": [0, 1 << 60]}), "absurd shape"),
    "safetensors: a type": (lambda: wf.safetensors(ONE, w={"dtype": "F8_E4M3", "shape": [24]}), "F8_E4M3"),
    "safetensors: truncated": (lambda: wf.safetensors(ONE)[:-1], ""),
    "safetensors: no tensors": (lambda: wf.safetensors({}), "no tensors"),

    "torch: shape": (lambda: torch_of(shape=(3, 3), strides=(3, 1)), "does not fit its storage of 6"),
    "torch: offset": (lambda: torch_of(offset=1), "does not fit"),
    "torch: strides": (lambda: torch_of(strides=(6, 1)), "does not fit"),
    "torch: one number a billion times": (lambda: torch_of(shape=(1 << 30,), strides=(0,)), "does not fit"),
    "torch: negative stride": (lambda: torch_of(strides=(-3, 1)), "from what makes none"),
    "torch: overflow": (lambda: torch_of(shape=(1 << 40, 1 << 40), strides=(0, 0)), "does not fit"),
    "torch: absurd zeros": (lambda: torch_of(shape=(0, 1 << 60), strides=(1, 1)), "absurd shape"),
    "torch: many dimensions": (lambda: torch_of(shape=(1,) * 40, strides=(1,) * 40), "from what makes none"),
    "torch: a storage of 4 TB": (lambda: torch_of(count=1 << 40), "should have 4,398,046,511,104 bytes and has 24"),
    "torch: a storage too short": (lambda: torch_of(count=7), "should have 28 bytes and has 24"),
    "torch: a storage view": (lambda: torch_of(more=(("0", 0, 6),)), "no storage"),
    "torch: no storage": (lambda: wf.torch_zip(wf.state_dict(ONE), {}), "has 0"),
    "torch: two types": (lambda: wf.torch_zip({"a": wf.torch_tensor("0", ONE["w"]),
                                               "b": wf.torch_tensor("0", ONE["w"], kind="IntStorage")},
                                              {"0": ONE["w"]}), "described twice"),
    "torch: two names": (lambda: wf.torch_zip({"a": {"b": wf.torch_tensor("0", ONE["w"])},
                                               "a.b": wf.torch_tensor("1", ONE["w"])},
                                              {"0": ONE["w"], "1": ONE["w"]}), "two tensors 'a.b'"),
    "torch: big-endian": (lambda: wf.torch_zip(wf.state_dict(ONE), wf.storages(ONE), byteorder=b"big"), "big-endian"),
    "stream: a storage of 4 TB": (lambda: stream_of(count=1 << 40), "and has 6"),
    "stream: truncated": (lambda: stream_of()[:-1], "goes on for 1 bytes after the end"),
    "stream: no length": (lambda: stream_of()[:-25], "8 bytes are promised"),
    "stream: another storage": (
        lambda: wf.torch_stream({"w": wf.torch_tensor("1", ONE["w"])}, {"0": ONE["w"]}), "list of storages"),
    "stream: big-endian": (
        lambda: wf.torch_stream(wf.state_dict(ONE), wf.storages(ONE), little_endian=False), "big-endian"),
    "a thousand tensors of one storage": (
        lambda: wf.torch_zip({str(i): wf.torch_tensor("0", np.zeros(1 << 18, np.float32)) for i in range(1000)},
                             {"0": np.zeros(1 << 18, np.float32)}), "claim to unpack to 1,048,576,000"),

    "zip: ..": (lambda: zip_with("../evil.txt"), "leads outside: '../evil.txt'"),
    "zip: .. inside": (lambda: zip_with("archive/data/../../../evil"), "leads outside"),
    "zip: absolute": (lambda: zip_with("/etc/cron.d/evil"), "leads outside"),
    "zip: drive": (lambda: zip_with("C:/evil"), "leads outside"),
    "zip: backslash": (lambda: zip_with("..\\evil"), "leads outside"),
    "zip: a bomb": (bomb, "claim to unpack to 300,000,"),
    "zip: overlap": (overlapping, "overlap"),
    "zip: encrypted": (encrypted, "encrypted"),
    "zip: a directory of 3 GB": (lambda: wide(wf.npz(ONE)), ""),
    "zip: no directory": (lambda: wf.npz(ONE)[:-30], "not a zip file"),
    "zip: an endless comment": (lambda: wf.npz(ONE) + b"PK\x05\x06" * 30000, ""),

    "npz: shape": (lambda: wf.archive({"w.npy": wf.npy(ONE["w"], shape=(3, 3))}), "claims shape [3, 3]"),
    "npz: overflow": (lambda: wf.archive({"w.npy": wf.npy(ONE["w"], shape=(1 << 62, 8))}), "claims shape"),
    "npz: negative": (lambda: wf.archive({"w.npy": wf.npy(ONE["w"], shape=(-2, -3))}), "absurd shape"),
    "npz: objects": (lambda: wf.archive({"w.npy": wf.npy(np.array([None, 1]), pickles=True)}), "pickled"),
    "npz: fields": (lambda: wf.npz({"w": np.zeros(2, [("a", "f4")])}), "not numbers"),
    "npz: texts": (lambda: wf.npz({"w": np.array(["a", "b"])}), "not numbers"),
    "npz: complex": (lambda: wf.npz({"w": np.ones(2, np.complex64)}), "not numbers"),
    "npz: a header that nests": (lambda: wf.archive({"w.npy": wf.npy(ONE["w"], shape=Nested())}), ""),
    "npz: a header of code": (lambda: wf.archive({"w.npy": wf.npy(ONE["w"], shape=Code())}), "malformed node"),

    "caffe: shape": (lambda: wf.caffe({"c": [wf.blob(ONE["w"], shape=(3, 3))]}), "should be [3, 3] and has 24 bytes"),
    "caffe: four": (lambda: wf.caffe({"c": [wf.blob(ONE["w"], shape=(2, 4), four=True)]}, version=1), "[1, 1, 2, 4]"),
    "caffe: overflow": (lambda: wf.caffe({"c": [wf.blob(ONE["w"], shape=(1 << 40, 1 << 40))]}), "should be"),
    "caffe: negative": (lambda: wf.caffe({"c": [wf.blob(ONE["w"], shape=(-2, -3))]}), "should be [-2, -3]"),
    "caffe: many dimensions": (lambda: wf.caffe({"c": [wf.blob(ONE["w"], shape=(2, 3) + (1,) * 40)]}), "42-dim"),
    "caffe: truncated": (lambda: SAMPLES["new.caffemodel"][:-1], "no format of weights"),
    "caffe: twice": (lambda: wf.caffe({"c": [wf.blob(ONE["w"])]}) * 2, "two layers 'c'"),
    "caffe: no weights": (lambda: wf.caffe({"relu": []}), "no tensors"),
    "caffe: a message for a number": (
        lambda: wf.message([(100, wf.message([(1, "c"), (7, wf.message([(1, b"xx")]))]))]), "a message where a number"),
    "caffe: a number for a message": (lambda: wf.message([(100, wf.message([(7, 3)]))]), "a number where a message"),
    "caffe: too many fields": (lambda: wf.caffe({"c": []}) + b"\x18\x01" * 500_000, "no format of weights"),

    "onnx: shape": (lambda: wf.onnx([wf.initialiser("w", ONE["w"], dims=(3, 3))]), "should be [3, 3] and has 24 bytes"),
    "onnx: numbers": (
        lambda: wf.onnx([wf.initialiser("w", np.arange(3), raw=False, dims=(4,))]), "should be [4] and has 3 numbers"),
    "onnx: overflow": (lambda: wf.onnx([wf.initialiser("w", ONE["w"], dims=(1 << 62, 1 << 62))]), "should be"),
    "onnx: negative": (lambda: wf.onnx([wf.initialiser("w", ONE["w"], dims=(-2, -3))]), "absurd shape [-2, -3]"),
    "onnx: twice": (lambda: wf.onnx([wf.initialiser("w", ONE["w"])] * 2), "two initialisers 'w'"),
    "onnx: a type": (lambda: wf.message([(1, 8), (7, wf.message([(5, wf.message([(2, 8), (8, "w")]))]))]), "of type 8"),
    "onnx: ..": (lambda: external(location="../values.bin"), "outside of its folder, in '../values.bin'"),
    "onnx: absolute": (lambda: external(location="/etc/passwd"), "outside of its folder"),
    "onnx: a link": (lambda: external(location="link.bin"), "outside of its folder"),
    "onnx: the folder": (lambda: external(location="."), "is not there"),
    "onnx: missing": (lambda: external(location="no.bin"), "'no.bin', which is not there"),
    "onnx: behind the end": (lambda: external(location="beside.bin", offset="90"), "behind the end of 'beside.bin'"),
    "onnx: a negative place": (lambda: external(location="beside.bin", offset="-4"), "at '-4'"),
    "onnx: another length": (lambda: external(location="beside.bin", length="25"), "says '25'"),
}
# fmt: on


class Nested:
    def __repr__(self):
        return "(" * 3000 + ")" * 3000


class Code:
    def __repr__(self):
        return "__import__('os').system('touch sentinel')"


def external(**entries: str) -> bytes:
    return wf.onnx([wf.initialiser("w", ONE["w"], external=entries)])


@pytest.mark.parametrize("what", LIES)
def test_a_header_that_lies_is_refused_in_a_few_lines(what, tmp_path, monkeypatch):
    make, words = LIES[what]
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    written(tmp_path, bytes(100), "values.bin")
    written(folder, bytes(100), "beside.bin")
    (folder / "link.bin").symlink_to(tmp_path / "values.bin")
    refusal(written(folder, make()), words)
    assert sorted(os.listdir(folder)) == ["beside.bin", "link.bin", "weights.bin"]
    assert sorted(os.listdir(tmp_path)) == ["folder", "values.bin"]


def test_what_is_no_file_is_refused_by_name(tmp_path):
    for path in (tmp_path / "missing.pth", tmp_path):
        assert "legal: safetensors" in refusal(path, "there is no file of weights ")


# --- HDF5 ------------------------------------------------------------------------------------------------------------


def test_hdf5_without_h5py_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    refusal(written(tmp_path, b"\x89HDF\r\n\x1a\n" + bytes(100)), "pip install 'cnnjax[keras]'")


def test_names_of_keras_layers_and_the_configuration_are_metadata(tmp_path):
    h5py = pytest.importorskip("h5py")
    metadata = read(written(tmp_path, SAMPLES["net.keras"])).metadata
    assert metadata == {"config": '{"class_name": "Sequential"}', "conv1": "block1_conv1"} and h5py


def hostile_hdf5(h5py, opened) -> dict:
    """What is wrong -> (who makes it in an open file, what must be said)."""

    def virtual():
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource("other.h5", "w", (4,))
        opened.create_virtual_dataset("v", layout)

    def deep():
        opened.create_dataset("/".join("abcdefghijklmnopqrst"), data=ONE["w"])

    def link(name, target):
        opened[name] = target

    low = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    low.set_external(b"/etc/passwd", 0, 16)
    return {
        "external link": (lambda: link("x", h5py.ExternalLink("/etc/passwd", "/")), "'x' is a link to elsewhere"),
        "soft link": (lambda: link("x", h5py.SoftLink("/w")), "'x' is a link to elsewhere"),
        "loop": (lambda: link("g/g", opened.create_group("g")), "there twice"),
        "twice": (lambda: link("x", opened["w"]), "there twice"),
        "virtual": (virtual, "in another file"),
        "external values": (
            lambda: h5py.h5d.create(opened.id, b"x", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((4,)), low),
            "in another file",
        ),
        "deep": (deep, "16 deep"),
        "texts": (lambda: opened.create_dataset("x", data=["a", "b"]), "holds no numbers"),
        "complex": (lambda: opened.create_dataset("x", data=np.ones(2, np.complex64)), "not numbers"),
        "nothing": (lambda: opened.create_dataset("x", dtype="f4", shape=None), "holds no numbers"),
        "not there": (lambda: opened.create_dataset("x", shape=(1 << 40,), dtype="f4"), "and has 0"),
        "a bomb": (
            lambda: opened.create_dataset("x", shape=(1 << 29,), dtype="f4", chunks=(1 << 20,), compression="gzip"),
            "claim to unpack to 2,147,483,672",
        ),
        "a wide chunk": (
            lambda: opened.create_dataset("x", shape=(1,), maxshape=(None,), dtype="f4", chunks=(1 << 29,)),
            "claim to unpack to 2,147,483,648",
        ),
        "a plug-in": (lambda: opened.create_dataset("x", data=ONE["w"], compression="lzf"), "packed\nlegal: deflate"),
    }


@pytest.mark.parametrize("what", [
    "external link", "soft link", "loop", "twice", "virtual", "external values", "deep", "texts", "complex",
    "nothing", "not there", "a bomb", "a wide chunk", "a plug-in",
])  # fmt: skip
def test_hdf5_that_leads_elsewhere_or_lies_is_refused(what, tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "net.h5", "w") as opened:
        opened.create_dataset("w", data=ONE["w"])
        make, words = hostile_hdf5(h5py, opened)[what]
        make()
    refusal(tmp_path / "net.h5", words)


def test_code_in_a_keras_configuration_stays_text(tmp_path):
    pytest.importorskip("h5py")
    config = '{"class_name": "Lambda", "config": {"function": "__import__(\'os\').system(\'touch sentinel\')"}}'
    tensors = read(written(tmp_path, wf.keras(wf.hdf5(ONE), config=config)))
    equal(tensors, ONE)
    assert tensors.metadata["config"] == config


# --- files that the libraries write ----------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_what_torch_saves_is_read(zipped, tmp_path):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2)).state_dict()
    net["half"], net["turned"] = torch.ones(3, dtype=torch.bfloat16), torch.arange(6.0).reshape(2, 3).T
    net["part"], net["parameter"] = torch.arange(10)[2:8:2], torch.nn.Parameter(torch.zeros(2, 0))
    path = tmp_path / "net.pth"
    torch.save({"epoch": 2, "state_dict": net, "lr": 0.1}, path, _use_new_zipfile_serialization=zipped)
    expected = {n: t.detach().float().numpy() if n == "half" else t.detach().numpy() for n, t in net.items()}
    expected["half"] = expected["half"].astype(ml_dtypes.bfloat16)
    equal(read(path), expected)
    torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=zipped)
    refusal(path, "it asks for 'torch.nn.modules.linear.Linear'")


@pytest.fixture(scope="module")
def saved_by_keras(tmp_path_factory) -> Path:
    """A folder with one net in each of the forms of Keras, and its weights in an .npz."""
    pytest.importorskip("h5py")
    if not importlib.util.find_spec("keras"):
        pytest.skip("needs keras")
    folder = tmp_path_factory.mktemp("keras")
    code = """
import os; os.environ["KERAS_BACKEND"] = "jax"
import keras, numpy as np
layers = keras.layers
net = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="block1_conv1"),
                        layers.BatchNormalization(name="bn"), layers.Flatten(), layers.Dense(5, name="fc")])
net.save("net.keras"); net.save("net.h5"); net.save_weights("net.weights.h5")
np.savez("expected.npz", *net.get_weights())
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=folder)
    return folder


@pytest.mark.parametrize("name", ["net.keras", "net.h5", "net.weights.h5"])
def test_what_keras_saves_is_read(name, saved_by_keras):
    tensors, expected = read(saved_by_keras / name), read(saved_by_keras / "expected.npz")
    assert sorted(tensors[n].tobytes() for n in tensors) == sorted(expected[n].tobytes() for n in expected)
    assert {tensors.shape(n) for n in tensors} == {(3, 3, 3, 4), (4,), (144, 5), (5,)}
    if name != "net.h5":
        assert "block1_conv1" in tensors.metadata.values()


@pytest.mark.parametrize("apart", [False, True])
def test_what_onnx_saves_is_read(apart, tmp_path):
    onnx = pytest.importorskip("onnx")
    initialisers = [onnx.numpy_helper.from_array(values, name) for name, values in TENSORS.items()]
    initialisers.append(onnx.helper.make_tensor("floats", 1, [2, 2], [1.0, 2.0, 3.0, 4.0]))
    initialisers.append(onnx.helper.make_tensor("sizes", 7, [2], [-1, 1 << 40]))
    model = onnx.helper.make_model(onnx.helper.make_graph([], "net", [], [], initialisers))
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=apart, location="values", size_threshold=0)
    more = {"floats": np.array([[1, 2], [3, 4]], np.float32), "sizes": np.array([-1, 1 << 40])}
    equal(read(tmp_path / "net.onnx"), TENSORS | more)
    assert (tmp_path / "values").exists() == apart


def test_what_numpy_and_safetensors_save_is_read(tmp_path):
    safetensors_numpy = pytest.importorskip("safetensors.numpy")
    safetensors_numpy.save_file(TENSORS, tmp_path / "a.safetensors", {"made": "here"})
    np.savez(tmp_path / "a.npz", **TENSORS)
    np.savez_compressed(tmp_path / "b.npz", **TENSORS)
    for name in ("a.safetensors", "a.npz", "b.npz"):
        equal(read(tmp_path / name), TENSORS)


# --- how much it takes -----------------------------------------------------------------------------------------------


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / script, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_damaged_files_are_read_or_refused_and_nothing_else(tmp_path):
    assert " 0 badly handled" in run("fuzz_weights.py", "100", "--seed", "1", "--keep", str(tmp_path))


@pytest.mark.long
def test_a_thousand_damaged_files_are_read_or_refused_and_nothing_else(tmp_path):
    assert " 0 badly handled" in run("fuzz_weights.py", "1000", "--keep", str(tmp_path))


@pytest.mark.long
def test_half_a_gigabyte_is_in_memory_once(tmp_path):
    assert "zip.pth" in run("memory_of_weights.py", "--only", "vgg16.safetensors", "zip.pth", "--folder", str(tmp_path))
