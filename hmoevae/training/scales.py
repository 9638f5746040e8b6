"""The check that data have a scale that Gaussians of a fixed scale can model, and its warning."""

import numpy as np
from torch import Tensor

from hmoevae.errors import ScaleWarning, mismatch, warn
from hmoevae.plan import Plan
from hmoevae.spec import VAE, Gaussian

FAR = 100.0
"""Largest root mean square of a column, in units of the scale. Beyond it, a sample costs 5,000 nats at first."""
LEAST = 0.1
"""Nats: smallest information that a latent must be able to carry about a sample; below it, all data are noise."""


def warn_of_scales(plan: Plan, samples: Tensor) -> None:
    """Warn of columns that are much larger than the scale of the likelihood, or of data much smaller than it.

    Take a Gaussian of fixed scale s with an unbounded mean. Networks begin with a mean near 0, where a column of root
    mean square r costs (r/s)^2 / 2 nats. About a column of standard deviation d, a latent can carry at most
    log(1 + (d/s)^2) / 2 nats, the capacity of a Gaussian channel. Values from 0 to 1 count as pixels and pass.

    Args:
        plan: The compiled tree.
        samples: Some samples from all over the data.
    """
    likelihoods = [node.spec.likelihood for node in plan.leaves if isinstance(node.spec, VAE)]
    gaussians = [known for known in likelihoods if isinstance(known, Gaussian) and known.mean == "identity"]
    free = [float(known.scale) for known in gaussians if known.scale != "learned"]
    x = samples.detach().flatten(1).cpu().double()
    if not free or not bool(((x < 0) | (x > 1)).any()):  # neither is true of a gap
        return
    mean, size = x.nanmean(0).nan_to_num(), x.square().nanmean(0).nan_to_num().sqrt()
    deviation = (x - mean).square().nanmean(0).nan_to_num().sqrt()
    expected = f"data of about the scale of Gaussian(scale={max(free):g}, mean='identity')"
    remedy = (
        "standardise them, as scikit-learn's StandardScaler does, or hm.datasets.Scaled(data, deviations, offset=means)"
    )
    far = size > FAR * max(free)
    if far.any():
        worst = int(size.argmax())
        place = worst if samples.ndim == 2 else tuple(map(int, np.unravel_index(worst, samples.shape[1:])))
        more = f" and {int(far.sum()) - 1} more" if far.sum() > 1 else ""
        got = f"column {place} with mean {_short(mean[worst])} and standard deviation {_short(deviation[worst])}{more}"
        warn(mismatch("data", expected, f"{got}: {remedy}"), ScaleWarning)
    elif len(x) >= 16 and float((deviation / min(free)).square().log1p().sum()) / 2 < LEAST:
        got = f"standard deviations up to {float(deviation.max()):.3g}, far below its noise"
        warn(mismatch("data", expected, f"{got}: {remedy}"), ScaleWarning)


def _short(value: Tensor) -> str:
    number = float(value)
    return f"{number:,.0f}" if 1e3 <= abs(number) < 1e9 else f"{number:.3g}"
