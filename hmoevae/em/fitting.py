"""fit_em: fits a mixture of factor analysers by expectation maximisation.

Axes: `n` counts samples, `leaf` all leaves.
"""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from hmoevae.em.leaves import MStep
from hmoevae.em.record import EM
from hmoevae.errors import DataError, NonFiniteError, mismatch
from hmoevae.features import latent_semantics
from hmoevae.history import History
from hmoevae.model import HMoEVAE
from hmoevae.nn.likelihoods.counts import CountModule
from hmoevae.nn.sample_weights import SampleWeights
from hmoevae.samples import BATCH_SIZE, ArrayLike, Data, in_order
from hmoevae.starts import N_COMPONENTS, first_leaves
from hmoevae.training.words import options_in

USUAL = EM()


@options_in("em", EM)
def fit_em(model: HMoEVAE, data: Data, em: EM = USUAL, *, sample_weight: ArrayLike | None = None) -> History:
    """Fit `model` in place by expectation maximisation, for trees whose leaves are factor analysers.

    Each leaf has a linear decoder, a learned Gaussian noise and the encoder `LinearPosterior()`; each gate is a
    `PosteriorGate()`. Then all parameters have closed forms: no learning rate, no batches. Features that are not
    Gaussian, such as categories, get outputs that do not depend on z. Learned priors become the shares of the leaves.
    The computation runs on the CPU in float64.

    Gaps (NaN) in a model with `missing=True` are filled with what each leaf expects of them, with its covariance
    (Ghahramani & Jordan 1994, Supervised learning from incomplete data via an EM approach).

    Args:
        model: The model.
        data: Samples, in any form that `hmoevae.fit` takes; they are in memory as a whole.
        em: The options.
        sample_weight: How many samples each sample counts for, `(n,)`; integers equal repeated samples.

    Returns:
        One row per iteration of the run that was kept: `loss`, the mean of -log p(x) in nats, and the shares of the
        leaves. `history.converged` says whether it ended by `tol`.

    Raises:
        SpecError: A node has no closed form; `hmoevae.fit` trains every model.
        DataError: The data do not fit the model, or there are fewer samples than leaves.
        NonFiniteError: The loss became NaN or infinite.

    >>> import hmoevae as hm
    >>> leaf = hm.VAE(2, hm.LinearPosterior(), hm.MLP(()), hm.Gaussian("learned", "identity"))
    >>> tree = hm.Mixture.of(leaf, 2, gate=hm.PosteriorGate(), balance=None, prior="learned")
    >>> model = hm.HMoEVAE(tree, input_shape=(3,), objective="marginal")
    >>> x = torch.cat([torch.randn(90, 3) - 4, torch.randn(30, 3) + 4])
    >>> history = fit_em(model, x)
    >>> history.converged, sorted(model.predict(x).bincount().tolist())
    (True, [30, 90])
    """
    x, weight = read(model, data, sample_weight)
    n_leaves = model.plan.n_leaves
    if len(x) < n_leaves:
        raise DataError(mismatch("data", f"{n_leaves} samples or more, the number of leaves", len(x)))
    best: tuple[float, dict[str, Tensor], History] | None = None
    twin = copy.deepcopy(model).to("cpu", torch.float64)
    step = MStep(twin, x, weight, em.strength)
    for responsibility in _starts(twin, step, em):
        history = _run(twin, step, responsibility, em)
        loss = history["loss"][-1]
        if best is None or loss < best[0] - em.tol:  # differences below `tol` are none: the first start is kept
            best = loss, {name: part.clone() for name, part in twin.state_dict().items()}, history
    assert best is not None
    model.load_state_dict(best[1])
    return best[2]


def read(
    model: HMoEVAE, data: Data, sample_weight: ArrayLike | None
) -> tuple[Float[Tensor, "n feature"], Float[Tensor, " n"]]:
    """All samples and their weights, in float64 on the CPU."""
    pieces = in_order(model.door.encoded(data, "data"), "data", model.check_input, BATCH_SIZE)
    x = torch.cat([piece.flatten(1) for piece in pieces]).to("cpu", torch.float64)
    if sample_weight is None:
        return x, torch.ones(len(x), dtype=torch.float64, device="cpu")
    return x, SampleWeights.of(sample_weight, len(x)).counts.cpu().double()


