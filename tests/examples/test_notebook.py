"""What notebooks and consoles show of an object that ends a cell: in short, in HTML, as a picture, and once."""

import base64
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
import torch
from matplotlib.figure import Figure
from nbclient import NotebookClient

import hmoevae as hm

EXAMPLE = Path(__file__).parents[2] / "examples" / "first_look.ipynb"
TREE = hm.Mixture.of(hm.Mixture.of(hm.VAE(4), 3), 10)
HOSTILE = "<script>alert('x')</script>&"
UNEQUAL = hm.Mixture((hm.VAE(2, name=HOSTILE), hm.Mixture.of(hm.VAE(3), 2, name="pair"), hm.VAE(2)))


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = hm.HMoEVAE(TREE, (4,))
    return model, hm.fit(model, torch.rand(20, 4), hm.Training(epochs=12, device="cpu"), progress=False)


# --- in short -------------------------------------------------------------------------------------------------------


def test_reprs_are_short(trained):
    model, history = trained
    x = torch.rand(5, 4)
    assert repr(TREE) == "Mixture.of(Mixture.of(VAE(latent_dim=4), 3), 10)"
    assert repr(UNEQUAL.children[1:]) == "(Mixture.of(VAE(latent_dim=3), 2, name='pair'), VAE(latent_dim=2))"
    assert repr(hm.VAE(likelihood=hm.Bernoulli(), encoder=hm.MLP((5, 4)))) == (
        "VAE(encoder=MLP(hidden=(5, 4)), likelihood=Bernoulli())"
    )
    assert repr(model.plan) == "<Plan of 30 leaves and 11 mixtures, depth 2>"
    assert repr(hm.HMoEVAE(hm.VAE(), (4,)).plan) == "<Plan of 1 leaf and 0 mixtures, depth 0>"
    first, last = history["loss"][0], history["loss"][-1]
    assert repr(history) == f"<History of 12 epochs, loss {first:.4g} to {last:.4g}>"
    assert repr(hm.History([{"epoch": 1, "loss": 2.5}], True)) == "<History of 1 epoch, loss 2.5, interrupted>"
    assert repr(hm.History()) == "<History of 0 epochs>"
    output = model(x)
    terms = {name: f"{value:.4g}" for name, value in output.terms.items()}
    assert repr(output) == (
        f"<Output of 5 samples, 30 leaves: loss {output.loss:.4g} = "
        f"expected {terms['expected']} + balance {terms['balance']}>"
    )
    assert repr(model.agree(x, x)).startswith("<Routing of 5 samples, 30 leaves: loss ")
    images, _ = hm.datasets.digits()
    assert repr(images) == "<LabelledImages digits: 1,438 of shape (1, 8, 8), 10 labels>"
    assert repr(hm.views.Neighbour(2).prepare(images.x[:50])) == "_NeighbourOf()"
    end = hm.EpochEnd(model, history, 12, 12, True)
    for value in (model.plan.nodes[0], model.plan.expert_groups[0], model, end):
        assert len(repr(value)) < 500


def test_the_networks_of_a_model_are_shown_by_themselves(trained):
    model, _ = trained
    assert "GroupedLinear" not in repr(model)
    assert "GroupedLinear(groups=30, in_features=4, out_features=128)" in repr(model.experts)


# --- in HTML --------------------------------------------------------------------------------------------------------


class Text(HTMLParser):
    """The text of a piece of HTML, a line a tag, and its tags, of which every one that needs it is closed."""

    def __init__(self, html):
        super().__init__()
        self.lines, self.tags, self.open = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.lines.append(data)


def test_a_tree_is_drawn():
    shown = Text(TREE._repr_html_())
    assert shown.lines == [
        "Mixture of 10: gate MLP(128)",
        "10 x Mixture of 3: gate MLP(128)",
        "3 x VAE: latent 4, encoder MLP(128), decoder MLP(128), Gaussian(0.5)",
    ]
    assert Text(hm.VAE(4)._repr_html_()).lines == [hm.VAE(4).label]


def test_names_are_escaped():
    model = hm.HMoEVAE(UNEQUAL, (4,))
    for shown in (UNEQUAL, model):
        assert "script" not in Text(shown._repr_html_()).tags
        assert any(HOSTILE in line for line in Text(shown._repr_html_()).lines)
    history = hm.History([{"epoch": 1, HOSTILE: 2.0}])
    assert set(Text(history._repr_html_()).tags) == {"div", "table", "thead", "tbody", "tr", "th", "td"}
    assert HOSTILE in Text(history._repr_html_()).lines


def test_a_model_is_shown_by_its_tree(trained):
    model, _ = trained
    html = model._repr_html_()
    heading, *lines = Text(html).lines
    assert heading.startswith("HMoEVAE(input_shape=(4,), objective='expected', leaves=30, parameters=")
    assert lines == Text(TREE._repr_html_()).lines


