"""The page says what results.json says, is whole by itself, and is well-formed."""

import copy
import html.parser
import json
import re
import xml.etree.ElementTree as ET

import pytest

from cnnjax import figures, report
from cnnjax import page as page_module

RUN = {"error": 3.0, "seconds": 14.0, "compile_seconds": 4.0, "images_per_second": 4000.0}
RESULTS = {
    "experiment": "fake",
    "about": {
        "title": "Whether <b> is worse & why.",
        "claim": "It is.",
        "source": "Nobody 1999.",
        "command": "python -m experiments.fake",
        "departures": "None known.",
    },
    "scale": "lab",
    "metric": "error",
    "published_as": "top-5 error (Nobody 1999, Table 1)",
    "rows": [
        {
            "variant": "a",
            "columns": {"parameters": 60_965_224},
            "mean": 3.1,
            "sd": 0.1,
            "n": 2,
            "published": 18.1,
            "seeds": {"0": {**RUN, "error": 3.03}, "1": {**RUN, "error": 3.17}},
        },
        {
            "variant": "b,c",
            "columns": {},
            "mean": 4.0,
            "sd": 0.2,
            "n": 2,
            "published": None,
            "seeds": {"0": {**RUN, "error": 3.86}, "1": {**RUN, "error": 4.14}},
        },
    ],
    "verdict": {
        "verdict": "not decided",
        "reason": "of 2 claims: 2 undecided",
        "claims": [
            {"claim": "b is worse", "formula": "b,c − a > 0", "verdict": "not decided"}
            | {"mean": 0.9, "low": -0.1, "high": 1.9, "n": 2, "published": 4.0},
            {"claim": "c is worse", "formula": "c − a > 0", "verdict": "not decided"}
            | {"mean": None, "low": None, "high": None, "n": 0, "published": None},
        ],
    },
    "data": {"name": "mnist5k", "train": 4000, "test": 1000, "classes": 10},
    "cost": {"seconds": 56.0, "run_seconds": 90.0, "compile_seconds": 16.0, "peak_memory_mb": 512},
    "environment": {"jax": "0.10.2", "cpu": "a CPU"},
    "config": {"experiment": "fake", "only": [], "test_data": None, "epochs": 10.0},
    "finished": "2026-11-22 04:00 UTC",
}


def rows(error):
    """A metrics.jsonl: a row of training and one of evaluation for each of three epochs."""
    for epoch in (1, 2, 3):
        yield {"step": 10 * epoch, "epoch": epoch, "train": {"loss": 1 / epoch}}
        yield {"step": 10 * epoch, "epoch": epoch, "test": {"error": error / epoch, "error5": 0.0}}


@pytest.fixture
def folder(tmp_path):
    for row in RESULTS["rows"]:
        for seed, run in row["seeds"].items():
            place = tmp_path / row["variant"] / f"seed-{seed}"
            place.mkdir(parents=True)
            lines = [json.dumps(line) + "\n" for line in rows(run["error"])]
            (place / "metrics.jsonl").write_text("".join(lines))
    return tmp_path


