"""The pod plan: what is read off a program, what is estimated and what is refused; with libtpu, a program compiled."""

import collections
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys

import jax
import pytest

from cnnjax.analysis import pod
from cnnjax.errors import CnnjaxError
from cnnjax.models.ops import reference_forms
from experiments import pod_plan

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='libtpu, the TPU compiler, is absent: pip install "cnnjax[tpu]"'
)

PROGRAM = """\
HloModule jit_train_step, is_scheduled=true

%all-reduce-scatter.1 (input: f32[8,64]) -> f32[2,64] {
  %input = f32[8,64]{1,0:T(8,128)} parameter(0)
  %all-reduce.9 = f32[8,64]{1,0:T(8,128)} all-reduce(%input), channel_id=9, to_apply=%add
  ROOT %slice = f32[2,64]{1,0} dynamic-slice(%all-reduce.9, %i, %zero), dynamic_slice_sizes={2,64}
}

ENTRY %main.488_spmd (param.4: s32[], param.5: f32[7,7,3,64]) -> f32[] {
  %all-reduce = f32[64]{0:T(128)S(1)} all-reduce(%a), channel_id=1, backend_config={"estimated_cycles":"1000"}
  %all-reduce.2 = (f32[3,5]{1,0:T(8,128)}, bf16[2]{0}, /*index=2*/f32[]) all-reduce(%a, %b, %c), channel_id=2
  %all-gather-start = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%d), channel_id=3, dimensions={0}
  %all-gather-done = f32[8,4]{1,0} all-gather-done(%all-gather-start)
  %all-gather.again = f32[8,4]{1,0} all-gather(%d), channel_id=3, dimensions={0}
  %reduce-scatter.3 = f32[10]{0} reduce-scatter(%e), channel_id=4, dimensions={0}, to_apply=%add
  %fusion = f32[9]{0} fusion(%all-reduce), kind=kLoop, backend_config={"estimated_cycles":"234"}
  ROOT %out = f32[] get-tuple-element(%all-reduce.2), index=2
}
"""


def test_collectives_are_counted_once_with_the_bytes_of_whole_arrays():
    assert pod.collectives(PROGRAM, 4) == {
        "all-reduce": (2, 64 * 4 + (15 * 4 + 2 * 2 + 4)),
        "all-gather": (1, 8 * 4 * 4),
        "reduce-scatter": (2, 10 * 4 * 4 + 8 * 64 * 4),
    }
    assert pod.collectives("ENTRY %main (a: f32[]) -> f32[] {\n  ROOT %a = f32[] parameter(0)\n}", 4) == {}


def test_cycles_are_added_up():
    assert pod.cycles(PROGRAM) == 1234 and pod.cycles("") == 0


@pytest.mark.parametrize("shape, sizes", [
    ("f32[]", [4]), ("bf16[2,3]{1,0:T(8,128)(2,1)S(1)}", [12]), ("(f32[2]{0}, /*index=1*/pred[7], u8[0])", [8, 7, 0]),
])  # fmt: skip
def test_sizes_of_arrays_are_read_as_programs_print_them(shape, sizes):
    assert pod.array_bytes(shape) == sizes


@pytest.mark.parametrize("name, chips", [("v5e:1x1", 1), ("v5e:16x16", 256), ("v5p:2x2x4", 16), ("v4:4x4x8", 128)])
def test_a_slice_has_the_chips_that_its_name_says(name, chips):
    assert pod.slice_named(name).chips == chips


@pytest.mark.parametrize("name, said", [
    ("v9:2x2", "unknown TPU 'v9'\nlegal: v4, v5e, v5p, v6e"), ("", "unknown TPU ''"), ("v5e", "as in v5e:4x4"),
    ("v5e:2x2x2", "2 numbers of chips"), ("v5p:4x4", "as in v5p:2x2x4"), ("v5e:0x4", "2 numbers"),
    ("v5e:4x-4", "2 numbers"), ("v5e:32x32", "1,024 chips; a slice of v5e has 256"), ("v6e:axb", "2 numbers"),
])  # fmt: skip
def test_a_name_of_no_slice_is_refused(name, said):
    with pytest.raises(CnnjaxError) as error:
        pod.slice_named(name)
    assert said in str(error.value) and len(str(error.value).splitlines()) <= 5


