"""add_leaf: one more leaf for samples that a trained model does not explain."""

import math
from dataclasses import replace

from hmoevae import surgery
from hmoevae.checks import check_integer, check_number
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, mismatch
from hmoevae.model import HMoEVAE
from hmoevae.nn.draws import borrowed_random_state
from hmoevae.samples import Data
from hmoevae.spec import VAE
from hmoevae.surgery.teaching import samples_of
from hmoevae.training.fitting import fit_quietly
from hmoevae.training.record import Training

LEAST = 10
"""Smallest number of samples that a new leaf learns from."""
USUAL = Training()


def add_leaf(
    model: HMoEVAE,
    x: Data,
    training: Training = USUAL,
    *,
    path: str = "root",
    quantile: float = 0.05,
    rounds: int = 2,
    progress: bool = True,
) -> HMoEVAE:
    """Add a leaf for samples that no leaf explains, such as those of a kind that was not there in training.

    The samples whose `score_samples` are lowest train a leaf of their own. Every sample that the new leaf explains
    better than the others do (log share + log p_new(x) against log(1 - share) + log p(x)) trains it in the next round.
    In the end the gate at `path` learns when the new leaf is right (`hmoevae.surgery.graft`). The old leaves, and the
    gates elsewhere, stay as they are, to the bit.

    Args:
        model: A trained model, which is left as it is.
        x: Samples, old ones and new ones, in memory, as `data` of `hmoevae.fit`.
        training: Options of the training of the new leaf.
        path: The mixture that gets the leaf, as its last child. The leaf's record is that of the first leaf below.
        quantile: Share of the samples that train the new leaf first, those of the lowest scores.
        rounds: Number of trainings of the new leaf.
        progress: Show progress bars.

    Returns:
        A new model on the same device.

    Raises:
        ArgumentError: There is no mixture at `path`, or another argument is out of range.
        ArgumentTypeError: `model` or `training` has a wrong type.
        DataError: Fewer than ten samples are left for the new leaf.

    >>> import hmoevae as hm
    >>> import torch
    >>> rng = torch.Generator().manual_seed(0)
    >>> x = torch.cat([0.1 * torch.randn(100, 2, generator=rng) + i for i in range(3)])
    >>> leaf = hm.VAE(1, hm.LinearPosterior(), hm.MLP(()), hm.Gaussian("learned", "identity"))
    >>> tree = hm.Mixture.of(leaf, 2, gate=hm.PosteriorGate(), balance=None, prior="learned")
    >>> model = hm.HMoEVAE(tree, input_shape=(2,), objective="marginal")
    >>> _ = hm.fit_em(model, x[:200])
    >>> training = hm.Training(epochs=10, lr=0.1, batch_size=16)
    >>> more = add_leaf(model, x, training, quantile=0.2, progress=False)
    >>> more.plan.n_leaves, more.predict(x[200:]).bincount()
    (3, tensor([  0,   0, 100]))
    """
    if not isinstance(model, HMoEVAE):
        raise ArgumentTypeError(mismatch("model", "an HMoEVAE", type(model).__name__))
    if not isinstance(training, Training):
        raise ArgumentTypeError(mismatch("training", "a Training(...)", type(training).__name__))
    check_integer("rounds", rounds)
    check_number("quantile", quantile, positive=True)
    if quantile >= 1:
        raise ArgumentError(mismatch("quantile", "a number between 0 and 1", repr(quantile)))
    node = model.plan.node(path)
    if isinstance(node.spec, VAE):
        raise ArgumentError(mismatch("path", "a mixture", f"{path!r}, a leaf"))
    spec = replace(model.plan.leaves[node.leaves.start].spec, name=None)
    samples = samples_of(model, x, support=True)
    known = model.score_samples(samples)
    own = known <= known.quantile(quantile)
    options = replace(training, init="random", init_shared=False, agreement=None, view=None, early_stopping=None)
    shape = model.table or model.input_shape
    new, share = model, quantile  # until the first round, of which there is at least one
    for _ in range(int(rounds)):
        if own.sum() < LEAST:
            expected = f"at least {LEAST} samples that a new leaf explains better than the others do"
            raise DataError(mismatch("x", expected, int(own.sum())))
        with borrowed_random_state(training.seed):
            new = HMoEVAE(spec, shape, missing=model.missing).to(model.device, model.dtype)
        fit_quietly(new, samples[own], options, progress=progress)
        new.to(model.device)
        share = own.sum().item() / (len(own) + 1)  # below one, also where the new leaf explains all samples
        own = math.log(share) + new.score_samples(samples) > math.log1p(-share) + known
    return surgery.graft(model, path, new, beside=True, share=share, x=samples)
