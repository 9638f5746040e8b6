"""Sharing a model: train it, save it with a card that says what it is, load it again as somebody else would.

python examples/share_model.py                                 into a folder
python examples/share_model.py --push-to you/digits-mixture    and to the Hugging Face Hub, once you are logged in
"""

import argparse
import sys
from pathlib import Path

import torch

import hmoevae as hm
from hmoevae.errors import HMoEVAEError


def train(epochs: int) -> tuple[hm.HMoEVAE, hm.CardInfo]:
    """A model of scikit-learn's digits, and what its card shall say."""
    train, test = hm.datasets.digits()
    layer = hm.MLP((64,))
    leaf = hm.VAE(latent_dim=5, encoder=layer, decoder=layer, likelihood=hm.Gaussian(scale=0.2))
    torch.manual_seed(0)
    model = hm.HMoEVAE(hm.Mixture.of(leaf, 10, gate=layer), input_shape=(1, 8, 8))
    training = hm.Training(epochs=epochs, batch_size=64, lr=3e-3)
    history = hm.fit(model, train.x, training)
    if history.interrupted:  # fit ends quietly on Ctrl-C; half a training is not to be shared
        raise KeyboardInterrupt
    info = hm.CardInfo(
        "scikit-learn's digits",
        description="1,438 digits of 8 x 8 pixels, grey levels in [0, 1]; the other 359 to test.",
        split="test",
        metrics=hm.metrics.report(model, test.x, test.y),
        training=training,
    )
    return model, info


def save(model: hm.HMoEVAE, info: hm.CardInfo, folder: Path, push_to: str | None) -> None:
    """Write the model, its training and its card, and upload them where a repository is named."""
    model.save_pretrained(folder, info=info, repo_id=push_to, push_to_hub=push_to is not None)
    for file in sorted(folder.iterdir()):
        print(f"{file}: {file.stat().st_size:,} bytes")


def main() -> None:
    """Train, save, load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--push-to", metavar="USER/NAME", help="repository on the Hugging Face Hub")
    parser.add_argument("--out", type=Path, default=Path("runs/share_model"), help="folder for the model")
    parser.add_argument("--smoke", action="store_true", help="two epochs, to see that everything works")
    args = parser.parse_args()
    model, info = train(epochs=2 if args.smoke else 60)
    try:
        save(model, info, args.out / "model", args.push_to)
    except HMoEVAEError as error:
        sys.exit(f"{parser.prog}: {error}")
    except Exception as error:  # the Hub's client has many, those of its HTTP library among them
        if args.push_to is None:
            raise
        sys.exit(f"{parser.prog}: --push-to: {f'{error}'.splitlines()[0]}; the model is in {args.out / 'model'}")

    loaded = hm.HMoEVAE.from_pretrained(args.out / "model")
    _, test = hm.datasets.digits()
    same = torch.equal(loaded.predict_proba(test.x), model.to("cpu").predict_proba(test.x))
    print(f"the loaded model gives the same probabilities: {same}")


if __name__ == "__main__":
    main()