@pytest.mark.parametrize("kind", pod.CHIPS)
def test_slices_double_from_one_chip_to_256(kind):
    found = pod.slices(kind)
    assert [where.chips for where in found] == [2**power for power in range(9)]
    assert all(pod.slice_named(where.name) == where and max(where.shape) <= 2 * min(where.shape) for where in found)


def test_a_ring_passes_what_the_formula_says():
    """4 chips in a square of v5e: each has one link of 50 GB/s on two axes; an axis of 16 has two."""
    gigabyte = {"all-reduce": (1, 10**9)}
    square, pod256 = pod.slice_named("v5e:2x2"), pod.slice_named("v5e:16x16")
    assert pod.communication(gigabyte, square) == pytest.approx(2 * (3 / 4 / 100 + 2e-6))
    assert pod.communication(gigabyte, pod256) == pytest.approx(2 * (255 / 256 / 200 + 16e-6))
    assert pod.communication(gigabyte, pod.slice_named("v5p:4x4x4")) == pytest.approx(2 * (63 / 64 / 600 + 6e-6))
    halves = {"reduce-scatter": (1, 10**9), "all-gather": (1, 10**9)}
    assert pod.communication(halves, square) == pytest.approx(pod.communication(gigabyte, square))
    assert pod.communication(gigabyte, pod.slice_named("v5e:1x1")) == 0


def test_many_small_collectives_cost_their_hops():
    where = pod.slice_named("v5e:16x16")
    one, many = ({"all-reduce": (count, 1000)} for count in (1, 200))
    assert pod.communication(many, where) - pod.communication(one, where) == pytest.approx(199 * 32e-6)


def test_scaling_begins_at_one_chip_and_falls():
    rows = pod.scaling(0.1, {"all-reduce": (100, 10**8)}, "v5e", 256)
    chips, images, shares = zip(*rows, strict=True)
    assert chips[0] == 1 and chips[-1] == 256 and images[0] == pytest.approx(2560) and shares[0] == 1
    assert all(0 < share < 1 for share in shares[1:])
    assert all(total == pytest.approx(n * 2560 * share) for n, total, share in rows)


@pytest.mark.parametrize("seconds", [-54.9, 0, math.nan, math.inf, None, 1e-3])
def test_a_time_that_cannot_be_true_is_refused(seconds):
    """5.8 TFLOP take a v5e 29 ms at the least."""
    assert pod.believable(seconds, 5.8e12, pod.CHIPS["v5e"]) is None
    assert pod.believable(-1.0, -1e15, pod.CHIPS["v5e"]) is None
    assert pod.believable(0.232, 5.8e12, pod.CHIPS["v5e"]) == 0.232


@pytest.mark.parametrize("said", [
    "Ran out of memory in memory space hbm. Used 23.50G of 15.75G hbm. Exceeded hbm capacity by 7.75G.",
    "Ran out of memory on HBM, the total memory required for HLO temporaries (23.50G) exceeds available HBM (15.75G).",
])  # fmt: skip
def test_what_did_not_fit_says_what_it_needs(said):
    assert pod.needed(f"RESOURCE_EXHAUSTED: {said}") == (23.5 * 2**30, 15.75 * 2**30)
    assert pod.needed("RESOURCE_EXHAUSTED: something else") is None


@pytest.mark.parametrize("limit", [1, 3, 100, 128, 200, 256, 300, 1000])
@pytest.mark.parametrize("start", [1, 128, 256])
def test_the_largest_batch_is_closed_in_on_from_both_sides(limit, start):
    tried = []

    def compile(batch):
        tried.append(batch)
        return batch <= limit

    fits, refused = pod.largest(compile, start, 30)
    assert fits <= limit < refused and refused - fits <= max(1, fits / 8)
    assert len(tried) == len(set(tried)) <= 16
    fits, refused = pod.largest(compile, start, 2)
    assert fits <= limit and (refused is None or refused > limit)


