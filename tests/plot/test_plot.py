"""The pictures: what they show, how large, with which words; and what they refuse."""

import functools
import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch

import hmoevae as hm
from hmoevae import plot
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, MissingExtraError, ShapeError
from hmoevae.plot.canvas import DPI, LINE, PALE
from hmoevae.plot.dendrograms import _marks
from hmoevae.plot.grids import evenly, pictures_of, spread

VAE = hm.VAE(2, hm.MLP((4,)), hm.MLP((4,)))
TREES = {
    "flat": hm.Mixture.of(VAE, 10, gate=hm.MLP((4,))),
    "two levels": hm.Mixture.of(hm.Mixture.of(VAE, 3, gate=hm.MLP((4,))), 10, gate=hm.MLP((4,))),
    "mixed": hm.Mixture(
        children=(VAE, hm.Mixture(children=(hm.VAE(3), hm.Mixture.of(VAE, 2))), hm.VAE(1, name="$\\x"))
    ),
    "one leaf": VAE,
}
SHAPES = ((1, 6, 6), (5, 4), (3, 4, 6), (7,), (200,), (2, 3, 4))
# Rows and columns of pixels that pictures of these shapes are made of; the last three are drawn as bars.
PIXELS = ((6, 6), (5, 4), (4, 6), (56, 56), (56, 56), (56, 56))
ONE_NAME = hm.Mixture((hm.Mixture.of(hm.VAE(2, name="style"), 2, name="digit"), hm.VAE(2, name="0"), VAE))


def model_of(name: str, shape: tuple[int, ...] = (1, 6, 6)) -> hm.HMoEVAE:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return hm.HMoEVAE(TREES[name], shape)


def history_of(name: str, epochs: int = 3) -> hm.History:
    leaves = model_of(name).plan.leaves
    rows = [
        {"epoch": float(e), "seconds": float(e), "loss": 203.0, "marginal": 2.0, "distillation": 1.0, "balance": 200.0}
        | {f"usage/{leaf.path}": (i + 1) / sum(range(len(leaves) + 1)) for i, leaf in enumerate(leaves)}
        | ({"val_marginal": 3.0 + e, "val_elbo": 4.0} if e != 2 else {})
        for e in range(1, epochs + 1)
    ]
    return hm.History(rows)


def rendered(figure: Figure) -> np.ndarray:
    """The figure's pixels, as savefig would write them."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def image(figure: Figure) -> np.ndarray:
    (only,) = figure.axes[0].images
    return np.asarray(only.get_array())


def runs(is_white: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where every run of true begins, and how long it is."""
    steps = np.diff(is_white.astype(int), prepend=0, append=0)
    (starts,), (stops,) = (steps == 1).nonzero(), (steps == -1).nonzero()
    return starts, stops - starts


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def column_labels(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_xticklabels()]


def row_labels(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def widths(figure: Figure) -> dict[str, float]:
    """Line width of every edge of a tree, by the path of the child."""
    edges = [patch for patch in figure.axes[0].patches if isinstance(patch, PathPatch)]
    return {str(edge.get_gid()): edge.get_linewidth() for edge in edges}


# --- every picture of every tree ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(
            name, shape, marks=[pytest.mark.slow] if name in ("flat", "two levels") and shape in SHAPES[2:] else []
        )
        for name in TREES
        for shape in SHAPES
    ],
)
def test_everything_renders(name: str, shape: tuple[int, ...], rng_untouched: None) -> None:
    model = model_of(name, shape)
    source = torch.Generator().manual_seed(0)
    x = torch.rand(5, *shape, generator=source)
    n_leaves = model.plan.n_leaves
    figures = (
        plot.tree(model),
        plot.samples(model, 3, generator=source),
        plot.reconstructions(model, x),
        plot.traversals(model, model.plan.leaves[-1].path),
        plot.sample_grid(torch.rand(4, n_leaves, *shape, generator=source), range(1, 5), plan=model.plan),
    )
    for figure in figures:
        pixels = rendered(figure)
        assert (pixels[0] == 255).all()
        assert (pixels[:, 0] == 255).all(), "labels have room: nothing touches the border"
        assert (pixels[-1] == 255).all()
        assert (pixels[:, -1] == 255).all()
        assert pixels.min() < 200


@pytest.mark.slow
def test_no_global_state() -> None:
    code = (
        "import sys, hmoevae as hm; assert 'matplotlib' not in sys.modules\n"
        "import matplotlib\n"
        "def settings(): return {k: matplotlib.rcParams[k] for k in matplotlib.rcParams if k != 'backend'}\n"
        "before = settings(); hm.plot.tree(hm.HMoEVAE(hm.VAE(2), (4,)))\n"
        "assert 'matplotlib.pyplot' not in sys.modules and settings() == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "hmoevae.plot")
    with pytest.raises(MissingExtraError, match=r"expected matplotlib \(in a clone: pip install -e '\.\[plot\]'"):
        __import__("hmoevae.plot")


# --- the training ---------------------------------------------------------------------------------------------------


def test_losses_have_a_panel_each() -> None:
    figure = plot.losses(history_of("flat"))
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["loss (the sum of the terms below)", "marginal", "distillation", "balance"]
    assert [len(ax.lines) for ax in figure.axes] == [1, 2, 1, 1]
    validation = figure.axes[1].lines[1]
    assert list(validation.get_xdata()) == [1, 3], "an epoch without validation leaves no hole in the curve"
    assert list(validation.get_ydata()) == [4, 6]
    legend = figure.axes[1].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["training", "validation"]
    assert figure.axes[-1].get_xlabel() == "epoch"
    rendered(figure)


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("epochs", [1, 3])
def test_usage_stacks_to_one(name: str, epochs: int) -> None:
    figure = plot.usage(history_of(name, epochs))
    leaves = [leaf.path.removeprefix("root/") for leaf in model_of(name).plan.leaves]
    areas = [area.get_data() for area in figure.axes[0].patches]
    assert len(areas) == len(leaves)
    for below, above in itertools.pairwise(areas):
        np.testing.assert_allclose(below.values, above.baseline, atol=1e-12)
    np.testing.assert_allclose(areas[-1].values, 1)
    np.testing.assert_array_equal(areas[0].edges, np.arange(epochs + 1) + 0.5)
    share = {leaf: area.values[-1] - area.baseline[-1] for leaf, area in zip(leaves, areas, strict=True)}
    named = [word.strip() for word in words(figure)]
    assert {leaf for leaf in leaves if share[leaf] > 0.03} <= set(named)
    assert min(share[leaf] for leaf in named) > 0.005
    assert len({tuple(area.get_facecolor()) for area in figure.axes[0].patches}) >= min(len(leaves), 3)
    rendered(figure)


def test_histories_without_what_is_asked_for() -> None:
    for picture in (plot.losses, plot.usage):
        with pytest.raises(ArgumentError, match="history: expected at least one epoch, got none"):
            picture(hm.History())
    with pytest.raises(ArgumentError, match="history: expected columns 'usage/<path of a leaf>', got epoch, loss"):
        plot.usage(hm.History([{"epoch": 1.0, "loss": 2.0}]))


def test_a_term_that_is_always_zero_has_no_panel() -> None:
    history = hm.fit(hm.HMoEVAE(VAE, (4,)), torch.rand(8, 4), hm.Training(epochs=2), progress=False)
    assert "balance" in history.columns
    titles = [ax.get_title(loc="left") for ax in plot.losses(history).axes]
    assert titles == ["loss (the sum of the terms below)", "expected"]


def test_usage_calls_leaves_by_their_names() -> None:
    plan = hm.HMoEVAE(ONE_NAME, (4,)).plan
    history = hm.History([{"epoch": 1} | {f"usage/{leaf.path}": 0.25 for leaf in plan.leaves}])
    assert [word.strip() for word in words(plot.usage(history))] == ["0/0", "0/1", "1", "2"]
    named = [word.strip() for word in words(plot.usage(history, plan=plan))]
    assert named == ["style (0/0)", "style (0/1)", "0", "2"]
    with pytest.raises(ArgumentError, match="plan: expected one with the leaves root/0/0, root/0/1, root/1, root/2"):
        plot.usage(history, plan=model_of("flat").plan)


def test_usage_names_the_largest_leaves_where_there_is_room() -> None:
    share = torch.rand(100, generator=torch.Generator().manual_seed(0)).softmax(0).tolist()
    figure = plot.usage(hm.History([{"epoch": 1} | {f"usage/root/{i}": value for i, value in enumerate(share)}]))
    rendered(figure)
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) > 10
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    assert f" {max(range(100), key=share.__getitem__)}" in words(figure)


