"""Published weights: their records, how they are fetched, and what is written and read back."""

import hashlib
import http.server
import io
import json
import sys
import threading
import zipfile

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from test_convert import random_tensors

from cnnjax.data.images import Transform
from cnnjax.download import fetch
from cnnjax.errors import CnnjaxError
from cnnjax.models import lenet, resnet, surgery
from cnnjax.models.chain import chain
from cnnjax.models.layers import LRN, AvgPool, Conv, Dense, MaxPool, Norm
from cnnjax.weights import convert, export, records, save
from cnnjax.weights.ports import PORTS


@pytest.mark.parametrize("known", records.RECORDS.values(), ids=lambda known: known.name)
def test_every_record_has_a_network_that_sees_images_of_its_size(known):
    port = PORTS[known.source][known.architecture]
    assert known.transform.size == (port.size, port.size)
    assert known.name.startswith(f"{known.architecture}.{known.source}")
    kind, _, value = (known.digest or "sha256:00000000").partition(":")
    assert 8 <= len(value) <= 2 * hashlib.new(kind).digest_size and int(value, 16) >= 0
    assert known.url.startswith("https://") or len(value) == 40
    assert known.top5 is None or known.top1 is None or 0 < known.top1 < known.top5 < 100
    assert len(records.described(known).splitlines()) == 2


def test_the_shorter_side_before_the_crop_is_the_published_one():
    sides = {"vgg16.torchvision": 256, "resnet50.torchvision.v2": 232, "inception_v3.torchvision": 342,
             "resnet50.timm.tv2_in1k": 232, "alexnet.caffe": 256}  # fmt: skip
    for name, side in sides.items():
        transform = records.record(name).transform
        assert int(transform.size[0] / transform.crop_pct + 1e-6) == side


def test_weights_not_for_commerce_are_refused_unless_accepted(tmp_path, capsys):
    name, file = "resnet50.timm.fb_ssl_yfcc100m_ft_in1k", tmp_path / "model.safetensors"
    save_file(random_tensors("timm", "resnet50"), file)
    with pytest.raises(CnnjaxError, match=r"CC-BY-NC-4\.0") as error:
        records.load(name, file=file)
    assert len(str(error.value).splitlines()) == 2
    records.load(name, file=file, accept_noncommercial=True)
    assert "licence CC-BY-NC-4.0" in capsys.readouterr().out


def test_an_unknown_name_is_answered_with_those_of_the_same_network():
    with pytest.raises(CnnjaxError, match=r"legal: resnet18\.timm, .*resnet18\.pytorchcv"):
        records.load("resnet18.keras")
    with pytest.raises(CnnjaxError, match=r"vgg16\.timm"):
        records.load("squeezenet")