def test_the_search_gives_up_where_not_even_one_image_fits():
    assert pod.largest(lambda batch: False, 4, 10) == (0, 1)


RECORD = {
    "model": "resnet50", "recipe": "resnet", "topology": "v5e:2x2", "chips": 4, "batch": 256, "precision": "bfloat16",
    "optimiser": "replicated", "fits": True, "memory": 9e9, "flops": 5.8e12, "bytes": 99e9, "optimal_seconds": -54.9,
    "memory_parts": {"arguments": 2e8, "outputs": 4e3, "temporaries": 8.7e9, "program": 1e8}, "cycles": 348_509_937,
    "collectives": {"all-reduce": [197, 10**8]}, "versions": {"jax": "0.10.2", "libtpu": "0.0.42.1"},
}  # fmt: skip
REFUSED = {name: RECORD[name] for name in list(RECORD)[:7]} | {"batch": 512, "fits": False, "memory": 18.2e9}


def test_nonsense_of_the_compiler_is_shown_as_a_dash_and_estimates_as_estimates():
    text = pod_plan.markdown([RECORD, REFUSED], [])
    assert pod_plan.NOTE in text and "Nothing was measured on a TPU" in text and "-54" not in text
    (row,) = [line for line in text.split("## Times of a step (estimates)")[1].split("##")[0].splitlines()
             if "resnet50" in line]  # fmt: skip
    assert row.split(" | ")[5:7] == ["–", "232.3"]
    rows = [line for line in text.split("## Collectives")[0].splitlines() if line.startswith("| resnet50")]
    assert [row.split(" | ")[7] for row in rows] == ["yes", "no"] and " ≥ 16.95 | 16 | no " in rows[1]


def test_nothing_is_estimated_from_nothing():
    said = pod.estimates({**RECORD, "cycles": 0})
    assert said["images_per_second"] is None and said["scaling"] == []
    assert pod.estimates({**RECORD, "cycles": 0, "optimal_seconds": 0.1})["images_per_second"] > 0
    text = pod_plan.markdown([{**RECORD, "cycles": 0}], [])
    assert "None" not in text and "nan" not in text


def crash(*_, **__):
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_compiler_that_crashes_takes_nothing_down_and_is_said_to_have(monkeypatch):
    monkeypatch.setattr(pod_plan, "plan", crash)
    monkeypatch.setattr(pod_plan, "versions", lambda: RECORD["versions"])
    asked = {name: RECORD[name] for name in ("batch", "precision", "optimiser")}
    record = pod_plan.apart("resnet50", "resnet", pod.slice_named("v5e:2x2"), **asked)
    assert pod_plan.key(record) == pod_plan.key(RECORD) and record["fits"] is None
    row = next(line for line in pod_plan.markdown([record], []).splitlines() if line.startswith("| resnet50"))
    assert " – | 16 | compiler crashed | " in row and pod_plan.picture([record]) == ""


def test_the_picture_has_every_program_that_fits():
    svg = pod_plan.picture([RECORD, REFUSED])
    assert svg.count("<!-- resnet50, v5e:2x2, 256 -->") == 1 and "512 -->" not in svg
    assert pod_plan.picture([REFUSED]) == ""


@pytest.mark.parametrize("model, recipe", [
    ("resnet50", "resnet"), ("vgg16", "vgg"), ("vgg_A", "vgg_A"), ("inception_v3", "inception_v3"),
    ("densenet121", "densenet"), ("alexnet", "alexnet"), ("googlenet", "googlenet"), ("cifar_resnet20", "modern"),
])  # fmt: skip
def test_a_network_is_trained_by_its_own_recipe(model, recipe):
    assert pod_plan.recipe_of(model, None) == recipe and pod_plan.recipe_of(model, "modern") == "modern"


def operations(model: str) -> collections.Counter[str]:
    """What computes in the step of a network as it is lowered, on a mesh of devices that are no TPUs."""
    recipe = pod_plan.recipe_of(model, None)
    program = pod_plan.lowered(
        model, recipe, jax.devices()[:4], batch=2, precision="bfloat16", optimiser="replicated"
    ).as_text()
    found = collections.Counter(re.findall(r"stablehlo\.(\w+)", program))
    # A choice by platform leaves a `case` of the one branch that is lowered.
    return found - collections.Counter(
        {name: found[name] for name in ("case", "return", "constant", "broadcast_in_dim")}
    )


