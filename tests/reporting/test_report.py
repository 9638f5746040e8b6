"""The file of a report: what is in it, what cannot be in it, and arguments that cannot be used."""

import json
import re
import sys

import numpy as np
import pytest
import torch

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, MissingExtraError, ShapeError
from hmoevae.reporting.page import island

NASTY = [
    "</script><script>alert(1)</script>",
    "\"quotes\" & 'more'",
    "<img src=x onerror=alert(1)>",
    "a\u2028b",
    "{{ 7 * 7 }}",
]


def island_of(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    tree = hm.Mixture(children=(hm.VAE(2), hm.Mixture.of(hm.VAE(2), 2, name="two")))
    return hm.HMoEVAE(tree, (1, 8, 8)), torch.rand(90, 1, 8, 8)


def test_a_report_of_images(images, tmp_path):
    model, x = images
    history = hm.History(
        [{"epoch": 1, "loss": 3.0, "seconds": 1.0}, {"epoch": 2, "loss": 2.0, "val_elbo": float("nan")}]
    )
    path = hm.report(model, x, tmp_path / "new" / "report.html", labels=["a", "b", "c"] * 30, history=history)
    data = island_of(path)
    assert data["kind"] == "images"
    assert data["name"] == ["root", "0", "two", "1/0", "1/1"]
    assert set(data["sheets"]) == {"mean", "typical", "unsure", "odd", "nearest", "drawn", "ways"}
    assert data["training"]["curves"] == {"epoch": [1, 2], "loss": [3, 2], "val_elbo": [None, None]}
    assert len(data["latents"]) == 3
    assert data["made"]["tree"] == str(model.tree)


def test_the_decisions_of_a_growth_are_shown(images, tmp_path):
    model, x = images
    decisions = [
        hm.Decision(0, "cut", "root", accepted=True, n_samples=1234, conductance=0.0123, n_leaves=2),
        hm.Decision(
            1, "split", "root/1", accepted=False, n_samples=9, gain=0.5, error=0.25, n_leaves=2, reason="little"
        ),
    ]
    grown = hm.Grown(model, decisions, [hm.History([{"epoch": 1, "loss": 3.0}])])
    data = island_of(hm.report(model, x, tmp_path / "report.html", history=grown))
    assert data["training"]["curves"] == {"epoch": [1], "loss": [3]}
    assert data["training"]["growth"] == [
        ["0", "cut", "root", "yes", "1,234", "conductance 0.012", "2", ""],
        ["1", "split", "root/1", "no", "9", "+0.50 ± 0.25 nats", "2", "little"],
    ]


@pytest.mark.parametrize("shape", [(8, 9), (3, 6, 5), (1, 140, 90)])
def test_images_of_every_shape(shape, tmp_path):
    model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(1), 2), shape)
    data = island_of(hm.report(model, torch.rand(20, *shape), tmp_path / "report.html"))
    assert max(data["width"], data["height"]) <= 64
    assert data["width"] / data["height"] == pytest.approx(shape[-1] / shape[-2], rel=0.1)


def test_the_same_arguments_give_the_same_file_and_the_random_state_stays(images, tmp_path, rng_untouched):
    model, x = images
    one, other = (hm.report(model, x, tmp_path / f"{i}.html").read_bytes() for i in range(2))
    assert one == other


def test_a_report_asks_for_nothing_outside_it(images, tmp_path):
    text = hm.report(*images, tmp_path / "report.html").read_text(encoding="utf-8")
    page = re.sub(r'<script type="(application/json|text/plain)".*?</script>', "", text, flags=re.DOTALL)
    addresses = set(re.findall(r"\w+://[^\s\"')]*", page))
    assert addresses == {"http://www.w3.org/2000/svg"}, "the name of a vocabulary, which nothing loads"
    assert "default-src 'none'" in page
    assert "innerHTML" not in page
    assert "eval(" not in page


def test_what_users_write_is_data_and_never_a_page(tmp_path):
    frame = {name: np.random.default_rng(i).normal(size=60) for i, name in enumerate(NASTY)}
    frame |= {"kind": NASTY * 12}
    table = hm.Table.of(frame)
    leaf = hm.VAE(1, likelihood=table.likelihood(), name=NASTY[0])
    model = hm.HMoEVAE(hm.Mixture((leaf, hm.VAE(1, likelihood=table.likelihood())), name=NASTY[2]), table)
    path = hm.report(model, frame, tmp_path / "report.html", labels=NASTY * 12)
    text = path.read_text(encoding="utf-8")
    assert text.count("<script") == 2, "the island and the script"
    assert "onerror=alert(1)>" not in text
    assert "\u2028" not in text
    data = island_of(path)
    assert [feature["name"] for feature in data["features"]] == [*NASTY, "kind"]
    assert data["labels"] == sorted(NASTY)
    assert data["title"] == NASTY[2]


