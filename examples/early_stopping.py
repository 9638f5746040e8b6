"""Early stopping and logging: training ends by itself, and leaves a log for people and for programs.

    python examples/early_stopping.py
    tensorboard --logdir runs/early_stopping     (with the extra `trackers`)

Run it again after Ctrl-C, or after it was killed: it goes on from its last checkpoint.
"""

import argparse
import importlib.util
import json
from pathlib import Path

import torch
from sklearn.cluster import KMeans

import hmoevae as hm


class Log:
    """A line of JSON for every epoch, written at once: it can be read while training goes on."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, end: hm.EpochEnd) -> None:
        """Add the epoch's line; of several processes one writes."""
        if end.is_main:
            with self.file.open("w" if end.epoch == 1 else "a", encoding="utf-8") as log:
                log.write(json.dumps(end.history.rows[-1]) + "\n")


def make_model() -> hm.HMoEVAE:
    """Ten experts for the digits."""
    layer = hm.MLP((64,))
    leaf = hm.VAE(latent_dim=5, encoder=layer, decoder=layer, likelihood=hm.Gaussian(scale=0.2))
    tree = hm.Mixture.of(leaf, 10, gate=layer, balance=hm.Balance("kl", 1.0))
    torch.manual_seed(0)
    return hm.HMoEVAE(tree, input_shape=(1, 8, 8), objective="elbo")


def main() -> None:
    """Train until the held-out loss falls no more; the model is left with the weights of the smallest one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=300, help="the most that you would wait for")
    parser.add_argument("--out", type=Path, default=Path("runs/early_stopping"), help="folder for everything")
    parser.add_argument("--smoke", action="store_true", help="two epochs, to see that everything works")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"--epochs: expected an integer > 0, got {args.epochs}")
    args.out.mkdir(parents=True, exist_ok=True)

    data, test = hm.datasets.digits()
    held_out = torch.arange(len(data)) % 5 == 4  # other images than those of the final test
    callbacks: list[hm.training.Callback] = [Log(args.out / "log.jsonl")]
    if importlib.util.find_spec("tensorboard"):
        callbacks.append(hm.Tracking("tensorboard", run="tensorboard", folder=args.out))
    training = hm.Training(
        epochs=2 if args.smoke else args.epochs,
        batch_size=64,
        lr=2e-3,
        init="kmeans",
        init_epochs=1 if args.smoke else 5,
        early_stopping=hm.EarlyStopping(patience=10),
    )
    model = make_model()
    history = hm.fit(
        model,
        data.x[~held_out],
        training,
        validation_data=data.x[held_out],
        callbacks=callbacks,
        checkpoint_dir=args.out / "checkpoints",
    )
    history.to_csv(args.out / "history.csv")
    model.save_pretrained(args.out / "model")

    losses, best = history["val_elbo"], history.best_epoch or len(history)
    print(f"{len(losses)} epochs; held-out loss {losses[0]:.2f} at first, {losses[-1]:.2f} in the end,", end=" ")
    print(f"{losses[best - 1]:.2f} at the best, in epoch {best}")
    clusters = KMeans(10, n_init=10, random_state=0).fit(data.x.flatten(1).numpy())  # type: ignore[arg-type]  # or "auto"
    found = {"k-means": clusters.predict(test.x.flatten(1).numpy()), "hmoevae": model.predict(test.x)}
    for name, leaf in found.items():
        print(f"{name}: " + ", ".join(f"{k} {v:.3f}" for k, v in hm.metrics.clustering_scores(test.y, leaf).items()))
    print(f"the best model, log.jsonl, history.csv and checkpoints are in {args.out}")
    if args.smoke:
        print("A smoke run: it only shows that everything works. For results, leave out --smoke.")


if __name__ == "__main__":
    main()