@pytest.mark.parametrize(("shape", "pixels"), list(zip(SHAPES, PIXELS, strict=True)))
def test_sample_grid_tiles_rows_and_columns(shape: tuple[int, ...], pixels: tuple[int, int]) -> None:
    frames = torch.rand(4, 3, *shape, generator=torch.Generator().manual_seed(0))
    figure = plot.sample_grid(frames, [1, 2, 5, 20], ["a", "b", "c"])
    tiled = image(figure)
    height, width = pixels
    gap = 4 if pixels == (56, 56) else 1
    down, right = height + gap, width + gap
    assert tiled.shape == (4 * down - gap, 3 * right - gap, 3)
    for row in range(1, 4):
        assert (tiled[row * down - gap : row * down] == 1).all()
    for column in range(1, 3):
        assert (tiled[:, column * right - gap : column * right] == 1).all()
    if pixels != (56, 56):
        picture = frames[2, 1].expand(3, height, width) if len(shape) == 3 else frames[2, 1].expand(3, *shape)
        place = tiled[2 * down : 2 * down + height, right : right + width]
        np.testing.assert_array_equal(place, picture.permute(1, 2, 0).numpy())
    assert row_labels(figure) == ["1", "2", "5", "20"]
    assert column_labels(figure) == ["a", "b", "c"]
    assert figure.axes[0].get_ylabel() == "epoch"


def test_sample_grid_sets_the_branches_apart() -> None:
    plan = model_of("two levels").plan
    figure = plot.sample_grid(torch.zeros(2, 30, 28, 28), [1, 2], plan=plan)
    tiled = image(figure)
    white = (tiled == 1).all((0, 2))
    starts, widths = runs(white)
    assert len(starts) == 29, "a gap between all columns"
    assert widths.tolist() == [2, 2, 6] * 9 + [2, 2], "in pixels that are drawn two wide"
    assert starts[0] == 28
    assert column_labels(figure)[:4] == ["0/0", "0/1", "0/2", "1/0"]
    flat = plot.sample_grid(torch.zeros(2, 10, 28, 28), [1, 2], plan=model_of("flat").plan)
    assert image(flat).shape == (2 * 30 - 2, 10 * 30 - 2, 3)


def test_pixels_are_crisp() -> None:
    frames = torch.rand(20, 10, 28, 28, generator=torch.Generator().manual_seed(0))
    figure = plot.sample_grid(frames, range(20))
    expected = (255 * image(figure)).repeat(2, 0).repeat(2, 1)
    pixels = rendered(figure)
    is_inside = (pixels != 255).any(2)
    right = pixels.shape[1] - np.argmax(is_inside.mean(0)[::-1] > 0.5)
    bottom = pixels.shape[0] - np.argmax(is_inside[:, right - 20 : right].mean(1)[::-1] > 0.5)
    found = pixels[bottom - len(expected) : bottom, right - expected.shape[1] : right]
    np.testing.assert_allclose(found, expected, atol=1.01)


def test_bars_are_as_high_as_the_values() -> None:
    figure = plot.sample_grid(torch.tensor([[[0.0, 1.0, 2.0, -2.0, -1.0]]]), [1])
    ink = (image(figure)[..., 0] < 0.5)[3:-3, 3:-3]
    assert ink.sum(0)[4::10].tolist() == [0, 12, 25, 25, 12], "ten columns a bar"
    assert ink.sum(0)[9:-1:10].tolist() == [0, 0, 0, 0], "and a white one between two"
    assert ink[:25, 24].all(), "positive values grow upwards from zero"
    assert ink[25:, 34].all(), "negative ones downwards"


def test_bars_stand_on_a_line_of_zero() -> None:
    inside = image(plot.sample_grid(torch.tensor([[[0.0, 0.0, 1.0, -1.0]]]), [1]))[3:-3, 3:-3]
    (line,) = ((inside[:, 0] < 0.9).all(-1)).nonzero()
    assert line.tolist() == [24], "nothing but a line where the values are 0"
    assert (inside[24, :25] == inside[24, 0]).all()
    for values in (torch.zeros(1, 1, 5), -torch.ones(1, 1, 5), torch.ones(1, 1, 5)):
        assert (image(plot.sample_grid(values, [1]))[3:-3, 12] != 1).any(), "between two bars too"
    assert (image(plot.sample_grid(torch.zeros(1, 1, 5), [1]))[..., 0] < 0.5).sum() == 0


@pytest.mark.parametrize("shape", [(2, 50), (1, 4, 64), pytest.param((3, 2, 500), marks=pytest.mark.slow), (50, 2)])
def test_labels_of_low_and_narrow_pictures_do_not_overlap(shape: tuple[int, ...]) -> None:
    model = model_of("flat", shape)
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    figures = (
        plot.sample_grid(torch.rand(4, 10, *shape), range(4), plan=model.plan),
        plot.nearest(model, x, 2),
        plot.reconstructions(model, x),
        plot.traversals(model, "root/3"),
    )
    for figure in figures:
        rendered(figure)
        ax = figure.axes[0]
        for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
            boxes = [label.get_window_extent() for label in labels if label.get_text()]
            for one, other in itertools.pairwise(boxes):
                assert not one.overlaps(other)


def test_names_of_leaves_fit() -> None:
    frames = torch.rand(1, 4, 28, 28)
    names = ["bag", "a long name of one leaf", "10/10/10", "convolutional"]
    figure = plot.sample_grid(frames, [1], names)
    assert column_labels(figure) == ["bag", "a long\nname of\none leaf", "10/10/10", "convolutional"]
    assert [label.get_rotation() for label in figure.axes[0].get_xticklabels()] == [0, 0, 0, 90]
    many = plot.sample_grid(frames.repeat(1, 4, 1, 1), [1], [*names, *["10/10/10"] * 12])
    assert set(column_labels(many)[4:]) == {"10/\n10/10"}
    turned = plot.sample_grid(frames, [1], ["reconstruction", "interpolation", "convolutional", "bag"])
    assert {label.get_rotation() for label in turned.axes[0].get_xticklabels()} == {90}, "most are long"


def test_a_name_that_several_nodes_carry_comes_with_the_path() -> None:
    model = hm.HMoEVAE(ONE_NAME, (1, 28, 28))
    assert column_labels(plot.samples(model, 2)) == ["style\n(0/0)", "style\n(0/1)", "0", "2"]
    assert "digit: 50.0%" not in words(plot.tree(model))
    assert words(plot.tree(model))[1].startswith("digit: ")
    assert plot.traversals(model, "root/0/1").axes[0].get_title(loc="left").startswith("Leaf style (0/1):")