def test_an_island_reads_back():
    data = {"a": NASTY, "b": [1, None, 2.5]}
    assert json.loads(island(data)) == data
    assert not set(island(data)) & set("<>&\u2028\u2029")
    with pytest.raises(ValueError, match="not JSON compliant"):
        island(float("nan"))


def test_a_table_of_an_estimator_is_read_in_its_own_units(tmp_path):
    frame = {
        "mass": [3000.0, 3100.0, 5000.0, None] * 10,
        "island": ["u", "v", "v", "v"] * 10,
        "eggs": [0, 2, 9, 1] * 10,
    }
    mixture = hm.VAEMixture(2, random_state=0, kinds={"eggs": "count"}).fit(frame)
    names = ["mass (g)", "island", "eggs"]
    data = island_of(hm.report(mixture.model_, frame, tmp_path / "report.html", table=mixture.table_, names=names))
    assert [feature["name"] for feature in data["features"]] == names
    assert [feature["kind"] for feature in data["features"]] == ["number", "category", "count"]
    mass = data["features"][0]
    assert mass["log"], "as the table has it"
    edges = np.exp(mass["mean"] + mass["scale"] * np.array(mass["edges"]))
    assert 2900 < edges[0] < 3100
    assert 4900 < edges[-1] < 5100


def test_wide_counts_are_shown_by_the_features_that_tell_nodes_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("hmoevae.reporting.facts.MOST_CELLS", 60)
    torch.manual_seed(0)
    model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(1, likelihood=hm.Poisson()), 2), (80,))
    x = torch.poisson(torch.full((60, 80), 3.0))
    data = island_of(hm.report(model, x, tmp_path / "report.html"))
    assert (data["kind"], data["nFeatures"], len(data["features"])) == ("counts", 80, 20)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "model"}, ArgumentTypeError, "model: expected an HMoEVAE, got str"),
        ({"x": torch.rand(3, 5)}, ShapeError, r"x: expected \(batch, 4\)"),
        ({"x": torch.rand(0, 4)}, DataError, "x: expected at least one sample"),
        ({"x": torch.full((3, 4), torch.nan)}, DataError, "x: expected finite values"),
        ({"x": "x"}, ArgumentTypeError, "x: expected"),
        ({"path": 3}, ArgumentTypeError, "path: expected the path of a file"),
        ({"labels": [1, 2]}, ShapeError, r"labels: expected one per sample, \(9,\), got \(2,\)"),
        ({"labels": [None] * 9}, DataError, "labels: expected one for every sample"),
        ({"names": ["a"]}, ShapeError, "names: expected 4 names, one per feature, got 1"),
        ({"names": "abcd"}, ArgumentTypeError, "names: expected a sequence of names"),
        ({"table": "table"}, ArgumentTypeError, "table: expected a Table"),
        (
            {"table": hm.Table.of({"a": [1.0, 2.0]})},
            ShapeError,
            r"table: expected one of samples \(4,\), got 1 columns",
        ),
        ({"history": [1]}, ArgumentTypeError, "history: expected a History"),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_arguments_that_cannot_be_used(change, error, message, tmp_path):
    model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2), 2), (4,))
    given = {"model": model, "x": torch.rand(9, 4), "path": tmp_path / "report.html"} | change
    with pytest.raises(error, match=message):
        hm.report(given.pop("model"), given.pop("x"), given.pop("path"), **given)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    model = hm.HMoEVAE(hm.VAE(2), (4,))
    with pytest.raises(ArgumentError, match="expected a file that can be written"):
        hm.report(model, torch.rand(9, 4), tmp_path / "file" / "report.html")


@pytest.mark.parametrize("module", ["jinja2", "PIL", "scipy"])
def test_without_the_extra_it_is_named(module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    package = {"PIL": "pillow"}.get(module, module)
    with pytest.raises(MissingExtraError, match=rf"expected {package} \(in a clone: pip install -e '\.\[report\]'"):
        hm.report(hm.HMoEVAE(hm.VAE(2), (4,)), torch.rand(9, 4), tmp_path / "report.html")