class WellFormed(html.parser.HTMLParser):
    """Fails at a tag that is closed wrongly, and collects the links and the text."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.words = [], [], []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def page(folder) -> WellFormed:
    parser = WellFormed()
    parser.feed((folder / "report.html").read_text(encoding="utf-8"))
    assert parser.open == []
    return parser


def test_further_metrics_and_pictures_of_an_experiment_are_shown(folder):
    results = copy.deepcopy(RESULTS) | {"measured": {"gate": "open gates, %"}}
    for k, run in results["rows"][0]["seeds"].items():
        run["gate"] = 40.0 + int(k)
    drawn = '<svg xmlns="http://www.w3.org/2000/svg"><text>gates over depth</text></svg>'
    report.write(folder, results, [page_module.Picture("gates", "What the gates do.", drawn)])
    words = " ".join(page(folder).words)
    assert "open gates, %" in words and "40.5 ± 0.7" in words and "What the gates do." in words
    assert (folder / "gates.svg").read_text() == drawn and "gates over depth" in words


def test_the_page_is_well_formed_and_needs_nothing_else(folder):
    report.write(folder, RESULTS)
    parser = page(folder)
    assert all(link.startswith("#") for link in parser.links)
    assert (
        "<script" not in (folder / "report.html").read_text() and "@import" not in (folder / "report.html").read_text()
    )


def test_the_page_and_its_twin_say_what_the_results_say(folder):
    report.write(folder, RESULTS)
    said = {"html": " ".join(page(folder).words), "md": (folder / "report.md").read_text(encoding="utf-8")}
    said = {name: text.replace("\N{NO-BREAK SPACE}", " ") for name, text in said.items()}
    wanted = ["Whether <b> is worse & why.", "Verdict: not decided", "It is.", "Nobody 1999, Table 1", "60,965,224"]
    wanted += [
        "3.10 ± 0.10",
        "18.1",
        "+0.90 [−0.10, +1.90]",
        "not run",
        "3.17",
        "4,000",
        "512",
        "0.10.2",
        "None known.",
    ]
    for name, text in said.items():
        for words in [*wanted, *figures.METRICS["error"].split(), "images/s", "python -m experiments.fake"]:
            assert words in text, (name, words)


def test_every_table_of_the_twin_is_a_table(folder):
    report.write(folder, RESULTS)
    blocks = (folder / "report.md").read_text(encoding="utf-8").split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    assert len(tables) >= 6
    for lines in tables:
        assert len({line.count(" | ") for line in lines}) == 1


def test_the_figures_are_files_of_their_own_too(folder):
    report.write(folder, RESULTS)
    for name in ("comparison", "curves"):
        assert ET.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")
        assert f"({name}.svg)" in (folder / "report.md").read_text()


def test_a_title_may_have_a_colon():
    found = page_module.about("Pooling: the maximum\nor the mean.\n\nClaim: It helps,\n    a bit.\nSource: None.\n")
    assert found == {"title": "Pooling: the maximum or the mean.", "claim": "It helps, a bit.", "source": "None."}


def test_the_same_results_make_the_same_page(folder):
    report.write(folder, RESULTS)
    first = (folder / "report.html").read_bytes()
    report.write(folder, RESULTS)
    assert (folder / "report.html").read_bytes() == first


def test_what_was_not_trained_in_steps_has_no_curves(tmp_path):
    report.write(tmp_path, RESULTS)
    assert not (tmp_path / "curves.svg").exists() and "curves" not in (tmp_path / "report.md").read_text()
    page(tmp_path)


def test_one_seed_has_no_spread(folder):
    results = copy.deepcopy(RESULTS)
    for row in results["rows"]:
        row.update(sd=None, n=1, seeds={"0": row["seeds"]["0"]})
    results["verdict"]["claims"][0].update(low=None, high=None, n=1)
    report.write(folder, results)
    assert "±" not in re.sub(r"mean ± s\S+", "", " ".join(page(folder).words))


@pytest.mark.parametrize(
    ("values", "said"),
    [([1, 101], "51 ± 70"), ([1230.4, 1234.4], "1230 ± 3"), ([2e-31, 4e-31], "3e-31 ± 1e-31"), ([2], "2"), ([], "–")],
)
def test_further_metrics_have_the_digits_that_count_and_no_powers_of_ten_that_need_not_be(values, said):
    assert report._mean(values) == said


def test_nothing_published_leaves_one_panel():
    results = copy.deepcopy(RESULTS)
    results["rows"][0]["published"] = None
    one, two = (len(re.findall(r'id="axes_\d"', figures.comparison(r))) for r in (results, RESULTS))
    assert (one, two) == (1, 2)


def test_more_variants_than_colours_can_be_told_apart():
    names = [f"v{i}" for i in range(20)]
    drawn = figures.curves(RESULTS, {name: [list(rows(10.0 + i))] for i, name in enumerate(names)})
    styles = re.findall(r'id="line2d_\d+">\s*<path d="[^"]+" clip-path="[^"]+" style="([^"]*)"', drawn)
    lines = [style for style in styles if "#dddddd" not in style and "stroke-width: 1.5" in style]
    assert len(lines) == len(set(lines)) == 20


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_number_is_cut_in_a_narrow_terminal(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    report.show(RESULTS)
    said = capsys.readouterr().out
    assert re.search(r"a +60,965,224 +3\.10 ± 0\.10 +18\.1", said) and re.search(r"b,c +– +4\.00 ± 0\.20 +–", said)
    assert "not decided: b is worse (b,c − a > 0; +0.90 [−0.10, +1.90]; paper +4)" in said