def test_values_outside_the_unit_interval_are_stretched() -> None:
    tiled = image(plot.sample_grid(torch.tensor([[[[-1.0, 1.0], [3.0, 0.0]]]]), [1]))
    np.testing.assert_allclose(tiled[..., 0], [[0, 0.5], [1, 0.25]])


def test_sample_grid_refuses() -> None:
    frames = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ShapeError, match="epochs: expected 2 numbers, one per row of frames, got 3"):
        plot.sample_grid(frames, [1, 2, 3])
    with pytest.raises(ShapeError, match="titles: expected 3 labels"):
        plot.sample_grid(frames, [1, 2], ["a"])
    with pytest.raises(
        ShapeError, match=r"frames: expected \(epoch, 10, ...\), one column per leaf, got \(2, 3, 4, 4\)"
    ):
        plot.sample_grid(frames, [1, 2], plan=model_of("flat").plan)
    with pytest.raises(ShapeError, match=r"frames: expected \(row, column, \*input_shape\)"):
        plot.sample_grid(torch.zeros(2, 3), [1, 2])
    with pytest.raises(DataError, match="frames: expected finite values"):
        plot.sample_grid(frames / 0, [1, 2])


# --- the model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TREES)
def test_tree_shows_every_leaf_at_the_priors_mean(name: str) -> None:
    model = model_of(name)
    figure = plot.tree(model)
    shown = figure.axes[0].images
    n_leaves = model.plan.n_leaves
    assert len(shown) == n_leaves
    means = model.decode(torch.zeros(n_leaves, model.experts.latent_dim), torch.arange(n_leaves))
    for picture, mean in zip(shown, means, strict=True):
        np.testing.assert_array_equal(np.asarray(picture.get_array())[..., 0], mean[0].numpy())
    lefts = [picture.get_extent()[0] for picture in shown]
    assert lefts == sorted(lefts)
    assert len(set(lefts)) == n_leaves
    bottoms = [picture.get_extent()[2] for picture in shown]
    depths = [leaf.depth for leaf in model.plan.leaves]
    assert [bottoms.index(b) for b in bottoms] == [depths.index(d) for d in depths], "leaves of one depth on one line"
    assert set(widths(figure)) == {node.path for node in model.plan.nodes} - {"root"}


def test_tree_says_how_leaves_are_called_and_used() -> None:
    model = model_of("mixed")
    usage = torch.tensor([0.5, 0.25, 0.125, 0.0, 0.125])
    labels = words(plot.tree(model, usage=usage))
    expected = [
        "root",
        "0\n50.0%",
        "1: 37.5%",
        "1/0\n25.0%",
        "1/1: 12.5%",
        "1/1/0\n12.5%",
        "1/1/1\n0.0%",
        "$\\x\n12.5%",
    ]
    assert labels == expected
    assert words(plot.tree(model_of("flat")))[1:] == [f"{i}\n10.0%" for i in range(10)]


def test_tree_edges_are_as_wide_as_they_are_used() -> None:
    model = model_of("mixed")
    usage = torch.tensor([0.4, 0.3, 0.05, 0.15, 0.1])
    by_path = widths(plot.tree(model, usage=usage))
    order = ["root/1/1/0", "root/2", "root/1/1/1", "root/1/1", "root/1/0", "root/0", "root/1"]
    assert sorted(by_path, key=by_path.__getitem__) == order
    assert by_path["root/1"] == pytest.approx(by_path["root/1/0"] + by_path["root/1/1"])
    edges = [patch for patch in plot.tree(model, usage=usage).axes[0].patches if isinstance(patch, PathPatch)]
    starts = {str(edge.get_gid()): edge.get_path().vertices[0][0] for edge in edges}
    apart = (by_path["root/0"] + by_path["root/1"]) / 2 * DPI / 72
    assert starts["root/1"] - starts["root/0"] == pytest.approx(apart), "edges leave their parent side by side"
    assert widths(plot.tree(model, usage=1000 * usage)) == pytest.approx(by_path), "only fractions count"
    unused = widths(plot.tree(model, usage=torch.tensor([1.0, 0, 0, 0, 0])))
    assert unused["root/2"] == 0.5, "an edge that is never used is still seen"


