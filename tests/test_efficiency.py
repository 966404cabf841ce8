"""Accuracy against cost: the table is counted, sorted and marked, and its facts are about networks that there are."""

import json
import subprocess
import sys

import pytest
from published import FACTS

from cnnjax.analysis.accuracy import BY_DATA, GOOGLENET_TABLE
from cnnjax.models.catalog import CATALOG
from experiments import efficiency


@pytest.mark.parametrize("data", BY_DATA)
def test_every_published_error_is_of_a_network_in_the_catalogue(data):
    assert set(BY_DATA[data]) <= set(CATALOG)
    for name, known in BY_DATA[data].items():
        assert (known.top1 is None and known.top5 is None) == (not known.source), name
        assert known.top5 is None or known.top1 is None or known.top5 < known.top1, name


@pytest.mark.parametrize("network, row", [
    ("alexnet_minus_34", "removed_3_4"), ("alexnet_minus_7", "removed_7"), ("alexnet_minus_67", "removed_6_7"),
    ("alexnet_minus_3467", "removed_3_4_6_7"), ("zfnet", "ours"), ("zfnet_wide", "ours_conv345_512_1024_512"),
])  # fmt: skip
def test_errors_of_table_3_are_those_that_were_read(network, row):
    known = BY_DATA["ImageNet"][network]
    assert [known.top1, known.top5] == FACTS["paper"]["zeiler_fergus_table3"][row][1:]


def test_errors_of_resnets_vggs_and_densenets_are_those_that_were_read():
    imagenet, paper = BY_DATA["ImageNet"], FACTS["paper"]
    for depth in (50, 101, 152):
        known = imagenet[f"resnet{depth}_optB_v1"]
        assert [known.top1, known.top5] == paper["resnet_table3_10crop"][f"ResNet-{depth}"]
    for depth in (121, 169, 201, 264):
        known = imagenet[f"densenet{depth}"]
        assert [known.top1, known.top5] == paper["densenet_imagenet_1crop"][str(depth)]
    for column in "ABCDE":
        known = imagenet[f"vgg_{column}"]
        rows = [errors for name, errors in paper["vgg_table3"].items() if name.startswith(f"{column}@")]
        assert [known.top1, known.top5] in rows


def test_googlenets_own_table_is_marked_where_it_is_off():
    """Against the counts made without this project."""
    computed = FACTS["paper"]["googlenet_table_computed"]
    assert {block: list(row) for block, row in GOOGLENET_TABLE.items()} == {
        block: row for block, row in FACTS["paper"]["googlenet_table"].items() if block != "columns"
    }
    for block, kilo, weights, mega, macs in efficiency.googlenet_table().rows:
        assert float(weights.replace(",", "")) == pytest.approx(computed[block][0] / 1024, abs=0.06)
        assert float(macs.replace(",", "")) == pytest.approx(computed[block][1] / 1e6, abs=0.06)
        off = abs(float(kilo.split()[0]) * 1024 / computed[block][0] - 1) > 0.01
        assert kilo.endswith("✗") == off, block
        assert mega.endswith("✗") == (block in ("conv1", "5a"))


def run(*arguments, folder):
    command = [sys.executable, "-m", "experiments.efficiency", "--workdir", str(folder / "run"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_counts_and_writes_the_page(tmp_path):
    done = run("--only", "alexnet_2012", "lenet5_1998", "slides_ng_39", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "results.json").read_text())["networks"]
    assert found["alexnet_2012"]["params"] == 60_965_224 and found["alexnet_2012"]["depth"] == 8
    page = (tmp_path / "run" / "report.html").read_text()
    for text in ("alexnet_2012", "40.70", "18.20", "No published error", "slides_ng_39", "<svg"):
        assert text in page


def test_an_unknown_network_is_refused(tmp_path):
    done = run("--only", "alexnett", folder=tmp_path)
    assert done.returncode == 2 and "unknown network 'alexnett'" in done.stderr and "Traceback" not in done.stderr
