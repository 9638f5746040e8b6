"""A training loop of your own: a handful of labels beside the unlabelled images, and a loss to match.

    python examples/own_loop.py

`hm.fit` knows no labels. Here every leaf is to stand for one digit, so the loss gets a term more: the cross-entropy of
the gate on three labelled images of each digit. All other images stay unlabelled.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import hmoevae as hm

N_LABELLED = 3
"""Labelled images of each digit."""


def make_model() -> hm.HMoEVAE:
    """Ten experts for ten digits."""
    layer = hm.MLP((64,))
    leaf = hm.VAE(latent_dim=5, encoder=layer, decoder=layer, likelihood=hm.Gaussian(scale=0.2))
    gate = hm.Conv(channels=(16, 32), kernel_size=3, hidden=(64,))
    return hm.HMoEVAE(hm.Mixture.of(leaf, 10, gate=gate, balance=hm.Balance("kl", 20.0)), (1, 8, 8), objective="elbo")


def train(model: hm.HMoEVAE, x: Tensor, x_labelled: Tensor, y_labelled: Tensor, *, epochs: int) -> None:
    """Train in place: the model's own loss on a batch, plus the cross-entropy on the labelled images."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    view = hm.views.RandomAffine(degrees=8, translate=(0.05, 0.05), scale=(0.95, 1.05), shear=5)
    settings = hm.StepSettings(agreement_weight=10.0)  # what `hm.fit` tells its steps, too
    # Optional, and for CPUs: the tensors of one step lie where those of the last one lay.
    memory = hm.StepMemory()
    model.train()
    terms: dict[str, torch.Tensor] = {}
    for epoch in range(1, epochs + 1):
        for batch in x[torch.randperm(len(x))].split(64):
            with memory.step():
                optimizer.zero_grad()
                out = model(batch, view=view(batch), other_view=view(batch), settings=settings)
                labelled = model(x_labelled, view=view(x_labelled))
                own = 20 * F.nll_loss(labelled.leaf_log_prob, y_labelled)
                (out.loss + own).backward()
                terms = {**out.terms, "labels": own}
                torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=100.0)
                optimizer.step()
        schedule.step()
        if epoch % 10 == 0 or epoch == epochs:
            print(f"epoch {epoch}: {', '.join(f'{name} {value.item():.2f}' for name, value in terms.items())}")
    optimizer.zero_grad()
    model.eval()


def main() -> None:
    """Train, and count how many test images reach the leaf of their digit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60, help="passes over the training images")
    parser.add_argument("--out", type=Path, default=Path("runs/own_loop"), help="folder for the model")
    parser.add_argument("--smoke", action="store_true", help="two epochs, to see that everything works")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"--epochs: expected an integer > 0, got {args.epochs}")

    data, test = hm.datasets.digits()
    rows = torch.cat([(data.y == digit).nonzero()[:N_LABELLED, 0] for digit in range(10)])
    torch.manual_seed(0)
    model = make_model()
    train(model, data.x, data.x[rows], data.y[rows], epochs=2 if args.smoke else args.epochs)
    model.save_pretrained(args.out / "model")

    right = (model.predict(test.x) == test.y).float().mean()
    print(f"{right:.1%} of {len(test)} test images reach the leaf of their digit, with {len(rows)} labels")


if __name__ == "__main__":
    main()