def test_a_history_is_a_table_of_its_first_and_last_epochs(trained):
    _, history = trained
    shown = Text(history._repr_html_())
    heading, *lines = shown.lines
    assert heading == repr(history).strip("<>")
    n_columns = shown.tags.count("th")
    assert lines[:n_columns] == ["epoch", "seconds", "loss", "expected", "balance"]
    epochs = lines[n_columns:-1:n_columns]
    assert epochs == ["1", "2", "3", "4", "5", "...", "8", "9", "10", "11", "12"]
    assert lines[n_columns + 2] == f"{history['loss'][0]:.4g}"
    assert lines[-1] == "41 more columns: usage/<path>, information/<path>"
    short = Text(hm.History([{"epoch": 1, "loss": 2.0}, {"epoch": 2, "val_elbo": 1.0}])._repr_html_()).lines
    assert short == ["History of 2 epochs, loss 2", "epoch", "loss", "val_elbo", "1", "2", "2", "1"]
    assert Text(hm.History()._repr_html_()).lines == ["History of 0 epochs"]


# --- as a picture ---------------------------------------------------------------------------------------------------


def size(png):
    """Width and height of a PNG, in pixels."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


def test_every_picture_shows_itself(trained):
    model, history = trained
    x, clusters = torch.rand(9, 4), torch.arange(9) % 3
    decisions = [hm.Decision(0, "cut", "root", accepted=True, n_samples=9, conductance=0.01, n_leaves=2)]
    figures = {
        "contingency": hm.plot.contingency(clusters, clusters),
        "dendrogram": hm.plot.dendrogram(hm.hierarchy(model, x)),
        "growth": hm.plot.growth(hm.Grown(model, decisions, [])),
        "losses": hm.plot.losses(history),
        "means": hm.plot.means(x, clusters),
        "misrouted": hm.plot.misrouted(x, clusters, 0 * clusters),
        "nearest": hm.plot.nearest(model, x, 1),
        "reconstructions": hm.plot.reconstructions(model, x),
        "sample_grid": hm.plot.sample_grid(torch.rand(2, 3, 4), [1, 2]),
        "samples": hm.plot.samples(model, 1),
        "traversals": hm.plot.traversals(model, "root/0/0"),
        "tree": hm.plot.tree(model),
        "usage": hm.plot.usage(history),
    }
    assert set(figures) == set(hm.plot.__all__)
    for figure in figures.values():
        assert isinstance(figure, Figure)
        assert size(figure._repr_png_()) == tuple((figure.get_size_inches() * figure.dpi).round())


# --- in Jupyter -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def executed():
    """The example, and the first picture again with pyplot's own way of showing figures switched on."""
    notebook = nbformat.read(EXAMPLE, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "kept without outputs"
    more = ("%matplotlib inline\nimport matplotlib.pyplot as plt", "hm.plot.tree(model, test.x)")
    notebook.cells += map(nbformat.v4.new_code_cell, more)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    return {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def shown(executed, end):
    """What the cells that end so show, without what is printed."""
    cells = [outputs for source, outputs in executed.items() if source.endswith(end)]
    assert cells
    return [[output["data"] for output in outputs if "data" in output] for outputs in cells]


# Starting a kernel, Jupyter's own packages warn of each other.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:(jupyter|nbclient|zmq|traitlets).*")


@pytest.mark.slow
def test_a_notebook_shows_what_its_cells_end_in(executed):
    ((data,),) = shown(executed, "\ntree")
    assert "10 x Mixture of 2" in data["text/html"]
    ((data,),) = shown(executed, "\nhistory")
    assert data["text/html"].count("<tr>") == 12, "a header, ten epochs and what was left out"
    ((data,),) = shown(executed, "model")
    assert data["text/html"].startswith('<div style="font-weight: bold">HMoEVAE(')
    values = [output["data"]["text/plain"] for outputs in executed.values() for output in outputs if "data" in output]
    assert max(map(len, values)) < 500


@pytest.mark.slow
def test_a_notebook_shows_every_picture_once(executed):
    pictures = [source for source in executed if source.splitlines()[-1].startswith("hm.plot.")]
    assert len(pictures) == 4
    for source in pictures:
        ((data,),) = shown(executed, source)
        width, height = size(base64.b64decode(data["image/png"]))
        assert re.fullmatch(r"<Picture size \d+x\d+ with \d Axes?>", data["text/plain"])
        assert width > 300
        assert height > 300


@pytest.mark.slow
def test_nothing_is_printed_but_the_bar(executed):
    printed = [o for outputs in executed.values() for o in outputs if o["output_type"] == "stream"]
    lines = [line.strip() for output in printed for line in re.split(r"[\r\n]+", output["text"]) if line.strip()]
    others = [line for line in lines if "%|" not in line]
    # That a bar of text takes the place of a widget is said by a package that we import.
    assert [line for line in others if "TqdmWarning" not in line and "autonotebook" not in line] == []
    assert {output["name"] for output in printed} == {"stderr"}
    assert "epoch 12/12: 100%" in lines[-1]
