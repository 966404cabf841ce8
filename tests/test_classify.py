"""Classification of pictures: odd files, order, padding, names, drawings, and whose weights answer."""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import types
import warnings
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from cnnjax import labelled, options
from cnnjax.data.images import Transform
from cnnjax.errors import CnnjaxError
from cnnjax.experiment import command, configuration, run
from cnnjax.models.catalog import entry
from cnnjax.train import evaluate as scoring
from cnnjax.weights import classes, convert, records, save
from experiments import classify, evaluate, train

SMALL = "resnet20_cifar10.pytorchcv"


def settings(*argv: object) -> classify.Settings:
    return options.parse("classify", "", {"": classify.Settings()}, (), classify.spread([*map(str, argv)]))


def classified(*argv: object) -> dict:
    return classify.classify(settings(*argv))


def refused(*argv: object) -> tuple[int, list[str]]:
    """The exit code and what stands on stderr."""
    with contextlib.redirect_stderr(io.StringIO()) as said, pytest.raises(SystemExit) as stop, command():
        classified(*argv)
    return int(stop.value.code or 0), said.getvalue().splitlines()


def probabilities(one: dict, count: int = 10) -> np.ndarray:
    """By class, of a picture of which all classes were told."""
    assert [c["probability"] for c in one["classes"]] == sorted(
        (c["probability"] for c in one["classes"]), reverse=True
    )
    found = {c["class"]: c["probability"] for c in one["classes"]}
    assert sorted(found) == list(range(count))
    return np.array([found[n] for n in range(count)])


def random_variables(net, shape) -> dict:
    """Such that no two pictures get the same answer."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), np.zeros((1, *shape), np.float32)))
    return jax.tree.map(lambda leaf: rng.normal(0, 2 / np.sqrt(leaf.size), leaf.shape).astype(np.float32) * 10, shapes)


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """A small network for colour pictures of 32 pixels, in a folder as `save` writes it."""
    net = entry("lenet5_cifar_rgb").make()
    return save.save(
        tmp_path_factory.mktemp("weights") / "small", net, random_variables(net, (32, 32, 3)), image_shape=(32, 32, 3),
        transform=Transform(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)), data="noise", recipe="none", accuracy={},
    )  # fmt: skip


@pytest.fixture(scope="session")
def record_file(tmp_path_factory) -> Path:
    """A file with the keys and shapes of a record, and random values."""
    rng, tensors = np.random.default_rng(0), {}
    for leaf in convert.leaves("pytorchcv", "resnet20_cifar10", convert.network("pytorchcv", "resnet20_cifar10")):
        reach = np.sqrt(1 / np.prod(leaf.source_shape[1:]))  # for 1 of a vector
        low = -reach if len(leaf.source_shape) > 1 else 0.1
        tensors[leaf.key] = rng.uniform(low, reach, leaf.source_shape).astype(np.float32)
    file = tmp_path_factory.mktemp("weights") / "record.safetensors"
    save_file(tensors, file)
    return file


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scene(seed: int = 0, height: int = 40, width: int = 56) -> np.ndarray:
    """Colours that change slowly, so that a lossy format keeps them."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


# --- odd files

COLOUR = scene()
GREY = np.asarray(Image.fromarray(COLOUR).convert("L"))
PALETTE = Image.fromarray(COLOUR).quantize(60)
CLEAR = PALETTE.getpixel((3, 3))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, bits: int, kind: int, rows: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def encoded(picture, kind: str = "PNG", **how) -> bytes:
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, kind, **how)
    return file.getvalue()


