"""The pictures: what they show, how large, with which words; and what they refuse."""

import functools
import itertools
import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch

import hmoevae as hm
from hmoevae import plot
from hmoevae.errors import ArgumentError, DataError, MissingExtraError, ShapeError

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


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("shape", SHAPES)
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
    with pytest.raises(MissingExtraError, match=r"expected matplotlib, as in pip install 'hmoevae\[plot\]'"):
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
    used = [leaf for leaf, area in zip(leaves, areas, strict=True) if area.values[-1] - area.baseline[-1] > 0.02]
    assert [word.strip() for word in words(figure)] == used
    assert len({tuple(area.get_facecolor()) for area in figure.axes[0].patches}) >= min(len(leaves), 3)
    rendered(figure)


def test_histories_without_what_is_asked_for() -> None:
    for picture in (plot.losses, plot.usage):
        with pytest.raises(ArgumentError, match="none yet"):
            picture(hm.History())
    with pytest.raises(ArgumentError, match="history: expected columns 'usage/<path of a leaf>', got epoch, loss"):
        plot.usage(hm.History([{"epoch": 1.0, "loss": 2.0}]))


@pytest.mark.parametrize(("shape", "pixels"), list(zip(SHAPES, PIXELS, strict=True)))
def test_sample_grid_tiles_rows_and_columns(shape: tuple[int, ...], pixels: tuple[int, int]) -> None:
    frames = torch.rand(4, 3, *shape, generator=torch.Generator().manual_seed(0))
    figure = plot.sample_grid(frames, [1, 2, 5, 20], ["a", "b", "c"])
    tiled = image(figure)
    height, width = pixels
    step = height + (1 if min(pixels) < 16 else 0)  # small pictures fill their frames: a white line between their rows
    assert tiled.shape == (4 * step - (step - height), 3 * width, 3)
    for row in range(1, 4):
        assert (tiled[row * step - (step - height) : row * step] == 1).all()
    if pixels != (56, 56):
        picture = frames[2, 1].expand(3, height, width) if len(shape) == 3 else frames[2, 1].expand(3, *shape)
        place = tiled[2 * step : 2 * step + height, width : 2 * width]
        np.testing.assert_array_equal(place, picture.permute(1, 2, 0).numpy())
    assert row_labels(figure) == ["1", "2", "5", "20"]
    assert column_labels(figure) == ["a", "b", "c"]
    assert figure.axes[0].get_ylabel() == "epoch"


def test_sample_grid_sets_the_branches_apart() -> None:
    plan = model_of("two levels").plan
    figure = plot.sample_grid(torch.zeros(2, 30, 28, 28), [1, 2], plan=plan)
    tiled = image(figure)
    white = (tiled == 1).all((0, 2))
    assert white.sum() == 9 * plot.GAP // 2, "nine gaps, in pixels that are drawn two wide"
    assert white.nonzero()[0][0] == 3 * 28
    assert column_labels(figure)[:4] == ["0/0", "0/1", "0/2", "1/0"]
    flat = plot.sample_grid(torch.zeros(2, 10, 28, 28), [1, 2], plan=model_of("flat").plan)
    assert image(flat).shape == (56, 280, 3)


def test_pixels_are_crisp() -> None:
    frames = torch.rand(20, 10, 28, 28, generator=torch.Generator().manual_seed(0))
    pixels = rendered(plot.sample_grid(frames, range(20)))
    expected = (255 * frames).permute(0, 2, 1, 3).reshape(20 * 28, 280).repeat_interleave(2, 0).repeat_interleave(2, 1)
    right = pixels.shape[1] - np.argmax((pixels[::-1, ::-1] != 255).mean((0, 2)) > 0.5)
    bottom = pixels.shape[0] - np.argmax((pixels[::-1, right - 20 : right] != 255).mean((1, 2)) > 0.5)
    found = pixels[bottom - 20 * 56 : bottom, right - 560 : right]
    np.testing.assert_allclose(found[..., 0], expected.numpy(), atol=1.01)


def test_bars_are_as_high_as_the_values() -> None:
    figure = plot.sample_grid(torch.tensor([[[0.0, 1.0, 2.0, -2.0, -1.0]]]), [1])
    ink = (image(figure)[..., 0] < 0.5)[3:-3, 3:-3]
    assert ink.sum(0)[4::10].tolist() == [0, 12, 25, 25, 12], "ten columns a bar"
    assert ink.sum(0)[9:-1:10].tolist() == [0, 0, 0, 0], "and a white one between two"
    assert ink[:25, 24].all(), "positive values grow upwards from zero"
    assert ink[25:, 34].all(), "negative ones downwards"


def test_values_outside_the_unit_interval_are_stretched() -> None:
    tiled = image(plot.sample_grid(torch.tensor([[[[-1.0, 1.0], [3.0, 0.0]]]]), [1]))
    np.testing.assert_allclose(tiled[..., 0], [[0, 0.5], [1, 0.25]])


