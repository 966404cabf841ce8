"""Every experiment: its command line, its page, and that it runs."""

import ast
import contextlib
import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_rooms import HEAVY

from cnnjax import options
from cnnjax.experiment import main
from experiments import (
    activations,
    alexnet_layers,
    bottleneck,
    classify,
    densenet_growth,
    dropout_and_augmentation,
    ensembles,
    evaluate,
    filters,
    googlenet_aux,
    highway_depth,
    inception_ladder,
    lenet_mnist,
    lenet_traffic_signs,
    locality,
    lr_find,
    mnist_table,
    optimizers,
    pooling,
    residual_lesions,
    resnet_depth,
    resnet_shortcuts,
    time_to_accuracy,
    train,
    vanishing_gradients,
    vgg_depth,
    zfnet_table3,
)
from experiments import all as everything
from experiments.__main__ import titles, trainings

EXPERIMENTS = {
    module.EXPERIMENT.name: module
    for module in (
        activations, alexnet_layers, bottleneck, densenet_growth, dropout_and_augmentation, ensembles, filters,
        googlenet_aux, highway_depth, inception_ladder, lenet_mnist, lenet_traffic_signs, locality, mnist_table,
        optimizers, pooling, residual_lesions, resnet_depth, resnet_shortcuts, time_to_accuracy, vanishing_gradients,
        vgg_depth, zfnet_table3,
    )
}  # fmt: skip
DOORS = {
    module.__name__.rpartition(".")[2]: module for module in (train, evaluate, lr_find, classify, everything)
}  # they claim nothing
COMMANDS = {
    **{name: type(module.EXPERIMENT.scales["lab"]) for name, module in EXPERIMENTS.items()},
    **{name: module.Settings for name, module in DOORS.items()},
}
every_experiment = pytest.mark.parametrize("name", EXPERIMENTS)
every_command = pytest.mark.parametrize("name", COMMANDS)


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, **environment},
    )


def test_the_list_has_every_experiment_with_its_title():
    assert set(titles()) >= set(COMMANDS)
    said = python("-m", "experiments")
    assert said.returncode == 0
    for name, title in titles().items():
        assert re.search(rf"^{name} +{re.escape(title)}$", said.stdout, re.MULTILINE)


def test_the_runner_runs_every_experiment_and_nothing_else():
    assert set(trainings(claiming=True)) == set(EXPERIMENTS) and set(trainings()) == {*EXPERIMENTS, "train"}
    assert everything.claiming() == trainings(claiming=True)


def test_an_unknown_experiment_is_refused_with_the_legal_names():
    said = python("-m", "experiments", "nosuch")
    assert said.returncode == 2 and "'nosuch'" in said.stderr and ", ".join(titles()) in said.stderr
    assert len(said.stderr.splitlines()) == 2


def test_an_experiment_can_be_run_through_the_list_too():
    said = python("-m", "experiments", "lenet_mnist", "--scale", "huge")
    assert (
        said.returncode == 2 and "'huge'" in said.stderr and "python -m experiments.lenet_mnist --help" in said.stderr
    )


@every_experiment
def test_an_experiment_is_a_short_file_that_says_what_it_claims(name):
    module = EXPERIMENTS[name]
    text, experiment = inspect.getsource(module), module.EXPERIMENT
    assert Path(module.__file__).stem == name and len(text.splitlines()) <= 152
    for section in ("Claim", "Source", "Command", "Cost", "Expected", "Departures"):
        assert f"\n{section}: " in experiment.doc
    assert f"python -m experiments.{name}" in experiment.doc
    assert all(scale == config.scale for scale, config in experiment.scales.items())
    assert set(experiment.scales) == {"smoke", "lab", "paper"} and experiment.scales["lab"].seeds >= 3
    names = {experiment.reference, *(variant for claim in experiment.claims for variant in claim.contrast)}
    assert names <= set(experiment.published) >= set(experiment.smoke)
    assert not experiment.smoke or experiment.reference in experiment.smoke


def field_docs(settings: type) -> dict[str, str]:
    """Every option of the class and the docstring under it."""
    found = {}
    for cls in settings.__mro__[-2::-1]:
        (body,) = ast.parse(inspect.getsource(cls)).body
        for field, doc in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr):
                found[field.target.id] = doc.value.value
    return found


@pytest.mark.parametrize("name", DOORS)
def test_a_door_says_what_it_does_and_how_it_is_called(name):
    doc = DOORS[name].__doc__
    assert doc.partition("\n\n")[0].endswith(".") and f"\nCommand: python -m experiments.{name} --" in doc
    assert len(inspect.getsource(DOORS[name]).splitlines()) <= 300