def test_what_is_lowered_for_a_tpu_holds_none_of_the_cpus_forms():
    """AlexNet has grouped convolutions, overlapping pools and normalisation across maps: all have forms for a CPU."""
    found = operations("alexnet")
    with reference_forms(True):
        assert found == operations("alexnet")
    assert found["convolution"] >= 5 and found["select_and_scatter"] == 3


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "experiments.pod_plan", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("arguments, said", [
    (["--model", "resnet51"], "unknown network 'resnet51'"),
    (["--topology", "v9:2x2"], "unknown TPU 'v9'\nlegal: v4, v5e, v5p, v6e"),
    (["--batch-per-chip", "0"], "--batch-per-chip is 0; it must be at least 1"),
    (["--search", "-1"], "--search is -1; it must be at least 0"),
    (["--recipe", "resnett"], "unknown recipe 'resnett'"),
])  # fmt: skip
def test_a_mistake_is_named_before_anything_is_compiled(arguments, said, tmp_path):
    done = run("--out", str(tmp_path / "out"), *arguments)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) <= 5, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_without_libtpu_the_command_says_how_to_get_it(tmp_path):
    done = run("--out", str(tmp_path / "out"))
    assert done.returncode == 2 and 'pip install "cnnjax[tpu]"' in done.stderr
    assert len(done.stderr.splitlines()) <= 5 and not (tmp_path / "out").exists()


def test_help_explains_every_option():
    done = run("--help")
    assert done.returncode == 0 and done.stderr == ""
    for option in ("model", "topology", "batch-per-chip", "precision", "optimiser", "recipe", "search", "out"):
        assert f"--{option} " in done.stdout


@needs_libtpu
def test_a_step_compiles_for_four_chips_and_shards_the_optimisers_state(tmp_path):
    """A perceptron of 648,010 weights, so that it takes seconds: of its momentum, a chip of four keeps a quarter."""
    where = [
        "--model",
        "slides_mlp_784_500_500_10",
        "--recipe",
        "modern",
        "--topology",
        "v5e:2x2",
        "--batch-per-chip",
        "8",
    ]
    done = run(*where, "--optimiser", "replicated", "sharded", "--search", "0", "--out", str(tmp_path))
    assert done.returncode == 0 and done.stderr == "", done.stderr
    replicated, sharded = json.loads((tmp_path / "pod_plan.json").read_text())["programs"]
    assert pod_plan.NOTE in done.stdout and pod_plan.NOTE in (tmp_path / "pod_plan.md").read_text()
    saved = replicated["memory_parts"]["arguments"] - sharded["memory_parts"]["arguments"]
    assert saved > 0.7 * 4 * 648_010 and sharded["memory"] < replicated["memory"]
    assert set(replicated["collectives"]) == {"all-reduce"} and "all-gather" in sharded["collectives"]
    print(f"\n{replicated['memory']:,} bytes a chip replicated, {sharded['memory']:,} sharded")


@needs_libtpu
def test_what_the_compiler_refuses_does_not_fit(tmp_path):
    where = ["--model", "lenet5", "--recipe", "modern", "--topology", "v5e:2x2", "--search", "1"]
    done = run(*where, "--batch-per-chip", "1048576", "--out", str(tmp_path))
    assert done.returncode == 0 and done.stderr == "", done.stderr
    found = json.loads((tmp_path / "pod_plan.json").read_text())
    assert not found["programs"][0]["fits"] and found["programs"][0]["memory"] > 16e9
    assert (found["largest"][0]["fits"], found["largest"][0]["refused"]) == (0, 1_048_576)


@needs_libtpu
@pytest.mark.parametrize("topology", ["v5e:3x5"])
def test_a_slice_that_the_compiler_does_not_know_is_refused(topology, tmp_path):
    done = run("--topology", topology, "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and f"no topology '{topology}'" in done.stderr and len(done.stderr.splitlines()) <= 5