def _starts(model: HMoEVAE, step: MStep, em: EM) -> Iterator[Float[Tensor, "leaf n"]]:
    """The responsibilities with which runs begin."""
    if em.init == "model":
        yield joint(model, step.x).softmax(0) * step.weight
        return
    for run in range(em.n_init):
        seed = (em.seed + run) % (1 << 64)
        if model.missing and step.filled.shape[1] and not step.groups[0].are_all:
            yield _of_numbers(model, step, replace(em, seed=seed))
        for features in features_of(step):
            leaf = first_leaves(model.plan, features, em.init, seed, step.weight)
            yield one_hot(leaf, model.plan.n_leaves).T * step.weight


def _of_numbers(model: HMoEVAE, step: MStep, em: EM) -> Float[Tensor, "leaf n"]:
    """The responsibilities of a fit to the Gaussian features alone, in which the others are gaps.

    Categories may split a table in a way of their own, such as by sex, that hides the clusters of the numbers.
    """
    others = torch.ones(step.x.shape[1], dtype=torch.bool, device="cpu")
    others[step.groups[0].features] = False
    alone = MStep(model, step.x.masked_fill(others, torch.nan), step.weight, em.strength)
    leaf = first_leaves(model.plan, alone.filled, em.init, em.seed, step.weight)
    _run(model, alone, one_hot(leaf, model.plan.n_leaves).T * step.weight, em)
    return joint(model, alone.x).softmax(0) * step.weight


@torch.no_grad()
def _run(model: HMoEVAE, step: MStep, responsibility: Float[Tensor, "leaf n"], em: EM) -> History:
    """Run EM from one start."""
    started = time.perf_counter()
    plan, history = model.plan, History(training=None, converged=False)
    x, weight, before = step.x, step.weight, math.inf
    step.started = em.init == "model"
    for iteration in range(1, em.max_iter + 1):
        step.run(responsibility)
        model.prior.set_shares_(responsibility.sum(1))
        log_joint = joint(model, x)
        log_px = log_joint.logsumexp(0)
        responsibility = (log_joint - log_px).exp() * weight
        loss = -float(weight @ log_px / weight.sum())
        if not math.isfinite(loss):
            raise NonFiniteError(mismatch("loss", f"a finite loss in iteration {iteration}", loss))
        shares = (responsibility.sum(1) / weight.sum()).tolist()
        usage = {f"usage/{leaf.path}": share for leaf, share in zip(plan.leaves, shares, strict=True)}
        history.rows.append({"epoch": iteration, "seconds": time.perf_counter() - started, "loss": loss, **usage})
        if abs(before - loss) < em.tol:
            history.converged = True
            break
        before = loss
    return history


@torch.no_grad()
def joint(model: HMoEVAE, x: Float[Tensor, "n feature"]) -> Float[Tensor, "leaf n"]:
    """Log p(x, leaf) of every leaf."""
    at_once = len(x) if all(group.is_constant for group in model.experts.groups) else BATCH_SIZE
    evidence = torch.cat([model.experts.evidence(chunk.T) for chunk in x.split(at_once)], 1)
    return evidence + model.prior.leaf_log_prob().unsqueeze(1)


def features_of(step: MStep) -> list[Float[Tensor, "n shown"]]:
    """What starts cluster: samples as networks see them, with gaps in Gaussian features filled.

    Gaps in other features are zeros, as networks see them. Where there are other features, such as counts or
    categories, no single scale is right for all tables, so there is a second start from standardised features. Counts
    given their total, such as those of words, have a third one, from their latent semantics.
    """
    first, filled = step.groups[0], step.x.clone()
    filled[:, first.features] = step.filled
    present = None if step.present is None else ~filled.isnan().T
    shown = first.likelihood.shown(filled.T, present).T
    if first.are_all:
        return [shown]
    share = step.weight / step.weight.sum()
    apart = shown - share @ shown
    spread = (share @ apart.square()).sqrt()
    found = [shown, apart / torch.where(spread > 0, spread, 1.0)]
    if isinstance(first.likelihood, CountModule) and first.likelihood.total is not None:
        found.append(latent_semantics(step.x.nan_to_num(), N_COMPONENTS, step.weight))
    return found