def turned(orientation: int, stored: np.ndarray, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(np.ascontiguousarray(stored), kind, exif=exif, **({"quality": 98} if kind == "JPEG" else {}))


def sixteen_bits(pixels: np.ndarray) -> bytes:
    rows = b"".join(b"\0" + (row.astype(np.uint16) * 257).astype(">u2").tobytes() for row in pixels)
    return png(pixels.shape[1], pixels.shape[0], 16, 2, rows)


def on_white() -> np.ndarray:
    pixels = np.array(PALETTE.convert("RGB"))
    pixels[np.asarray(PALETTE) == CLEAR] = 255
    return pixels


FRAMES = [PALETTE, Image.new("P", PALETTE.size)]
CMYK = Image.fromarray(COLOUR).convert("CMYK")
# What is stored -> (its bytes, the pixels that it shows, by how much probabilities may differ)
ODD = {
    "cmyk.jpg": (encoded(CMYK, "JPEG", quality=100, subsampling=0), COLOUR, 0.02),
    "cmyk.tif": (encoded(CMYK, "TIFF"), COLOUR, 1e-5),
    "grey16.png": (encoded(GREY.astype(np.uint16) * 257), GREY, 1e-5),
    "grey16.tif": (encoded(GREY.astype(np.uint16) * 257, "TIFF"), GREY, 1e-5),
    "rgb16.png": (sixteen_bits(COLOUR), COLOUR, 1e-5),
    "grey.png": (encoded(GREY), GREY, 1e-5),
    "upside_down.png": (turned(3, COLOUR[::-1, ::-1]), COLOUR, 1e-5),
    "on_its_side.png": (turned(6, np.rot90(COLOUR)), COLOUR, 1e-5),
    "on_its_side.jpg": (turned(8, np.rot90(COLOUR, -1), "JPEG"), COLOUR, 0.02),
    "palette.png": (encoded(PALETTE, transparency=CLEAR), on_white(), 1e-5),
    "transparent.png": (encoded(np.dstack([COLOUR, np.full_like(GREY, 255)])), COLOUR, 1e-5),
    "animated.gif": (encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), PALETTE.convert("RGB"), 1e-5),
    "no_suffix": (encoded(COLOUR), COLOUR, 1e-5),
    "a [name] ü.png": (encoded(COLOUR), COLOUR, 1e-5),
}
JPEG = encoded(COLOUR, "JPEG")
# What cannot be read -> (its bytes, what is said of it)
BROKEN = {
    "truncated.jpg": (JPEG[: len(JPEG) * 2 // 3], "truncated"),
    "text.jpg": (b"this is no picture\n" * 9, "cannot identify"),
    "empty.png": (b"", "cannot identify"),
    "bomb.png": (png(100_000, 100_000, 8, 2, bytes(99)), "10000000000 pixels"),
    "large.png": (png(8_000, 7_000, 8, 2, bytes(99)), "8000×7000 pixels: at most 50,000,000"),
    "float.tif": (encoded(Image.new("F", (4, 4), 0.5), "TIFF"), "floating-point"),
    "thread.png": (encoded(np.zeros((1, 2_000_000, 3), np.uint8)), "would be enlarged"),
}
ABSENT = {"gone.png": "there is no picture", "none/*.jpg": "no file matches", "bare": "no picture in the folder",
          "pipe": "neither a file nor a folder"}  # fmt: skip


@pytest.fixture(scope="session")
def odd(saved, tmp_path_factory):
    """All of them at once, with their plain equals: (results by file, lines on stderr, exit code)."""
    folder = tmp_path_factory.mktemp("odd")
    for name, (data, *_) in (ODD | BROKEN).items():
        (folder / name).write_bytes(data)
    for name, (_, pixels, _) in ODD.items():
        Image.fromarray(np.asarray(pixels)).save(folder / f"{name}.plain.png")
    (folder / "bare").mkdir()
    os.mkfifo(folder / "pipe")
    names = sorted([*BROKEN, *ABSENT, *ODD, *(f"{name}.plain.png" for name in ODD)])  # the good among the bad
    asked = [folder / name for name in names]
    with contextlib.chdir(folder), warnings.catch_warnings(action="error"):
        code, said = refused("--image", *asked, "--weights", saved, "--top", 10, "--batch", 4, "--workdir", "run")
    results = json.loads((folder / "run" / "results.json").read_text())
    assert [one["file"] for one in results["pictures"]] == [*map(str, asked)]
    return {Path(one["file"]).name: one for one in results["pictures"]}, said, code, folder


@pytest.mark.parametrize("name", ODD)
def test_an_odd_picture_gets_the_answer_of_the_plain_one(odd, name):
    found, said, _, folder = odd
    one, plain = probabilities(found[name]), probabilities(found[f"{name}.plain.png"])
    assert np.abs(one - plain).max() <= ODD[name][2]
    others = [probabilities(found[f"{n}.plain.png"]) for n, row in ODD.items() if row[1] is not ODD[name][1]]
    assert all(np.abs(one - other).max() > 2 * ODD[name][2] for other in others), "the network tells nothing apart"
    assert not any(name in line for line in said)
    drawn = np.asarray(Image.open(folder / "run" / found[name]["drawn"]))
    assert (drawn[0, 210, 0], drawn.shape[1]) != (255, 0)


@pytest.mark.parametrize("name", [*BROKEN, *ABSENT])
def test_what_cannot_be_read_is_named_in_one_line(odd, name):
    found, said, code, _ = odd
    one = found[Path(name).name]
    lines = [line for line in said if f"/{name}" in line]
    assert code == 2 and len(lines) == 1 and lines[0] == f"error: {one['error']}"
    assert (BROKEN[name][1] if name in BROKEN else ABSENT[name]) in one["error"] and "classes" not in one


def test_how_many_failed_is_said_in_the_end(odd):
    found, said, _, folder = odd
    wrong = len(BROKEN) + len(ABSENT)
    assert len(said) == wrong + 1 and said[-1].startswith(f"error: {wrong} of {len(found)} pictures")
    page = (folder / "run" / "report.html").read_text()
    assert page.count("<svg") == len(found) - wrong and all(name in page for name in BROKEN)


def test_where_no_picture_is_there_no_weights_are_read(monkeypatch):
    monkeypatch.setattr(records, "load", None)
    code, said = refused("--image", "gone.png", "nor_this.png")
    assert (code, said) == (2, ["error: there is no picture gone.png", "there is no picture nor_this.png"])
    assert not Path("runs").exists()
    assert refused("--image")[1] == ["error: there is nothing to classify", "give pictures with --image PATH"]


# --- which pictures, in what order


def test_files_folders_and_patterns_are_taken_in_the_order_asked_and_each_once(place):
    for name in ("a/2.png", "a/1.png", "a/below/3.png", "a/.hidden.png", "a/.git/4.png", "b/x[1].png", "b/y.png"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    found = classify.pictures(["b/y.png", "a", "b/*.png", "b/x[1].png", "a/1.png", "c*"])
    assert list(found) == ["b/y.png", "a/1.png", "a/2.png", "a/below/3.png", "b/x[1].png", "c*"]
    assert [*map(bool, found.values())] == [False] * 5 + [True]


def test_names_that_cannot_be_written_are_handled():
    folder = os.fsencode("strange")
    os.mkdir(folder)
    with open(folder + b"/\xff\x1b.png", "wb"):
        pass
    assert [len(name) for name in classify.pictures(["strange"])] == [14]
    with pytest.raises(CnnjaxError, match="\ufffd is not UTF-8"):
        settings("--image", "\udcff")
    assert "\x1b" not in str(classify.pictures(["\x1b[31m"]).values())


def test_several_pictures_may_follow_one_option():
    spread = classify.spread(["--top", "3", "--image", "a", "b", "--weights", "w", "--image=c", "d", "--batch", "2"])
    assert " ".join(spread) == "--top 3 --image=a --image=b --weights w --image=c --image=d --batch 2"
    assert settings(*spread).image == ("a", "b", "c", "d")
    assert settings(*options.arguments(settings(*spread).record())) == settings(*spread)


def test_the_size_of_a_batch_changes_no_answer_and_a_batch_that_is_not_full_compiles_nothing(saved, place):
    for n in range(7):
        Image.fromarray(scene(n, 40 + 9 * n, 60)).save(f"{n}.png")
    (place / "3.png").write_bytes(b"broken")
    programs, found = scoring._forward._cache_size, {}  # type: ignore[attr-defined]
    for batch in (1, 4, 100):
        before = programs()
        refused("--image", "*.png", "--weights", saved, "--batch", batch, "--top", 10, "--workdir", f"run{batch}")
        assert programs() <= before + 1
        found[batch] = json.loads(Path(f"run{batch}/results.json").read_text())["pictures"]
        assert [one["file"] for one in found[batch]] == [f"{n}.png" for n in range(7)]
    for one, four, all_at_once in zip(*found.values(), strict=True):
        if "error" not in one:
            np.testing.assert_allclose(probabilities(one), probabilities(four), atol=1e-6)
            np.testing.assert_allclose(probabilities(one), probabilities(all_at_once), atol=1e-6)
    assert len({one["classes"][0]["probability"] for one in found[1] if "error" not in one}) == 6


def test_the_same_command_looks_again(saved):
    Image.fromarray(scene(1)).save("one.png")
    first = classified("--image", "one.png", "--weights", saved)
    Image.fromarray(scene(2)).save("one.png")
    second = classified("--image", "one.png", "--weights", saved)
    assert first["pictures"] != second["pictures"] and first["config"] == second["config"]
    assert len(list(Path("runs").iterdir())) == 1


# --- whose weights, and what they want to see


def by_hand(pixels: np.ndarray, known: records.Record, file: Path, *, swapped: bool = False) -> np.ndarray:
    """Pillow, NumPy, and the network."""
    net, variables = convert.convert(known.source, known.architecture, load_file(file))
    height, width = pixels.shape[:2]
    size = (32 * width // height, 32) if width > height else (32, 32 * height // width)
    seen = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    top, left = (round((n - 32) / 2) for n in seen.shape[:2])
    values = seen[top : top + 32, left : left + 32, :: -1 if swapped else 1].astype(np.float32) / 255
    values = (values - np.array(known.transform.mean, np.float32)) / np.array(known.transform.std, np.float32)
    output: Any = net.apply(variables, values[None])
    logits = np.asarray(output.logits[0], np.float64)
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


def test_a_record_sees_the_values_that_it_was_trained_on(record_file, capsys):
    Image.fromarray(COLOUR).save("one.png")
    results = classified("--image", "one.png", "--weights", SMALL, "--file", record_file, "--top", 10)
    [one] = results["pictures"]
    found, known = probabilities(one), records.record(SMALL)
    np.testing.assert_allclose(found, by_hand(COLOUR, known, record_file), rtol=1e-4, atol=1e-6)
    assert np.abs(found - by_hand(COLOUR, known, record_file, swapped=True)).max() > 1e-3
    assert [c["name"] for c in one["classes"]] == [classes.CIFAR10[c["class"]] for c in one["classes"]]
    said = capsys.readouterr().out
    assert said.startswith(records.described(known) + "\n") and results["weights"] == said.splitlines()[:2]
    for c in one["classes"]:
        assert f"{c['name']}" in said and f"{100 * c['probability']:.2f}" in said


def test_only_the_likeliest_are_told(record_file):
    Image.fromarray(COLOUR).save("one.png")
    [all_of_them] = classified("--image", "one.png", "--weights", SMALL, "--file", record_file, "--top", 99)["pictures"]
    [three] = classified("--image", "one.png", "--weights", SMALL, "--file", record_file, "--top", 3)["pictures"]
    assert len(all_of_them["classes"]) == 10 and three["classes"] == all_of_them["classes"][:3]


def test_classes_have_the_names_of_the_saved_configuration_or_their_numbers(saved, place):
    Image.fromarray(COLOUR).save("one.png")
    [one] = classified("--image", "one.png", "--weights", saved)["pictures"]
    assert [c["name"] for c in one["classes"]] == [f"class {c['class']}" for c in one["classes"]]
    shutil.copytree(saved, "named")
    config = json.loads(Path("named/config.json").read_text())
    config["cnnjax"]["names"] = [*"abcdefghij"]
    Path("named/config.json").write_text(json.dumps(config))
    [one] = classified("--image", "one.png", "--weights", "named")["pictures"]
    assert [c["name"] for c in one["classes"]] == ["abcdefghij"[c["class"]] for c in one["classes"]]


def test_a_training_answers_as_it_is_scored(place):
    random = np.random.default_rng(0)
    image, label = random.integers(0, 256, (40, 14, 14, 3), np.uint8), np.arange(40, dtype=np.int32) % 3
    np.savez("photos.npz", image=image, label=label, classes=np.array(["dark", "grey", "bright"]))
    asked = ["--data", "npz:photos.npz", "--steps", "2", "--batch", "12", "--workdir", "trained"]
    run(train.EXPERIMENT, configuration(train.EXPERIMENT, asked))
    Image.fromarray(image[5]).save("one.png")
    [one] = classified("--image", "one.png", "--weights", "trained")["pictures"]
    trained = evaluate.trained(Path("trained"), "last")
    height, width, channels = trained.data.train.image.shape[1:]
    grey = Image.fromarray(image[5]).resize((width, height), Image.Resampling.BILINEAR).convert("L")
    log_p = scoring.predict([evaluate.member(trained, None)], jax.numpy.asarray(grey)[None, ..., None])
    assert {c["name"] for c in one["classes"]} == {"dark", "grey", "bright"} and channels == 1
    np.testing.assert_allclose(probabilities(one, 3), np.exp(log_p[0]), atol=5e-3)


def test_what_does_not_go_together_is_refused(saved, record_file):
    Image.fromarray(COLOUR).save("one.png")
    for argv, said in (
        (["--weights", saved, "--file", record_file], "holds its own file"),
        (["--weights", "vgg61.timm"], "unknown weights 'vgg61.timm'"),
        (["--weights", "vgg16.timm", "--file", record_file], "do not fit vgg16 of timm"),
        (["--weights", "vgg16.timm", "--file", "gone"], "gone"),
        (["--top", 0], "--top is 0"),
        (["--weights", "resnet50.timm.fb_ssl_yfcc100m_ft_in1k"], "--accept-noncommercial"),
        (["--weights", "."], "holds no training"),
    ):
        code, lines = refused("--image", "one.png", *argv)
        assert code == 2 and len(lines) <= 5 and any(said in line for line in lines), lines
    assert not list(Path().glob("runs/*/config.json"))


def test_weights_that_say_no_number_are_refused(record_file, tmp_path):
    tensors = load_file(record_file)
    save_file({k: v * np.float32({4: 3, 2: 1e38}.get(v.ndim, 1)) for k, v in tensors.items()}, tmp_path / "huge")
    Image.fromarray(COLOUR).save("one.png")
    code, lines = refused("--image", "one.png", "--weights", SMALL, "--file", tmp_path / "huge")
    assert code == 2 and "not a number" in lines[0]


@pytest.fixture
def on_the_hub(monkeypatch):
    known = dataclasses.replace(
        records.record(SMALL), url="https://huggingface.co/someone/small/resolve/main/model.safetensors"
    )
    monkeypatch.setitem(records.RECORDS, SMALL, known)


def test_the_hub_is_asked_for_the_file_of_the_record(on_the_hub, record_file, monkeypatch):
    asked = []
    hub = types.ModuleType("huggingface_hub")
    hub.hf_hub_download = lambda *where: asked.append(where) or str(record_file)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    fetched, given = records.load(SMALL, hub=True), records.load(SMALL, file=record_file)
    assert asked == [("someone/small", "model.safetensors")]
    jax.tree.map(np.testing.assert_array_equal, fetched[1], given[1])


def test_what_the_hub_refuses_is_said_in_few_lines(on_the_hub, monkeypatch):
    def refuse(*_):
        raise RuntimeError("offline\n" * 99)

    hub = types.ModuleType("huggingface_hub")
    hub.hf_hub_download = refuse  # type: ignore[attr-defined]
    for module, said in ((hub, "cannot download https://huggingface.co/someone"), (None, "pip install 'cnnjax")):
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)
        with pytest.raises(CnnjaxError, match=said) as error:
            records.load(SMALL, hub=True)
        assert len(str(error.value).splitlines()) <= 4
    with pytest.raises(CnnjaxError, match="not on the Hugging Face hub"):
        records.load("resnet50.keras", hub=True)


# --- names and drawings


def test_the_names_of_imagenet_stand_in_the_order_of_its_synsets():
    lines = Path(classes.__file__).with_name("imagenet.txt").read_text().splitlines()
    [folder] = find_spec("tensorflow_datasets").submodule_search_locations  # type: ignore[union-attr]
    published = (Path(folder) / "datasets/imagenet2012/labels.txt").read_text().split()
    assert [line.partition(" ")[0] for line in lines] == published == sorted(published)
    names = classes.imagenet()
    assert len({name.casefold() for name in names}) == 1000 and all(name == name.strip() != "" for name in names)
    facts = {0: "tench", 1: "goldfish", 151: "Chihuahua", 207: "golden retriever", 281: "tabby", 285: "Egyptian cat",
             340: "zebra", 388: "giant panda", 817: "sports car", 954: "banana", 963: "pizza",
             999: "toilet tissue"}  # fmt: skip
    assert {number: names[number] for number in facts} == facts


@pytest.mark.parametrize("height, width", [(1, 1), (28, 28), (300, 300), (2000, 20), (20, 2000), (900, 1200)])
def test_the_classes_stand_under_the_picture_and_do_not_touch_it(height, width):
    pixels = np.full((height, width, 3), (0, 120, 60), np.uint8)
    picture = labelled.fitted(pixels)
    assert 224 <= max(picture.size) <= 640
    sheet = np.asarray(labelled.draw(picture, [("a cat", 1.0), ("W" * 200, 0.25), ("\x1b[31m\n|", 0.0)]))
    assert sheet.shape[1] == max(picture.width, 420) and sheet.shape[0] > picture.height + 3 * 20
    left = (sheet.shape[1] - picture.width) // 2
    np.testing.assert_array_equal(sheet[: picture.height, left : left + picture.width], np.asarray(picture))
    below = sheet[picture.height :]
    assert (below[:6] == 255).all() and (below[-6:] == 255).all() and (below == 0).all(-1).sum() > 100
    blue = (below == (0, 0x72, 0xB2)).all(-1)
    rows = blue.sum(1)
    assert rows.max() == 121 and 30 in rows - 1 and blue[:, : sheet.shape[1] - 220].sum() == 0
    assert (below[:, -216:-204] == 255).all(), "a name runs into its bar"


def test_what_cannot_be_shown_is_marked():
    assert labelled.printable("a\x1b[31m\nü\udcff") == "a\ufffd[31m\ufffdü\ufffd"


# --- as it is meant to be used


@pytest.mark.long
def test_the_lectures_example_runs_with_a_file_of_vgg16s_keys_and_shapes(place):
    rng, tensors = np.random.default_rng(0), {}
    for leaf in convert.leaves("timm", "vgg16", convert.network("timm", "vgg16")):
        spread = np.float32(np.sqrt(24 / np.prod(leaf.source_shape[1:])) if len(leaf.source_shape) > 1 else 0.1)
        tensors[leaf.key] = (rng.random(leaf.source_shape, np.float32) - np.float32(0.5)) * spread
    save_file(tensors, "vgg16.safetensors")
    Image.fromarray(scene(1, 300, 400)).save("dog.png")
    said = subprocess.run(
        [sys.executable, "-m", "experiments.classify", "--image", "dog.png", "gone.png", "--weights", "vgg16.timm",
         "--file", "vgg16.safetensors", "--top", "5"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert said.returncode == 2 and "error: there is no picture gone.png" in said.stderr
    assert "licence BSD-3-Clause" in said.stdout and "vgg16.timm: as in the paper" in said.stdout
    [folder] = Path("runs").iterdir()
    one, _ = json.loads((folder / "results.json").read_text())["pictures"]
    assert [c["name"] for c in one["classes"]] == [classes.imagenet()[c["class"]] for c in one["classes"]]
    assert len(one["classes"]) == 5 and 0.005 < sum(c["probability"] for c in one["classes"]) <= 1
