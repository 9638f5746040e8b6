"""The drawn pictures of this documentation, from a trained model and two short trainings beside it.

    python examples/mnist_flat.py
    python docs/figures.py runs/mnist_flat/model

Everything else in `images/` comes out of an example or a benchmark as it is; the gallery names the commands. Writes

    hero.gif       the tree, every expert taking a walk through its latent space
    idea.png       samples of one VAE, of ten that were told the labels, and of the model, which was told nothing
    experts.png    what every expert makes of one image, and what the gate says
    dendrogram.png the leaves, joined by how much they overlap
"""

import argparse
import io
import itertools
import math
import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import hmoevae as hm

sys.path.append(str(Path(__file__).parent.parent / "examples"))
import mnist_flat

IMAGES = Path(__file__).parent / "images"
N_ROWS, N_KINDS = 6, 10


def main() -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a trained flat model, as the example leaves it")
    parser.add_argument("--epochs", type=int, default=15, help="of the two trainings for idea.png")
    parser.add_argument("--data-root", help="folder with MNIST/raw/ in it (default: HMOEVAE_DATA, or a download)")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder for the pictures")
    args = parser.parse_args()
    model = hm.HMoEVAE.from_pretrained(args.model)
    train, test = hm.datasets.mnist(args.data_root)
    walk(model, test.x, args.out / "hero.gif")
    experts(model, test.x).savefig(args.out / "experts.png")
    hm.plot.dendrogram(hm.hierarchy(model, train.x[::6]), test.x).savefig(args.out / "dendrogram.png")
    idea(model, train.x, train.y, args.epochs).savefig(args.out / "idea.png")


def walk(model: hm.HMoEVAE, x: Tensor, file: Path, *, n_frames: int = 48) -> None:
    """The tree as an animation in which every leaf draws what lies along a closed curve around z = 0."""
    n, latent = model.plan.n_leaves, model.experts.latent_dim
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, n, latent, generator=generator)
    usage = model.predict_proba(x).mean(0)
    frames = []
    for i in range(n_frames):
        angle = 2 * math.pi * i / n_frames
        images = model.decode(math.cos(angle) * one + math.sin(angle) * other, torch.arange(n))
        buffer = io.BytesIO()
        hm.plot.tree(model, usage=usage, images=images).savefig(buffer)
        frames.append(Image.open(buffer).convert("P", palette=Image.Palette.ADAPTIVE, colors=32))
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=90, loop=0, optimize=True)


def idea(model: hm.HMoEVAE, x: Tensor, y: Tensor, epochs: int) -> Figure:
    """Three ways to model digits, as samples: N_ROWS of every expert."""
    tree = mnist_flat.make_tree()
    torch.manual_seed(0)
    single = hm.HMoEVAE(tree.children[0], (1, 28, 28))
    hm.fit(single, x, hm.Training(epochs=epochs, batch_size=250, device="cpu"))
    labelled = hm.HMoEVAE(tree, (1, 28, 28))
    # A start that lasts to the end: gate and experts are fitted to the labels and nothing else.
    hm.fit(labelled, x, hm.Training(epochs=epochs, batch_size=250, init=y, init_epochs=epochs, device="cpu"))
    generator = torch.Generator().manual_seed(0)
    panels = {
        "One VAE: some digits, much in between": single.sample(N_ROWS * N_KINDS, generator=generator),
        "Ten VAEs that were told the labels": by_expert(labelled, generator),
        "Ten VAEs and a gate that were told nothing": by_expert(model, generator),
    }
    fig = Figure(figsize=(12.6, 3), dpi=100, facecolor="white", layout="constrained")
    for ax, (title, images) in zip(fig.subplots(1, 3), panels.items(), strict=True):
        show(ax, images.reshape(N_ROWS, N_KINDS, 28, 28).permute(0, 2, 1, 3).reshape(N_ROWS * 28, N_KINDS * 28))
        ax.set_title(title, fontsize=11, loc="left")
    return fig


def by_expert(model: hm.HMoEVAE, generator: torch.Generator) -> Tensor:
    """Samples, row by row, one of every expert in each."""
    z = torch.randn(N_ROWS * N_KINDS, model.experts.latent_dim, generator=generator)
    return model.decode(z, torch.arange(N_KINDS).repeat(N_ROWS))


def experts(model: hm.HMoEVAE, x: Tensor, *, n_draws: int = 20) -> Figure:
    """An image in doubt, each expert's reconstruction of it, its ELBO and the gate's probability."""
    probability = model.predict_proba(x)
    # Images whose second choice has about a third: an answer that shows both that and how the gate decides.
    doubtful = (probability.topk(2).values[:, 1] - 0.3).abs().argsort()[:50]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        draws = [model(x[doubtful], generator=generator).leaf_elbo for _ in range(n_draws)]
    elbo = torch.stack(draws).mean(0)
    # The gate sees no ELBO and is not always right; that it mostly is, is shown by an image where it is.
    agrees = (elbo.topk(2).indices == probability[doubtful].topk(2).indices).all(1)
    first = int(agrees.int().argmax())
    chosen = int(doubtful[first])
    image = x[chosen : chosen + 1]
    leaves = model.plan.leaves
    fig = Figure(figsize=(12, 1.75), dpi=100, facecolor="white", layout="constrained")
    axes = list(itertools.chain(fig.subplots(1, len(leaves) + 1)))
    show(axes[0], image[0, 0])
    axes[0].set_title("image", fontsize=10)
    axes[0].set_xlabel("gate\nELBO, nats", fontsize=10)
    for ax, leaf, p, bound in zip(axes[1:], leaves, probability[chosen].tolist(), elbo[first].tolist(), strict=True):
        show(ax, model.reconstruct(image, node=leaf.path)[0, 0])
        ax.set_title(f"expert {leaf.path.removeprefix('root/')}", fontsize=10)
        ax.set_xlabel(f"{p:.0%}\n{bound:.0f}", fontsize=10, fontweight="bold" if p > 0.05 else "normal")
    return fig


def show(ax: Axes, image: Tensor) -> None:
    """A grey image without ticks."""
    ax.imshow(image, cmap="gray", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


if __name__ == "__main__":
    main()