@every_command
def test_help_explains_every_option_and_waits_for_no_heavy_library(name):
    settings = COMMANDS[name]
    docs = field_docs(settings)
    assert set(docs) == {field.name for field in dataclasses.fields(settings)} >= {"workdir", "config", "fresh"}
    said = python("-X", "importtime", "-m", f"experiments.{name}", "--help")
    words = " ".join(re.sub("[│╭╮╰╯]", " ", said.stdout).split())
    lines = said.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert said.returncode == 0 and all(line.startswith("import time:") for line in lines)
    assert "argparse" in imported and not imported & set(HEAVY)
    for option, doc in docs.items():
        assert f"--{option.replace('_', '-')} " in words and " ".join(doc.split()) in words
    for variant in EXPERIMENTS[name].EXPERIMENT.published if name in EXPERIMENTS else ():
        assert variant in words


@pytest.mark.long
@every_experiment
def test_an_experiment_runs_at_the_smoke_scale(name, tmp_path):
    quick = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # most of the time goes into compiling
    said = python("-m", f"experiments.{name}", "--scale", "smoke", "--workdir", str(tmp_path / "run"), **quick)
    assert said.returncode == 0 and said.stderr == "", said.stderr
    experiment = EXPERIMENTS[name].EXPERIMENT
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    shown = [row["variant"] for row in results["rows"]]
    assert shown == [name for name in experiment.published if not experiment.smoke or name in experiment.smoke]
    for row in results["rows"]:
        assert re.search(
            rf"^{re.escape(row['variant'])} .*{row['mean']:.2f} ± {row['sd']:.2f}", said.stdout, re.MULTILINE
        )
        assert all(run["count"] == 1000 for run in row["seeds"].values())
    assert (tmp_path / "run" / "report.html").exists()


def test_all_seeds_of_a_variant_go_through_one_compiled_step(tmp_path):
    main(
        alexnet_layers.EXPERIMENT,
        ["--scale", "smoke", "--epochs", "0.02", "--only", "no-3,4,6,7", "--workdir", str(tmp_path / "run")],
    )
    (row,) = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    first, second = row["seeds"].values()
    assert first["compile_seconds"] > 0.2 and second["compile_seconds"] == 0


def test_the_tables_parameters_are_those_of_the_network_at_its_true_size(tmp_path):
    from cnnjax.data.sources import load

    rows = alexnet_layers.variants(alexnet_layers.LAB, load("mnist5k"))
    left = {name: row.columns["parameters"] for name, row in rows.items()}
    removed = {name: row.columns["parameters removed"] for name, row in rows.items()}
    facts = json.loads((Path(__file__).parent / "facts.json").read_text())["alexnet_ablation_params"]
    whole = rows["full"].net.names
    for name, (layers, _) in alexnet_layers.TABLE.items():
        assert set(whole) - set(rows[name].net.names) == set(layers)
        numbers = sorted(layer.removeprefix("conv").removeprefix("fc") for layer in layers)
        assert name == ("no-" + ",".join(numbers) if numbers else "full")
    assert left["full"] == 60_965_224 and rows["full"].columns["MACs"] == 724_406_816
    for name, key in {"no-3,4": "34", "no-7": "7", "no-6,7": "67", "no-3,4,6,7": "3467"}.items():
        assert (left[name], removed[name]) == (facts[key]["grouped_left"], facts[key]["grouped_removed"])


@contextlib.contextmanager
def mock_imagenet(examples: int):
    """ImageNet 2012 as TensorFlow Datasets would give it, with made-up images."""
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=examples):
        yield


@pytest.mark.long
def test_the_recipe_of_2012_takes_two_steps_at_its_true_size(tmp_path):
    with mock_imagenet(4):
        main(
            alexnet_layers.EXPERIMENT,
            ["--scale", "paper", "--batch", "2", "--epochs", "1", "--only", "full", "--workdir", str(tmp_path / "run")],
        )
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["metric"] == "error5" and results["data"]["classes"] == 1000
    assert results["data"]["train"] == 4
    lines = (tmp_path / "run" / "full" / "seed-0" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 2


@pytest.mark.long
def test_a_run_that_is_killed_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    command = ["-m", "experiments.lenet_mnist", "--scale", "smoke", "--only", "lenet5-dense", "--seeds", "2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert python(*command, "--workdir", str(whole)).returncode == 0
    process = subprocess.Popen(
        [sys.executable, *command, "--workdir", str(killed)],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.DEVNULL,
    )
    while not (killed / "lenet5-dense" / "seed-1").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, 9)
    process.wait()
    said = python(*command, "--workdir", str(killed))
    assert said.returncode == 0 and "1 of 2 runs are done, going on" in said.stdout

    def scores(folder):
        (row,) = json.loads((folder / "results.json").read_text())["rows"]
        return {seed: (run["error"], run["loss"]) for seed, run in row["seeds"].items()}

    assert scores(killed) == scores(whole)


def test_every_experiments_options_are_recorded_and_taken_back():
    for module in EXPERIMENTS.values():
        experiment = module.EXPERIMENT
        for config in experiment.scales.values():
            arguments = options.arguments(config.record())
            taken = options.parse(experiment.name, experiment.doc, experiment.scales, experiment.published, arguments)
            assert taken == config