def sorted_samples(model: hm.HMoEVAE, n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples in the order of their leaves, one leaf without any, and those leaves."""
    x = torch.rand(n, *model.input_shape, generator=torch.Generator().manual_seed(0)) ** 3
    leaf = model.predict(x)
    x = x[leaf.argsort(stable=True)]
    leaf = model.predict(x)
    assert 1 < len(leaf.unique()) < model.plan.n_leaves
    return x, leaf


def test_a_tree_of_samples_says_where_they_go_as_the_other_pictures_do() -> None:
    model = model_of("mixed")
    x, leaf = sorted_samples(model)
    figure = plot.tree(model, x)
    count = leaf.bincount(minlength=5)
    said = {text.partition("\n")[0]: text.partition("\n")[2] for text in words(figure) if "\n" in text}
    names = model.plan.level_names(None)
    assert [said[name] for name in names] == [f"{100 * k / len(x):.1f}%" for k in count.tolist()]
    soft = model.predict_proba(x).mean(0)
    assert (soft > 0.01).all(), "leaves that no sample is routed to have a share all the same"
    empty = [name for name, k in zip(names, count, strict=True) if k == 0]
    nearest = words(plot.nearest(model, x, 1))
    assert (
        words(figure).count("no\nsample") + words(figure).count("no sample")
        == len(empty)
        == nearest.count("no\nsample")
    )
    title = figure.axes[0].get_title(loc="left")
    assert " ".join(title.split()) == "Every leaf: the mean of its samples, and its share of them"
    shown = iter(figure.axes[0].images)
    for i in range(5):
        if count[i]:
            mean = x[leaf == i].mean(0)[0].numpy()
            np.testing.assert_allclose(np.asarray(next(shown).get_array())[..., 0], mean, atol=1e-6)
    assert next(shown, None) is None
    given = plot.tree(model, x, usage=soft)
    assert words(given)[1] == f"0\n{100 * soft[0]:.1f}%"
    assert given.axes[0].get_title(loc="left").endswith("and its usage")


def test_a_tree_says_what_it_shows() -> None:
    model = model_of("flat")
    images, source = torch.zeros(10, 1, 6, 6), torch.Generator()
    titles = [
        " ".join(figure.axes[0].get_title(loc="left").split())
        for figure in (
            plot.tree(model),
            plot.tree(model, generator=source),
            plot.tree(model, images=images),
            plot.tree(model, usage=torch.ones(10), images=images),
        )
    ]
    assert titles == [
        "Every leaf: the decoded z = 0, and its prior",
        "Every leaf: a sample, and its prior",
        "Every leaf and its prior",
        "Every leaf and its usage",
    ]
    with pytest.raises(ShapeError, match="x: expected"):
        plot.tree(model, torch.zeros(2, 36))


LONG = hm.Mixture.of(VAE, 2, name="animals with feathers")
CHAIN = functools.reduce(lambda below, _: hm.Mixture((VAE, below)), range(7), LONG)


@pytest.mark.parametrize(
    ("tree", "shape"),
    [
        (hm.Mixture((LONG, LONG, LONG)), (13,)),
        (hm.Mixture((VAE, LONG, VAE)), (1, 28, 28)),
        (CHAIN, (1, 28, 28)),
    ],
    ids=["names", "beside a leaf", "chain"],
)
@pytest.mark.parametrize("most", [None, 2])
def test_tree_keeps_frames_and_pictures_apart(tree: hm.Mixture, shape: tuple[int, ...], most: int | None) -> None:
    model = hm.HMoEVAE(tree, shape)
    usage = torch.arange(model.plan.n_leaves) % 2 + 1.0
    figure = plot.tree(model, usage=usage, most=most)
    ax = figure.axes[0]
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [patch.get_window_extent(renderer) for patch in ax.patches if isinstance(patch, FancyBboxPatch)]
    words = [text.get_window_extent(renderer) for text in ax.texts if text.get_va() == "center"]
    pictures = [image.get_window_extent(renderer) for image in ax.images]
    assert len(boxes) == len(words) >= 2
    assert most is not None or len(boxes) == sum(isinstance(node, hm.Mixture) for _, node in tree.walk())
    for box, word in zip(boxes, words, strict=True):
        assert box.x0 < word.x0
        assert word.x1 < box.x1
    for one, other in itertools.combinations([*boxes, *pictures], 2):
        assert not one.overlaps(other)


@pytest.mark.parametrize("shape", [(1, 28, 28), (13,), (5, 2)])
def test_an_edge_is_no_wider_than_the_picture_that_it_leads_to(shape: tuple[int, ...]) -> None:
    figure = plot.tree(model_of("flat", shape), usage=torch.tensor([1.0, *[0.0] * 9]))
    picture = figure.axes[0].images[0].get_window_extent(FigureCanvasAgg(figure).get_renderer())
    assert widths(figure)["root/0"] * DPI / 72 <= picture.width + 1e-6  # of rounding


def test_tree_shows_given_or_drawn_images() -> None:
    model = model_of("flat")
    images = torch.rand(10, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    shown = plot.tree(model, images=images).axes[0].images
    np.testing.assert_array_equal(np.asarray(shown[3].get_array())[..., 1], images[3, 0].numpy())
    first, second, mean = (
        np.asarray(plot.tree(model, generator=generator).axes[0].images[3].get_array())
        for generator in (torch.Generator().manual_seed(1), torch.Generator().manual_seed(1), None)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, mean)


def test_pictures_and_usage_may_be_arrays() -> None:
    model = model_of("flat")
    images = np.random.default_rng(0).random((10, 1, 6, 6))
    images.flags.writeable = False
    usage = np.full(10, 0.1)
    usage.flags.writeable = False
    shown = plot.tree(model, images=images, usage=usage).axes[0].images
    np.testing.assert_array_equal(np.asarray(shown[3].get_array())[..., 1], images[3, 0].astype(np.float32))
    tiled = image(plot.sample_grid(images[::-1].reshape(2, 5, 1, 6, 6), [1, 2]))
    np.testing.assert_array_equal(tiled[:6, :6, 0], images[9, 0].astype(np.float32))
    x = images.astype(np.float64)
    x.flags.writeable = False
    labels = np.array([0] * 6 + [1] * 4)
    assert len(words(plot.misrouted(x, labels, np.zeros(10, dtype=int)))) == 4


@pytest.mark.parametrize(
    "draw",
    [
        plot.tree,
        plot.samples,
        lambda model: plot.nearest(model, torch.rand(2, 4)),
        lambda model: plot.reconstructions(model, torch.rand(2, 4)),
        lambda model: plot.traversals(model, "root/0"),
    ],
)
def test_what_is_no_model_is_refused(as_users_call: None, draw: Callable[[object], Figure]) -> None:
    estimator = hm.VAEMixture()
    estimator.model_ = model_of("flat")
    with pytest.raises(ArgumentTypeError, match="model: expected an HMoEVAE, such as the estimator's model_, got VAEM"):
        draw(estimator)
    with pytest.raises(ArgumentTypeError, match="model: expected an HMoEVAE, got Mixture"):
        draw(TREES["flat"])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot.losses([{"epoch": 1}]), "history: expected a History, such as fit returns, got list"),
        (lambda: plot.usage(model_of("flat")), "history: expected a History, such as fit returns, got HMoEVAE"),
        (lambda: plot.usage(history_of("flat"), plan=model_of("flat")), "plan: expected a Plan, .*, got HMoEVAE"),
        (lambda: plot.sample_grid(torch.zeros(1, 1, 4), [1], plan=VAE), "plan: expected a Plan, .*, got VAE"),
        (lambda: plot.sample_grid(torch.zeros(1, 1, 4), 1), "epochs: expected a sequence, got int"),
        (lambda: plot.sample_grid(torch.zeros(1, 1, 4), [1], 1), "titles: expected a sequence, got int"),
        (lambda: plot.sample_grid({}, [1]), "frames: expected a torch.Tensor or numpy array of numbers, got dict"),
        (
            lambda: plot.contingency(np.zeros(2), np.zeros(2, int), cluster_names=5),
            "cluster_names: expected a seq.*int",
        ),
    ],
)
def test_what_is_of_another_type_is_refused(as_users_call: None, draw: Callable[[], Figure], message: str) -> None:
    with pytest.raises(ArgumentTypeError, match=message):
        draw()


@pytest.mark.slow
def test_a_compiled_model_is_a_model(as_users_call: None) -> None:
    assert column_labels(plot.samples(torch.compile(model_of("mixed")), 2))[0] == "0"


def test_tree_refuses() -> None:
    model = model_of("flat")
    with pytest.raises(ShapeError, match=r"usage: expected \(10,\), one number per leaf, got \(9,\)"):
        plot.tree(model, usage=torch.ones(9))
    for usage in (torch.zeros(10), -torch.ones(10), torch.full((10,), torch.nan)):
        with pytest.raises(DataError, match="usage: expected finite numbers >= 0, not all of them 0"):
            plot.tree(model, usage=usage)
    with pytest.raises(ShapeError, match=r"images: expected \(10, 1, 6, 6\), got \(10, 6, 6\)"):
        plot.tree(model, images=torch.zeros(10, 6, 6))


def test_a_tree_of_the_largest_leaves_names_what_it_leaves_out() -> None:
    model = model_of("mixed")
    usage = torch.tensor([0.05, 0.25, 0.1, 0.2, 0.4])
    figure = plot.tree(model, usage=usage, most=3)
    labels = ["root", "1: 55.0%\n1 other: 10.0%", "1/0\n25.0%", "1/1: 30.0%\n1 other: 10.0%", "1/1/1\n20.0%"]
    assert words(figure) == [*labels, "$\\x\n40.0%"]
    title = " ".join(figure.axes[0].get_title(loc="left").split())
    assert title == "The 3 largest of 5 leaves: the decoded z = 0, and its usage; 2 others: 15.0%"
    all_of_them = plot.tree(model, usage=usage)
    drawn, every = widths(figure), widths(all_of_them)
    assert drawn == pytest.approx({path: every[path] for path in drawn}), "edges keep the width of their share"
    assert set(every) - set(drawn) == {"root/0", "root/1/1/0"}
    pictures = [np.asarray(picture.get_array()) for picture in all_of_them.axes[0].images]
    for picture, i in zip(figure.axes[0].images, [1, 3, 4], strict=True):
        np.testing.assert_array_equal(np.asarray(picture.get_array()), pictures[i])


def test_a_mixture_without_one_of_the_largest_leaves_is_not_drawn() -> None:
    tree = hm.Mixture.of(hm.Mixture.of(VAE, 3), 2)
    figure = plot.tree(hm.HMoEVAE(tree, (1, 6, 6)), usage=torch.tensor([1.0, 1, 1, 3, 0, 0]), most=1)
    assert words(figure) == ["root", "1: 50.0%\n2 others: 0.0%", "1/0\n50.0%"]


@pytest.mark.parametrize("most", [5, 1000])
def test_a_tree_of_no_more_leaves_than_asked_for_is_drawn_whole(most: int) -> None:
    figure, whole = plot.tree(model_of("mixed"), most=most), plot.tree(model_of("mixed"))
    assert words(figure) == words(whole)
    assert figure.axes[0].get_title(loc="left") == whole.axes[0].get_title(loc="left")


@pytest.mark.parametrize("most", [0, -1, 2.5, "3", True])
def test_a_number_of_leaves_to_draw_is_positive(as_users_call: None, most: Any) -> None:
    with pytest.raises(ArgumentError, match=f"most: expected an integer > 0, got {most!r}"):
        plot.tree(model_of("flat"), most=most)


def test_samples_are_those_of_the_leaves() -> None:
    model = model_of("mixed")
    figure = plot.samples(model, 4, generator=torch.Generator().manual_seed(0))
    z = torch.randn(4 * 5, 3, generator=torch.Generator().manual_seed(0))
    expected = model.decode(z, torch.arange(5).repeat(4)).reshape(4, 5, 6, 6)
    tiled = image(figure)[..., 0]
    assert tiled.shape[0] == 4 * 6 + 3, "a white line between all rows"
    assert (tiled[6::7] == 1).all()
    np.testing.assert_array_equal(tiled[7:13, :6], expected[1, 0].numpy())
    np.testing.assert_array_equal(tiled[21:, -6:], expected[3, 4].numpy())
    assert column_labels(figure) == ["0", "1/0", "1/1/0", "1/1/1", "$\\x"]
    with pytest.raises(ArgumentError, match="n: expected an integer > 0, got 0"):
        plot.samples(model, 0)


def test_nearest_of_each_leafs_own_below_its_samples() -> None:
    model = model_of("mixed")
    x = torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    figure = plot.nearest(model, x, 2, generator=torch.Generator().manual_seed(0))
    assert row_labels(figure) == ["0", "nearest", "1", "nearest", "$\\x", "nearest"]
    tiled = image(figure)[..., 0]
    gap = (len(tiled) - 6 * 6 - 3) // 2
    assert tiled.shape == (6 * 6 + 3 + 2 * gap, 6 * 6 + 3 + 2 * 2), "a white line within a pair, two between leaves"
    high = figure.axes[0].images[0].get_extent()[2] / len(tiled)
    assert gap * high > 2 * LINE, "pairs are as far apart as the names of leaves need"
    z = torch.randn(2 * 5, 3, generator=torch.Generator().manual_seed(0))
    drawn = model.decode(z, torch.arange(5).repeat_interleave(2))
    leaf = model.predict(x)
    places = [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0)]  # the row's child of the root, and the leaf's place below it
    for i, (row, column) in enumerate(places):
        for j in range(2):
            top, left = row * (13 + gap), column * (13 + 2) + 7 * j
            sample = drawn[2 * i + j, 0]
            np.testing.assert_array_equal(tiled[top : top + 6, left : left + 6], sample.numpy())
            assert (tiled[top + 6, left : left + 6] == 1).all(), "small pictures do not touch"
            below = tiled[top + 7 : top + 13, left : left + 6]
            if (leaf == i).any():
                own = x[leaf == i, 0]
                closest = own[(own - sample).square().sum((1, 2)).argmin()]
                np.testing.assert_array_equal(below, closest.numpy())
            else:
                assert (below == 1).all()
    empty = (leaf.bincount(minlength=5) == 0).sum()
    assert empty > 0, "a leaf without samples is among them"
    assert len(figure.axes[0].patches) == words(figure).count("no sample") == empty
    assert [word for word in words(figure) if word != "no sample"] == ["1/0", "1/1/0", "1/1/1"]
    with pytest.raises(ArgumentError, match="n: expected an integer > 0, got 0"):
        plot.nearest(model, x, 0)
    with pytest.raises(ShapeError, match="x: expected"):
        plot.nearest(model, torch.zeros(2, 36))


def test_nearest_leaves_room_for_what_it_writes() -> None:
    tree = hm.Mixture((hm.VAE(2, name="convolutional"), hm.Mixture.of(VAE, 2)))
    figures = [plot.nearest(hm.HMoEVAE(t, (1, 28, 28)), torch.rand(5, 1, 28, 28), 1) for t in (tree, TREES["mixed"])]
    heights = [figure.axes[0].images[0].get_extent()[2] / len(row_labels(figure)) for figure in figures]
    assert heights[0] <= heights[1], "a name beside a row takes no room below it"


@pytest.mark.parametrize("name", TREES)
def test_nearest_of_every_tree(name: str) -> None:
    assert len(rendered(plot.nearest(model_of(name), torch.rand(5, 1, 6, 6), 1))) > 0


def test_reconstructions_below_their_originals() -> None:
    model = model_of("two levels")
    x = torch.rand(14, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    figure = plot.reconstructions(model, x)
    tiled = image(figure)[..., 0]
    assert tiled.shape[1] == 12 * 6 + 11, "twelve make a row, with a white line between all"
    assert tiled.shape[0] > 4 * 6
    np.testing.assert_array_equal(tiled[:6, 7:13], x[1, 0].numpy())
    assert (tiled[6] == 1).all()
    assert (tiled[:, 6] == 1).all()
    np.testing.assert_array_equal(tiled[7:13, 7:13], model.reconstruct(x)[1, 0].numpy())
    np.testing.assert_array_equal(tiled[-6:, 7:13], model.reconstruct(x)[13, 0].numpy())
    assert (tiled[-13:, 13:] == 1).all(), "the rest of the last row is empty"
    assert "the leaf of each" in figure.axes[0].get_title(loc="left")
    assert row_labels(figure) == ["original", "reconstruction"] * 2
    paths = [leaf.path.removeprefix("root/") for leaf in model.plan.leaves]
    assert words(figure) == [paths[leaf] for leaf in model.predict(x).tolist()]
    with pytest.raises(ShapeError, match=r"x: expected \(batch, 1, 6, 6\)"):
        plot.reconstructions(model, torch.zeros(2, 36))


def test_reconstructions_of_sorted_samples_are_of_all_leaves() -> None:
    model = model_of("mixed")
    x, leaf = sorted_samples(model)
    figure = plot.reconstructions(model, x, n=12)
    paths = model.plan.level_names(None)
    shown = [paths.index(word) for word in words(figure)]
    assert shown == sorted(shown)
    counts, there = np.bincount(shown, minlength=5), leaf.bincount(minlength=5).numpy()
    assert counts.sum() == 12
    assert (counts[there > 0] > 0).all()
    short = there < counts.max() - 1
    assert (counts[short] == there[short]).all(), "less than the others only where there are no more"
    tiled = image(figure)[..., 0]
    for i, of in enumerate(shown):
        own = x[leaf == of, 0].numpy()
        assert (np.abs(own - tiled[:6, 7 * i : 7 * i + 6]).max((1, 2)) == 0).any()
    assert len(words(plot.reconstructions(model, x))) == 24
    with pytest.raises(ArgumentError, match="n: expected an integer > 0, got 0"):
        plot.reconstructions(model, x, n=0)


def test_samples_to_show_are_spread() -> None:
    assert spread(np.array([3, 1, 3]), 3).tolist() == [0, 1, 2], "all, as they come"
    groups = np.repeat([0, 1, 4], [100, 2, 100])
    assert spread(groups, 8).tolist() == [16, 49, 83, 100, 101, 118, 151, 185]
    assert spread(groups, 2).tolist() == [49, 151] or len(set(groups[spread(groups, 2)])) == 2
    assert evenly(3, 3).tolist() == evenly(5, 3).tolist() == [0, 1, 2]
    assert evenly(1, 2).tolist() == [0]
    assert evenly(2, 100).tolist() == [24, 74]


def test_traversals_change_one_latent_at_a_time() -> None:
    model = model_of("mixed")
    figure = plot.traversals(model, "root/1/0", n_steps=5, dims=[2, 0])
    tiled = image(figure)[..., 0]
    assert tiled.shape == (2 * 6 + 1, 5 * 6 + 4), "a white line between all pictures"
    for row, latent in enumerate(([0, 0, 1.0], [1.0, 0, 0])):
        for column, step in enumerate((-3, -1.5, 0, 1.5, 3)):
            expected = model.decode(step * torch.tensor([latent]), torch.tensor([1]))[0, 0]
            place = tiled[7 * row : 7 * row + 6, 7 * column : 7 * column + 6]
            np.testing.assert_allclose(place, expected.numpy(), atol=1e-6)
    assert row_labels(figure) == ["z[2]", "z[0]"]
    assert column_labels(figure) == ["-3", "-1.5", "0", "1.5", "3"]
    assert figure.axes[0].get_title(loc="left").startswith("Leaf 1/0:")
    assert len(row_labels(plot.traversals(model, "root/0"))) == 2, "a leaf has its own latent size"


def test_numpys_integers_are_integers(as_users_call: None) -> None:
    model = model_of("mixed")
    figure = plot.traversals(model, "root/0", n_steps=np.int64(3), dims=np.array([1, 0]))
    assert column_labels(figure) == ["-3", "0", "3"]
    assert row_labels(figure) == ["z[1]", "z[0]"]
    assert len(row_labels(plot.samples(model, np.int64(3)))) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: plot.traversals(m, "root/1"), r"expected the path of a leaf, got 'root/1', a mixture .*'root/1/0'"),
        (lambda m: plot.traversals(m, "root/9"), "path: expected a node of the tree"),
        (lambda m: plot.traversals(m, "root/0", n_steps=1), "n_steps: expected an integer > 1, got 1"),
        (lambda m: plot.traversals(m, "root/0", n_steps=True), "n_steps: expected an integer > 1, got True"),
        (lambda m: plot.traversals(m, "root/0", dims=[2]), r"sequence of integers from 0 to 1, got \[2\]"),
        (lambda m: plot.traversals(m, "root/0", dims=[]), "dims: expected"),
        (lambda m: plot.traversals(m, "root/0", dims=1), "dims: expected a sequence of integers from 0 to 1, got 1"),
    ],
)
def test_traversals_refuse(as_users_call: None, call: Callable[[hm.HMoEVAE], Figure], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call(model_of("mixed"))


# --- clusters against labels ----------------------------------------------------------------------------------------


def test_contingency_puts_the_largest_cells_onto_the_diagonal() -> None:
    labels = torch.tensor([0] * 4 + [1] * 5 + [2] * 3)
    clusters = torch.tensor([2, 2, 2, 0] + [0] * 5 + [1, 1, 0])
    figure = plot.contingency(labels, clusters, title="three of a kind")
    assert column_labels(figure) == ["2", "0", "1"]
    assert row_labels(figure) == ["0", "1", "2"]
    np.testing.assert_allclose(image(figure), [[0.75, 0.25, 0], [0, 1, 0], [0, 1 / 3, 2 / 3]])
    assert words(figure) == ["3", "1", "5", "1", "2"], "counts; empty cells say nothing"
    assert figure.axes[0].get_title(loc="left") == "three of a kind"
    assert figure.axes[0].get_xlabel() == "cluster (cells: number of samples)"
    kept = plot.contingency(labels, clusters, cluster_names=["a", "b", "c", "d"], keep_order=True)
    assert column_labels(kept) == ["a", "b", "c", "d"]
    np.testing.assert_allclose(image(kept)[0], [0.25, 0, 0.75, 0])
    rendered(figure)


def test_contingency_of_many_clusters_is_a_staircase_in_percent() -> None:
    generator = np.random.default_rng(0)
    clusters = generator.permutation(np.repeat(np.arange(29), 20))  # of 30: the last one stays empty
    labels = clusters % 10
    figure = plot.contingency(labels, clusters, cluster_names=[f"{i // 3}/{i % 3}" for i in range(30)])
    share = image(figure)
    assert share.shape == (10, 30)
    rows = share[:, :29].argmax(0)
    assert (np.diff(rows) >= 0).all()
    assert column_labels(figure)[-1] == "9/2", "an empty cluster goes last"
    assert set(words(figure)) == {"33", "50"}
    assert figure.axes[0].get_xlabel() == "cluster (cells: percent of the label)"


def test_contingency_of_few_clusters_with_large_numbers() -> None:
    figure = plot.contingency(np.array([0, 1, 1]), np.array([0, 10**9, 10**9]))
    assert column_labels(figure) == ["0", "1000000000"]
    assert words(plot.misrouted(torch.rand(3, 4), np.array([0, 1, 1]), np.array([10**9] * 3))) == [
        "0 → 1\nin 1000000000"
    ]
    named = plot.contingency(np.array([0, 1]), np.array([0, 2]), cluster_names=range(4), keep_order=True)
    assert column_labels(named) == ["0", "1", "2", "3"]


def test_contingency_puts_empty_clusters_last() -> None:
    labels, clusters = np.repeat([0, 1, 2], 4), np.array([5] * 3 + [2] + [5] * 8)
    figure = plot.contingency(labels, clusters, cluster_names="abcdef")
    assert column_labels(figure)[2:] == ["a", "b", "d", "e"]


def test_contingency_refuses() -> None:
    with pytest.raises(ShapeError, match=r"labels, clusters: expected \(n,\) and \(n,\), got \(2,\) and \(3,\)"):
        plot.contingency(np.zeros(2), np.zeros(3, dtype=int))
    for clusters in (np.zeros(2), np.array([0, -1])):
        with pytest.raises(DataError, match="clusters: expected at least one integer, all >= 0, got"):
            plot.contingency(np.zeros(2), clusters)
    with pytest.raises(DataError, match="at least one"):
        plot.contingency(np.zeros(0), np.zeros(0, dtype=int))
    with pytest.raises(ShapeError, match="cluster_names: expected at least 6 names, got 2"):
        plot.contingency(np.zeros(2), np.array([0, 5], dtype=np.uint8), cluster_names=["a", "b"])


def test_contingency_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    labels, clusters = np.array([0, 1]), np.array([1, 0])
    with pytest.raises(
        MissingExtraError, match=r"keep_order=True, or scipy \(in a clone: pip install -e '\.\[sklearn\]'"
    ):
        plot.contingency(labels, clusters)
    assert column_labels(plot.contingency(labels, clusters, keep_order=True)) == ["0", "1"]


def test_misrouted_samples_with_label_and_cluster() -> None:
    x = torch.rand(9, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    labels = np.array([4, 4, 4, 9, 9, 9, 9, 4, 9])
    clusters = torch.tensor([1, 1, 1, 0, 0, 0, 2, 0, 1])  # cluster 2 holds one 9 and so stands for it
    figure = plot.misrouted(x, labels, clusters, cluster_names=["a", "b", "c"])
    assert figure.axes[0].get_title(loc="left").startswith("2 of 9 samples are in a cluster that mostly holds another")
    assert words(figure) == ["4 → 9\nin a", "9 → 4\nin b"]
    between = torch.ones(6, 1)
    np.testing.assert_array_equal(image(figure)[..., 0], torch.cat([x[7, 0], between, x[8, 0]], dim=1).numpy())
    one = plot.misrouted(x.numpy(), labels, clusters, n=1)
    assert words(one) == ["4 → 9\nin 0"]
    assert one.axes[0].get_title(loc="left").endswith("another label; 1 of them")
    rendered(figure)


def test_misrouted_rows_and_none_at_all() -> None:
    x, labels = torch.rand(100, 6, 6), torch.tensor([0] * 51 + [1] * 49)
    clusters = torch.zeros(100, dtype=torch.long)
    figure = plot.misrouted(x, labels, clusters)
    tiled = image(figure)[..., 0]
    assert tiled.shape[1] == 20 * 7 - 1
    assert len(words(figure)) == 49
    assert (tiled[-6:, 9 * 7 :] == 1).all(), "the rest of the last row is empty"
    none = plot.misrouted(x, labels, labels)
    assert none.axes[0].get_title(loc="left").startswith("0 of 100 samples")
    rendered(none)


def test_misrouted_refuses() -> None:
    with pytest.raises(ShapeError, match="x: expected 2 samples, one per label, got 3"):
        plot.misrouted(torch.rand(3, 4), np.array([0, 1]), np.array([0, 0]))
    with pytest.raises(ArgumentError, match="n: expected an integer > 0, got 0"):
        plot.misrouted(torch.rand(2, 4), np.array([0, 1]), np.array([0, 0]), n=0)


def test_the_loss_breaks_where_it_is_the_sum_of_other_terms() -> None:
    rows = [{"epoch": e, "loss": 2.0, "balance": 2.0} for e in (1, 2)]
    rows += [{"epoch": e, "loss": 200.0, "balance": 2.0, "elbo": 198.0} for e in (3, 4)]
    loss, balance, elbo = (ax.lines[0].get_ydata() for ax in hm.plot.losses(hm.History(rows)).axes)
    assert [math.isnan(value) for value in loss] == [False, False, True, False, False]
    assert len(balance) == 4
    assert len(elbo) == 2


# --- tables ---------------------------------------------------------------------------------------------------------


def cells(figure: Figure) -> list[list[str]]:
    """The text of every cell, row by row."""
    heights = sorted({text.get_position()[1] for text in figure.axes[0].texts})
    by_row = ([text for text in figure.axes[0].texts if text.get_position()[1] == height] for height in heights)
    return [[text.get_text() for text in sorted(row, key=lambda text: text.get_position()[0])] for row in by_row]


TABLE = np.array([[1000.0, 0.5, 7.0], [1200.0, 0.5, 7.0], [2000.0, 0.1, 7.0], [2200.0, 0.1, 7.0]])


def test_means_are_in_the_units_of_the_table_under_the_names_of_its_columns() -> None:
    figure = plot.means(
        TABLE, torch.tensor([2, 2, 0, 0]), columns=["proline", "hue", "same"], cluster_names=["0", "1/0", "$1/1"]
    )
    assert row_labels(figure) == ["proline", "hue", "same"]
    assert column_labels(figure) == ["0\n2 rows", "1/0\n0 rows", "$1/1\n2 rows", "all\n4 rows"]
    assert cells(figure) == [["2,100", "1,100", "1,600"], ["0.10", "0.50", "0.30"], ["7", "7", "7"]]
    apart = 500 / TABLE[:, 0].std()
    np.testing.assert_allclose(image(figure), [[apart, 0, -apart, 0], [-1, 0, 1, 0], [0, 0, 0, 0]], atol=1e-6)
    assert figure.axes[0].get_title(loc="left") == "Mean of every column by cluster"
    assert figure.axes[0].get_xlabel() == "red: above the mean of all rows; blue: below"
    rendered(figure)
    plain = plot.means(torch.from_numpy(TABLE), np.array([5, 5, 5, 5]), title="one")
    assert row_labels(plain) == ["0", "1", "2"]
    assert column_labels(plain) == ["5\n4 rows", "all\n4 rows"]


def test_means_of_many_columns_are_those_that_tell_clusters_apart() -> None:
    source = np.random.default_rng(0)
    x, clusters = source.normal(size=(60, 50)), np.arange(60) % 3
    x[:, 7] += 5 * clusters
    x[:, 31] -= 9000.0 * clusters
    figure = plot.means(x, clusters, columns=[f"c{i}" for i in range(50)], n=2)
    assert row_labels(figure) == ["c7", "c31"], "in the table's order, whatever the units"
    assert figure.axes[0].get_xlabel().startswith("the 2 of 50 columns that separate the clusters best")
    assert len(row_labels(plot.means(x, clusters))) == 40


def test_numbers_of_all_sizes_fit_into_cells() -> None:
    sizes = 10.0 ** np.arange(-12, 13)
    x = np.stack([sizes, 2 * sizes, -3 * sizes])
    figure = plot.means(x, np.arange(3), columns=range(25))
    drawn = rendered(figure)
    assert (drawn[[0, -1]] == 255).all()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    assert cells(figure)[0][:2] == ["1e-12", "2e-12"]
    assert cells(figure)[-1][2] == "-3e+12"


def test_means_refuse() -> None:
    clusters = np.array([0, 1, 1, 0])
    with pytest.raises(ShapeError, match=r"x: expected a table, \(n, column\), got \(4, 2, 2\)"):
        plot.means(np.zeros((4, 2, 2)), clusters)
    with pytest.raises(ShapeError, match=r"clusters: expected one per row, \(3,\), got \(4,\)"):
        plot.means(TABLE[:3], clusters)
    with pytest.raises(ShapeError, match="columns: expected 3 names, one per column, got 1"):
        plot.means(TABLE, clusters, columns=["a"])
    with pytest.raises(DataError, match="x: expected finite values"):
        plot.means(np.where(TABLE == 7, np.nan, TABLE), clusters)
    with pytest.raises(DataError, match="clusters: expected at least one integer"):
        plot.means(TABLE, clusters / 2)
    with pytest.raises(ArgumentError, match="n: expected an integer > 0, got 0"):
        plot.means(TABLE, clusters, n=0)


def test_gaps_are_pale() -> None:
    """Cells that were not observed, of images and of vectors; where no model takes them they are refused."""
    pale = np.array(to_rgb(PALE))
    images = torch.zeros(1, 1, 1, 8, 8)
    images[..., 2, 3] = torch.nan
    picture = pictures_of(images, "x", missing=True)[0, 0]
    assert np.allclose(picture[2, 3], pale)
    assert (picture.reshape(-1, 3) == 0).all(1).sum() == 63
    vectors = torch.tensor([[[1.0, torch.nan, -1.0]]])
    picture = pictures_of(vectors, "x", missing=True)[0, 0]
    is_pale = np.isclose(picture, pale).all(2)
    assert is_pale.any(0).nonzero()[0].mean() == pytest.approx(picture.shape[1] / 2, abs=1)
    with pytest.raises(DataError, match="x: expected finite values"):
        pictures_of(vectors, "x")


def test_plots_of_samples_with_gaps() -> None:
    model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2), 2), (1, 8, 8), missing=True)
    x = torch.rand(12, 1, 8, 8).masked_fill(torch.rand(12, 1, 8, 8) < 0.2, torch.nan)
    x[-1] = torch.nan
    for figure in (plot.reconstructions(model, x), plot.nearest(model, x, n=2)):
        assert np.isfinite(figure.axes[0].images[0].get_array()).all()


def hierarchy_of(name: str, shape: tuple[int, ...] = (1, 6, 6)) -> hm.Hierarchy:
    return hm.hierarchy(model_of(name, shape), torch.rand(20, *shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", ["flat", "mixed"])
def test_a_dendrogram_has_every_leaf_with_its_picture_and_share_without_crossings(name: str) -> None:
    tree = hierarchy_of(name)
    x = torch.rand(30, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    figure = plot.dendrogram(tree, x)
    share = tree.model.predict(x).bincount(minlength=tree.n_leaves) / 30
    order = tree.merges[-1].leaves
    captions = [text for text in words(figure) if "%" in text]
    assert captions == [f"{tree.names[leaf]}\n{100 * share[leaf]:.1f}%" for leaf in order]
    assert len(figure.axes[0].images) == int((share > 0).sum())
    lines = [np.asarray(line.get_xydata()) for line in figure.axes[0].lines]
    assert len(lines) == tree.n_leaves, "a bracket for every merge, and the root"
    for merge in tree.merges:  # below a bracket there are its leaves and no others
        places = sorted(order.index(leaf) for leaf in merge.leaves)
        assert places == list(range(places[0], places[0] + merge.size))
    tops = [line[1, 1] for line in lines[:-1]]
    assert tops == sorted(tops, reverse=True), "later merges are higher"
    rendered(figure)


def test_a_dendrogram_of_groups_says_how_many_leaves_they_have() -> None:
    tree = hierarchy_of("two levels")
    figure = plot.dendrogram(tree, most=4)
    assert len(figure.axes[0].images) == 4
    sizes = sorted(tree.cut(4).bincount().tolist())
    assert sorted(int(w.split()[0]) if "leaves" in w else 1 for w in words(figure)) == sizes
    assert sum(float(w.split()[-1].rstrip("%")) for w in words(figure)) == pytest.approx(100, abs=0.3)
    title = " ".join(figure.axes[0].get_title(loc="left").split())
    assert title == "Each of 4 groups of the 30 leaves: the decoded z = 0, and its prior"
    assert words(plot.dendrogram(tree)) == words(plot.dendrogram(tree, most=30))


def test_a_dendrogram_of_a_table_has_no_pictures() -> None:
    frame = {"mass": np.linspace(3.0, 4.0, 12), "island": np.array(["a", "b", "c"] * 4)}
    table = hm.Table.of(frame)
    leaf = hm.VAE(2, hm.MLP((4,)), hm.MLP((4,)), table.likelihood())
    model = hm.HMoEVAE(hm.Mixture.of(leaf, 3), table)
    figure = plot.dendrogram(hm.hierarchy(model, frame), frame)
    assert not figure.axes[0].images
    assert sorted(w.split()[0] for w in words(figure)) == ["0", "1", "2"]
    assert figure.axes[0].get_title(loc="left") == "Every leaf and its share of the samples"


def test_overlaps_to_mark_are_round_and_between_the_levels() -> None:
    for low, high in ((0.0, 0.01), (-2.0, 3.0), (0.1, 27.0), (3.0, 3.8)):
        marks = _marks(low, high)
        assert len(marks) <= 9
        assert all(low <= -math.log(mark) <= high and f"{mark:.0e}"[0] in "125" for mark in marks)
    assert len(_marks(-2.0, 3.0)) >= 4


@pytest.mark.usefixtures("as_users_call")
def test_a_dendrogram_refuses() -> None:
    with pytest.raises(ArgumentTypeError, match=r"hierarchy: expected a Hierarchy, such as .*, got HMoEVAE"):
        plot.dendrogram(model_of("flat"))  # type: ignore[arg-type]
    tree = hierarchy_of("flat")
    for most in (1, 2.5, True, "3"):
        with pytest.raises(ArgumentError, match=f"most: expected an integer > 1, got {most!r}"):
            plot.dendrogram(tree, most=most)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="x: expected"):
        plot.dendrogram(tree, torch.rand(2, 36))


# --- growth ---------------------------------------------------------------------------------------------------------


def a_growth(n_kinds: int = 10, n_splits: int = 20) -> hm.Grown:
    """Cuts, of which all but the first few are refused, splits in two rounds, a merge, a prune and the end."""
    n_leaves, decisions = 1, []
    for i in range(2 * n_kinds - 1):
        n_leaves += (accepted := i < n_kinds - 1)
        value = 0.001 * i if accepted else 0.1 if i > n_kinds else 1.0
        decisions.append(hm.Decision(0, "cut", "root", accepted, 1000, conductance=value, n_leaves=n_leaves))
    for i in range(n_splits):
        n_leaves += (accepted := i % 2 == 0)
        found = {"gain": 1.0 if accepted else -1.0, "error": 0.1 * i if i else math.inf, "conductance": 0.2}
        decisions.append(hm.Decision(1 + i // 10, "split", f"root/{i}", accepted, 100, **found, n_leaves=n_leaves))
    for action, gain in (("merge", -0.05), ("prune", None)):
        n_leaves -= 1
        decisions.append(hm.Decision(2, action, "root/0/1", True, 10, gain=gain, n_leaves=n_leaves))
    decisions.append(hm.Decision(3, "stop", "root", True, 1000, n_leaves=n_leaves, reason="no split gains"))
    return hm.Grown(model_of("flat"), decisions, [], hm.Growth(max_conductance=0.05, min_gain=0.2))


def test_a_growth_has_a_row_for_every_decision() -> None:
    grown = a_growth()
    figure = plot.growth(grown)
    conductance, gain, leaves = figure.axes
    rows = grown.decisions[:-1]
    labels = [label.get_text() for label in conductance.get_yticklabels()]
    assert labels == [f"{d.action} {d.path} · {d.n_samples:,}" for d in rows]
    points = [line for line in conductance.lines if line.get_marker() == "o"]
    assert [float(p.get_xdata()[0]) for p in points] == [
        d.conductance for d in rows if d.conductance is not None and d.conductance < 1
    ]
    assert [to_rgb(p.get_color()) for p in points[:10]] == [to_rgb("#0072b2")] * 9 + [to_rgb("#d55e00")]
    assert conductance.get_xlim()[1] < 0.3, "a set that cannot be cut does not set the scale"
    limits = [line.get_xdata()[0] for ax in (conductance, gain) for line in ax.lines if line.get_linestyle() == "--"]
    assert limits == [0.05, 0.2]
    bars = [line for line in gain.lines if line.get_marker() == "None" and line.get_alpha() == 0.5]
    assert len(bars) == 19, "an error without end has no bar"
    assert list(bars[0].get_xdata()) == pytest.approx([-1.2, -0.8])
    assert [line.get_marker() for line in gain.lines if line.get_marker() in ("s", "X")] == ["s", "X"]
    assert list(leaves.lines[0].get_xdata()) == [d.n_leaves for d in rows]
    assert leaves.get_title(loc="left") == f"leaves: {rows[-1].n_leaves}"


def test_rows_of_a_growth_do_not_overlap_and_are_inside() -> None:
    figure = plot.growth(a_growth())
    pixels = rendered(figure)
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(above.y0 > below.y1 - 1 for above, below in itertools.pairwise(boxes))
    assert min(box.x0 for box in boxes) > 0
    assert (pixels[:, 0] == 255).all()


def test_a_growth_without_a_decision_but_the_end() -> None:
    grown = hm.Grown(model_of("one leaf"), [hm.Decision(1, "stop", "root", True, 10)], [])
    assert rendered(plot.growth(grown)).min() < 200


@pytest.mark.usefixtures("as_users_call")
def test_what_is_no_growth() -> None:
    with pytest.raises(ArgumentTypeError, match="grown: expected a Grown, such as grow returns, got "):
        plot.growth(hm.Growth())