def test_sample_grid_refuses() -> None:
    frames = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ShapeError, match="epochs: expected 2 numbers, one a row of frames, got 3"):
        plot.sample_grid(frames, [1, 2, 3])
    with pytest.raises(ShapeError, match="titles: expected 3 labels"):
        plot.sample_grid(frames, [1, 2], ["a"])
    with pytest.raises(ShapeError, match=r"frames: expected \(epoch, 10, ...\), one column a leaf, got \(2, 3, 4, 4\)"):
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
    apart = (by_path["root/0"] + by_path["root/1"]) / 2 * plot.DPI / 72
    assert starts["root/1"] - starts["root/0"] == pytest.approx(apart), "edges leave their parent side by side"
    assert widths(plot.tree(model, usage=1000 * usage)) == pytest.approx(by_path), "only fractions count"
    unused = widths(plot.tree(model, usage=torch.tensor([1.0, 0, 0, 0, 0])))
    assert unused["root/2"] == 0.5, "an edge that is never used is still seen"


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
def test_tree_keeps_frames_and_pictures_apart(tree: hm.Mixture, shape: tuple[int, ...]) -> None:
    figure = plot.tree(hm.HMoEVAE(tree, shape))
    ax = figure.axes[0]
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [patch.get_window_extent(renderer) for patch in ax.patches if isinstance(patch, FancyBboxPatch)]
    words = [text.get_window_extent(renderer) for text in ax.texts if text.get_va() == "center"]
    pictures = [image.get_window_extent(renderer) for image in ax.images]
    assert len(boxes) == len(words) == sum(isinstance(node, hm.Mixture) for _, node in tree.walk())
    for box, word in zip(boxes, words, strict=True):
        assert box.x0 < word.x0
        assert word.x1 < box.x1
    for one, other in itertools.combinations([*boxes, *pictures], 2):
        assert not one.overlaps(other)


@pytest.mark.parametrize("shape", [(1, 28, 28), (13,), (5, 2)])
def test_an_edge_is_no_wider_than_the_picture_that_it_leads_to(shape: tuple[int, ...]) -> None:
    figure = plot.tree(model_of("flat", shape), usage=torch.tensor([1.0, *[0.0] * 9]))
    picture = figure.axes[0].images[0].get_window_extent(FigureCanvasAgg(figure).get_renderer())
    assert widths(figure)["root/0"] * plot.DPI / 72 <= picture.width + 1e-6  # of rounding


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


def test_tree_refuses() -> None:
    model = model_of("flat")
    with pytest.raises(ShapeError, match=r"usage: expected \(10,\), one number a leaf, got \(9,\)"):
        plot.tree(model, usage=torch.ones(9))
    for usage in (torch.zeros(10), -torch.ones(10), torch.full((10,), torch.nan)):
        with pytest.raises(DataError, match="usage: expected finite numbers >= 0, not all of them 0"):
            plot.tree(model, usage=usage)
    with pytest.raises(ShapeError, match=r"images: expected \(10, 1, 6, 6\), got \(10, 6, 6\)"):
        plot.tree(model, images=torch.zeros(10, 6, 6))


def test_samples_are_those_of_the_leaves() -> None:
    model = model_of("mixed")
    figure = plot.samples(model, 4, generator=torch.Generator().manual_seed(0))
    z = torch.randn(4 * 5, 3, generator=torch.Generator().manual_seed(0))
    expected = model.decode(z, torch.arange(5).repeat(4)).reshape(4, 5, 6, 6)
    tiled = image(figure)[..., 0]
    assert tiled.shape[0] == 4 * 6 + 3, "small pictures, a white line between their rows"
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
    assert tiled.shape == (6 * 6 + 3 + 2 * 2, 6 * 6 + 2), "one white line within a pair, two between pairs"
    z = torch.randn(2 * 5, 3, generator=torch.Generator().manual_seed(0))
    drawn = model.decode(z, torch.arange(5).repeat_interleave(2))
    leaf = model.predict(x)
    places = [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0)]  # the row's child of the root, and the leaf's place below it
    for i, (row, column) in enumerate(places):
        for j in range(2):
            top, left = row * (13 + 2), column * (12 + 1) + 6 * j
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
    assert (leaf.bincount(minlength=5) == 0).any(), "a leaf without samples is among them"
    with pytest.raises(ArgumentError, match="n: expected an integer > 0, got 0"):
        plot.nearest(model, x, 0)
    with pytest.raises(ShapeError, match="x: expected"):
        plot.nearest(model, torch.zeros(2, 36))


@pytest.mark.parametrize("name", TREES)
def test_nearest_of_every_tree(name: str) -> None:
    assert len(rendered(plot.nearest(model_of(name), torch.rand(5, 1, 6, 6), 1))) > 0