@pytest.fixture
def server():
    """A server of `server.files` that breaks off after `server.breaks` bytes, remembers what it was asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            owner = self.server
            owner.asked.append((self.path, self.headers.get("Range")))
            if target := owner.moved.get(self.path):
                self.send_response(302)
                self.send_header("Location", target)
                self.end_headers()
                return
            if self.path not in owner.files:
                self.send_error(404)
                return
            body = owner.files[self.path]
            tag = f'"{hashlib.md5(body).hexdigest()}"'
            start = 0
            if owner.ranges and (asked := self.headers.get("Range")) and self.headers.get("If-Range") == tag:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("ETag", tag)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            end = start + owner.breaks.pop(0) if owner.breaks else len(body)
            self.wfile.write(body[start:end])

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.files, running.moved, running.breaks, running.ranges, running.asked = {}, {}, [], True, []
        running.url = f"http://127.0.0.1:{running.server_address[1]}"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


BODY = np.random.default_rng(0).bytes(3 << 20)
DIGEST = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


def get(server, path, digest=DIGEST, name="/file"):
    return fetch(server.url + name, path, digest, pause=0.01).read_bytes()


def test_a_file_is_fetched_once(server, tmp_path):
    server.files["/file"] = BODY
    path = tmp_path / "deep" / "file"
    assert get(server, path) == get(server, path) == BODY
    assert len(server.asked) == 1
    assert sorted(p.name for p in path.parent.iterdir()) == ["file"]


def test_what_broke_off_goes_on_from_there(server, tmp_path):
    server.files["/file"], server.breaks = BODY, [1 << 20, 12345]
    assert get(server, tmp_path / "file") == BODY
    assert server.asked == [("/file", None), ("/file", f"bytes={1 << 20}-"), ("/file", f"bytes={(1 << 20) + 12345}-")]


def test_the_next_call_goes_on_where_the_last_gave_up(server, tmp_path):
    server.files["/file"], server.breaks = BODY, [1000] * 4
    with pytest.raises(CnnjaxError, match="4,000 bytes are kept"):
        get(server, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    assert get(server, tmp_path / "file") == BODY
    assert server.asked[-1] == ("/file", "bytes=4000-")


def test_a_server_that_knows_no_ranges_sends_all_again(server, tmp_path):
    server.files["/file"], server.breaks, server.ranges = BODY, [1 << 20], False
    assert get(server, tmp_path / "file") == BODY


def test_a_file_that_has_changed_meanwhile_is_fetched_anew(server, tmp_path):
    server.files["/file"], server.breaks = b"x" * len(BODY), [1000] * 4
    with pytest.raises(CnnjaxError):
        get(server, tmp_path / "file")
    server.files["/file"] = BODY
    assert get(server, tmp_path / "file") == BODY


@pytest.mark.parametrize("digest", ["sha256:00", "sha1:" + "0" * 40, "md5:" + "1" * 32])
def test_another_file_is_refused_and_nothing_kept(server, tmp_path, digest):
    server.files["/file"] = BODY
    with pytest.raises(CnnjaxError, match="is not the file it should be") as error:
        get(server, tmp_path / "file", digest)
    assert len(str(error.value).splitlines()) <= 3
    assert not (tmp_path / "file").exists() and not (tmp_path / "file.part").exists()


def test_the_beginning_of_a_hash_will_do_and_that_of_the_one_file_in_a_zip(server, tmp_path):
    server.files["/file"] = BODY
    assert get(server, tmp_path / "a", DIGEST[:15]) == BODY
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("weights.pth", BODY)
    server.files["/file"] = packed.getvalue()
    assert get(server, tmp_path / "b", f"sha1:{hashlib.sha1(BODY).hexdigest()}") == packed.getvalue()


def test_redirections_are_followed_and_what_is_missing_is_said_at_once(server, tmp_path):
    server.files["/file"], server.moved["/old"] = BODY, "/file"
    assert get(server, tmp_path / "file", name="/old") == BODY
    server.asked.clear()
    with pytest.raises(CnnjaxError, match="404"):
        get(server, tmp_path / "other", name="/none")
    assert len(server.asked) == 1


@pytest.mark.parametrize("url", ["ftp://a/b", "file:///etc/passwd", "http://example.org/weights.pth"])
def test_only_https_is_asked_unless_the_whole_hash_is_known(url, tmp_path):
    with pytest.raises(CnnjaxError, match="no https address"):
        fetch(url, tmp_path / "file", "sha256:1234abcd")


def test_a_network_fetched_and_one_from_a_file_are_the_same(server, tmp_path, monkeypatch, capsys):
    tensors = random_tensors("pytorchcv", "nin_cifar10")
    file = tmp_path / "given.safetensors"
    save_file(tensors, file)
    server.files["/nin.safetensors"] = file.read_bytes()
    known = records.dataclasses.replace(
        records.record("nin_cifar10.pytorchcv"),
        url=f"{server.url}/nin.safetensors",
        digest=f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}",
    )
    monkeypatch.setitem(records.RECORDS, known.name, known)
    one = records.load(known.name, cache=tmp_path / "cache")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "licence MIT" in lines[0] and "poolings pad" in lines[1]
    two = records.load(known.name, file=file)
    assert one[0] == two[0] and one[2:] == two[2:]
    jax.tree.map(np.testing.assert_array_equal, one[1], two[1])
    assert (tmp_path / "cache/weights" / known.name / "nin.safetensors").is_file()
    server.files.clear()
    records.load(known.name, cache=tmp_path / "cache")
    with pytest.raises(CnnjaxError, match="give it: file=PATH"):
        records.load(known.name, cache=tmp_path / "empty")


# --- out --------------------------------------------------------------------------------------------------------------

CARD = {
    "transform": Transform((32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)),
    "data": "five signs",
    "recipe": "modern, 3 epochs",
    "accuracy": {"top-1": 91.25},
}


def initial(net, shape, seed=0):
    """Every array random, statistics too."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), np.zeros((1, *shape), np.float32)))
    return jax.tree.map(lambda leaf: rng.uniform(0.1, 0.3, leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(("net", "source"), [
    (resnet.resnet(18, 5), "timm"),
    (resnet.cifar_resnet(20, 5), "cnnjax"),
], ids=["timm", "ours"])  # fmt: skip
def test_what_is_saved_is_read_back_bit_for_bit(net, source, tmp_path, capsys):
    variables = initial(net, (32, 32, 3))
    folder = save.save(tmp_path / "out", net, variables, image_shape=(32, 32, 3), names=tuple("abcde"), **CARD)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again, read, transform, known = records.load(str(folder))
    assert (again, transform, known.source, known.top1) == (net, CARD["transform"], source, 91.25)
    jax.tree.map(np.testing.assert_array_equal, read, variables)
    config, card = json.loads((folder / "config.json").read_text()), (folder / "README.md").read_text()
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert all(said in card for said in ("five signs", "modern, 3 epochs", "91.25 %", digest, "apache-2.0", "a, b, c"))
    assert ("pretrained_cfg" in config) == (source == "timm")
    if source == "timm":
        assert config["architecture"] == "resnet18" and config["pretrained_cfg"]["mean"] == [0.5, 0.4, 0.3]


@pytest.mark.parametrize("name, refused", [
    ("resnet50.timm.fb_ssl_yfcc100m_ft_in1k", True), ("vgg16.keras", False), ("vgg16.timm", False),
])  # fmt: skip
def test_only_weights_under_a_licence_that_forbids_it_are_no_good_for_trade(name, refused):
    """Oxford's first release was for research only; what is loaded is a later one, under CC-BY."""
    assert records.RECORDS[name].restricted == refused


def test_what_should_not_be_saved_is_not(tmp_path):
    net = lenet.lenet5()
    variables = initial(net, (32, 32, 1))
    shape = {"image_shape": (32, 32, 1)}
    bad = jax.tree.map(np.copy, variables)
    jax.tree.leaves(bad)[0][0] = np.nan
    with pytest.raises(CnnjaxError, match="not finite"):
        save.save(tmp_path / "out", net, bad, **shape, **CARD)
    other = surgery.with_features(net, **{net.names[0]: 7})
    with pytest.raises(CnnjaxError, match="nor in the catalogue"):
        save.save(tmp_path / "out", other, initial(other, (32, 32, 1)), **shape, **CARD)
    assert not (tmp_path / "out").exists()
    save.save(tmp_path / "out", net, variables, **shape, **CARD)
    with pytest.raises(CnnjaxError, match="not empty"):
        save.save(tmp_path / "out", net, variables, **shape, **CARD)
    (tmp_path / "out/config.json").write_text("{}")
    with pytest.raises(CnnjaxError, match=r"config\.json is not what"):
        records.load(str(tmp_path / "out"))


@pytest.mark.parametrize(("net", "shape"), [
    (lenet.lenet5(), (32, 32, 1)),
    (resnet.cifar_resnet(8), (32, 32, 3)),
    (convert.network("pytorchcv", "nin_cifar10"), (32, 32, 3)),
], ids=["lenet", "resnet", "nin"])  # fmt: skip
def test_what_is_exported_runs_without_us_on_any_batch(net, shape, tmp_path):
    pytest.importorskip("flatbuffers", reason="jax.export writes with flatbuffers")
    variables = initial(net, shape)
    transform = Transform(shape[:2], mean=(0.5,), std=(0.25,))
    error = export.export(tmp_path / "net.stablehlo", net, variables, image_shape=shape, transform=transform)
    assert error <= export.LARGEST_ERROR
    written = jax.export.deserialize(bytearray((tmp_path / "net.stablehlo").read_bytes()))
    assert written.platforms == ("cpu", "cuda")
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), np.uint8)
    want = net.apply(variables, (images / np.float32(255) - 0.5) / 0.25).logits
    np.testing.assert_allclose(written.call(images), want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize(("net", "shape"), [
    (lenet.lenet5(), (32, 32, 1)),
    (chain(conv1=Conv(4, 3), norm1=LRN(), pool1=MaxPool(3, stride=2, pad=1), conv2=Conv(4, 3, groups=2, norm=Norm()),
           pool2=AvgPool(3, stride=2), fc=Dense(3, act=None)), (20, 17, 3)),
], ids=["lenet", "every layer"])  # fmt: skip
def test_what_is_exported_as_onnx_runs_in_its_runtime_on_any_batch(net, shape, tmp_path):
    pytest.importorskip("jax2onnx", reason="pip install cnnjax[onnx] && pip install --no-deps jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install cnnjax[onnx]")
    variables, transform = initial(net, shape), Transform(shape[:2], mean=(0.5,), std=(0.25,))
    path = tmp_path / "net.onnx"
    error = export.export_onnx(path, net, variables, image_shape=shape, transform=transform)
    assert error <= export.LARGEST_ERROR
    session = onnxruntime.InferenceSession(path)
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), np.uint8)
    want = net.apply(variables, (images / np.float32(255) - 0.5) / 0.25).logits
    [have] = session.run(None, {session.get_inputs()[0].name: images})
    np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_onnx_without_its_packages_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(CnnjaxError, match="pip install --no-deps jax2onnx"):
        export.export_onnx(tmp_path / "net.onnx", lenet.lenet5(), {}, image_shape=(32, 32, 1))


def test_an_export_that_differs_is_not_left_behind(tmp_path, monkeypatch):
    pytest.importorskip("flatbuffers", reason="jax.export writes with flatbuffers")
    net = lenet.lenet5()
    monkeypatch.setattr(export, "LARGEST_ERROR", -1.0)
    with pytest.raises(CnnjaxError, match="it is removed"):
        export.export(tmp_path / "net", net, initial(net, (32, 32, 1)), image_shape=(32, 32, 1))
    assert not (tmp_path / "net").exists()