def test_reconstructions_below_their_originals() -> None:
    model = model_of("two levels")
    x = torch.rand(14, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    figure = plot.reconstructions(model, x)
    tiled = image(figure)[..., 0]
    assert tiled.shape[1] == 12 * 6, "twelve make a row"
    assert tiled.shape[0] > 4 * 6
    np.testing.assert_array_equal(tiled[:6, 6:12], x[1, 0].numpy())
    assert (tiled[6] == 1).all(), "small pictures do not touch"
    np.testing.assert_array_equal(tiled[7:13, 6:12], model.reconstruct(x)[1, 0].numpy())
    np.testing.assert_array_equal(tiled[-6:, 6:12], model.reconstruct(x)[13, 0].numpy())
    assert (tiled[-13:, 12:] == 1).all(), "the rest of the last row is empty"
    assert "the leaf of each" in figure.axes[0].get_title(loc="left")
    assert row_labels(figure) == ["original", "reconstruction"] * 2
    paths = [leaf.path.removeprefix("root/") for leaf in model.plan.leaves]
    assert words(figure) == [paths[leaf] for leaf in model.predict(x).tolist()]
    with pytest.raises(ShapeError, match=r"x: expected \(batch, 1, 6, 6\)"):
        plot.reconstructions(model, torch.zeros(2, 36))


def test_traversals_change_one_latent_at_a_time() -> None:
    model = model_of("mixed")
    figure = plot.traversals(model, "root/1/0", n_steps=5, dims=[2, 0])
    tiled = image(figure)[..., 0]
    assert tiled.shape == (2 * 6 + 1, 5 * 6), "small pictures, a white line between their rows"
    for row, latent in enumerate(([0, 0, 1.0], [1.0, 0, 0])):
        for column, step in enumerate((-3, -1.5, 0, 1.5, 3)):
            expected = model.decode(step * torch.tensor([latent]), torch.tensor([1]))[0, 0]
            place = tiled[7 * row : 7 * row + 6, 6 * column : 6 * column + 6]
            np.testing.assert_allclose(place, expected.numpy(), atol=1e-6)
    assert row_labels(figure) == ["z[2]", "z[0]"]
    assert column_labels(figure) == ["-3", "-1.5", "0", "1.5", "3"]
    assert figure.axes[0].get_title(loc="left").startswith("Leaf 1/0:")
    assert len(row_labels(plot.traversals(model, "root/0"))) == 2, "a leaf has its own latent size"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: plot.traversals(m, "root/1"), r"expected the path of a leaf, got 'root/1', a mixture .*'root/1/0'"),
        (lambda m: plot.traversals(m, "root/9"), "path: expected a node of the tree"),
        (lambda m: plot.traversals(m, "root/0", n_steps=1), "n_steps: expected an integer > 1, got 1"),
        (lambda m: plot.traversals(m, "root/0", dims=[2]), r"dims: expected integers from 0 to 1, got \[2\]"),
        (lambda m: plot.traversals(m, "root/0", dims=[]), "dims: expected"),
    ],
)
def test_traversals_refuse(call: Callable[[hm.HMoEVAE], Figure], message: str) -> None:
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
    with pytest.raises(MissingExtraError, match=r"keep_order=True, or scipy as in pip install 'hmoevae\[examples\]'"):
        plot.contingency(labels, clusters)
    assert column_labels(plot.contingency(labels, clusters, keep_order=True)) == ["0", "1"]


def test_misrouted_samples_with_label_and_cluster() -> None:
    x = torch.rand(9, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    labels = np.array([4, 4, 4, 9, 9, 9, 9, 4, 9])
    clusters = torch.tensor([1, 1, 1, 0, 0, 0, 2, 0, 1])  # cluster 2 holds one 9 and so stands for it
    figure = plot.misrouted(x, labels, clusters, cluster_names=["a", "b", "c"])
    assert figure.axes[0].get_title(loc="left").startswith("2 of 9 samples are in a cluster that mostly holds another")
    assert words(figure) == ["4 → 9\nin a", "9 → 4\nin b"]
    np.testing.assert_array_equal(image(figure)[..., 0], torch.cat([x[7, 0], x[8, 0]], dim=1).numpy())
    one = plot.misrouted(x.numpy(), labels, clusters, n=1)
    assert words(one) == ["4 → 9\nin 0"]
    assert one.axes[0].get_title(loc="left").endswith("another label; 1 of them")
    rendered(figure)


def test_misrouted_rows_and_none_at_all() -> None:
    x, labels = torch.rand(100, 6, 6), torch.tensor([0] * 51 + [1] * 49)
    clusters = torch.zeros(100, dtype=torch.long)
    figure = plot.misrouted(x, labels, clusters)
    tiled = image(figure)[..., 0]
    assert tiled.shape[1] == 20 * 6
    assert len(words(figure)) == 49
    assert (tiled[-6:, 9 * 6 :] == 1).all(), "the rest of the last row is empty"
    none = plot.misrouted(x, labels, labels)
    assert none.axes[0].get_title(loc="left").startswith("0 of 100 samples")
    rendered(none)


def test_misrouted_refuses() -> None:
    with pytest.raises(ShapeError, match="x: expected 2 samples, one a label, got 3"):
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
