"""What the tests share: random trees, models on them with data that they can model, and small fixtures."""

import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import checker  # noqa: F401 (before the package: by it the calls are checked)
import hypothesis
import jaxtyping
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import hmoevae as hm
from hmoevae.spec import Tree

# Derandomised, so that a green run stays green; `HYPOTHESIS_PROFILE=thorough pytest` looks further.
hypothesis.settings.register_profile("ci", deadline=None, max_examples=15, derandomize=True, database=None)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=300)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# One thread, here and in the processes that tests start: products are tiny, and workers share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

ACTIVATIONS = ("relu", "sigmoid", "tanh", "gelu", "silu", "elu")


def mlps() -> st.SearchStrategy[hm.MLP]:
    """Small networks, the affine map among them."""
    hidden = st.lists(st.integers(1, 5), max_size=2).map(tuple)
    return st.builds(hm.MLP, hidden, st.sampled_from(ACTIVATIONS))


def convs() -> st.SearchStrategy[hm.Conv]:
    """Small convolutional networks."""
    return st.builds(
        hm.Conv,
        channels=st.lists(st.integers(1, 3), min_size=1, max_size=2).map(tuple),
        kernel_size=st.integers(1, 4),
        stride=st.integers(1, 2),
        hidden=st.lists(st.integers(1, 4), max_size=1).map(tuple),
        activation=st.sampled_from(ACTIVATIONS),
    )


def likelihoods() -> st.SearchStrategy[hm.Gaussian | hm.Bernoulli | hm.ContinuousBernoulli]:
    """Every observation model."""
    gaussian = st.builds(hm.Gaussian, st.sampled_from((0.1, 0.5, 2.0)), st.sampled_from(("sigmoid", "identity")))
    return st.one_of(gaussian, st.just(hm.Bernoulli()), st.just(hm.ContinuousBernoulli()))


def names() -> st.SearchStrategy[str | None]:
    """Labels, mostly none."""
    return st.none() | st.text(max_size=4)


def leaves() -> st.SearchStrategy[hm.VAE]:
    """Small experts, some with exact posteriors."""
    return st.builds(hm.VAE, st.integers(1, 3), mlps(), mlps(), likelihoods(), names()) | exact_leaves()


def exact_leaves() -> st.SearchStrategy[hm.VAE]:
    """Small experts with linear decoders and exact posteriors."""
    gaussian = st.builds(hm.Gaussian, st.sampled_from((0.1, 0.5, "learned")), st.just("identity"))
    linear = st.builds(hm.MLP, st.just(()))
    return st.builds(hm.VAE, st.integers(1, 3), st.builds(hm.LinearPosterior), linear, gaussian, names())


def balances() -> st.SearchStrategy[hm.Balance | None]:
    """Every balance, switched off and inherited among them."""
    balance = st.builds(hm.Balance, st.sampled_from(("variance", "cv2", "kl")), st.sampled_from((0.0, 0.1, 3.0)))
    return st.none() | balance


@st.composite
def trees(
    draw: st.DrawFn, *, depth: int = 3, max_leaves: int = 12, image: bool = False, leaf_root: bool = True
) -> Tree:
    """Trees of up to `depth` gates on a path; each mixture has 2 to 4 children that may be equal or not.

    Args:
        draw: Hypothesis's.
        depth: The largest number of gates on a path.
        max_leaves: No mixture is added to a tree that has as many leaves.
        image: Let gates be convolutional.
        leaf_root: Let the tree be a lone leaf.
    """
    # From small pools, so that equal nodes, hence groups of several, turn up in all places of a tree.
    leaf_pool = draw(st.lists(leaves(), min_size=1, max_size=3) | st.lists(exact_leaves(), min_size=1, max_size=2))
    gate_pool = draw(st.lists(mlps() | convs() if image else mlps(), min_size=1, max_size=2))
    n_leaves = 0

    def node(height: int, *, leaf_allowed: bool) -> Tree:
        nonlocal n_leaves
        if height == 0 or n_leaves >= max_leaves or (leaf_allowed and draw(st.booleans())):
            n_leaves += 1
            return draw(st.sampled_from(leaf_pool))
        children = tuple(node(height - 1, leaf_allowed=True) for _ in range(draw(st.integers(2, 4))))
        below = (leaf for child in children for _, leaf in child.walk() if isinstance(leaf, hm.VAE))
        has_density = all(isinstance(leaf.encoder, hm.LinearPosterior) for leaf in below)
        computed = has_density and draw(st.booleans())
        return hm.Mixture(
            children=children,
            gate=hm.PosteriorGate() if computed else draw(st.sampled_from(gate_pool)),
            balance=draw(balances()),
            prior=draw(st.sampled_from(("uniform", "leaves", "learned"))),
            name=draw(names()),
        )

    return node(depth, leaf_allowed=leaf_root)


def parts_of(likelihood: hm.Likelihood) -> tuple[hm.Likelihood, ...]:
    """The likelihoods of the columns, or the one for all of them."""
    return likelihood.parts if isinstance(likelihood, hm.Columns) else (likelihood,)


def data_for(tree: Tree, shape: tuple[int, ...], n: int, seed: int = 0) -> Tensor:
    """Random samples that lie in the support of every leaf's likelihood."""
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ours = {type(part) for _, node in tree.walk() if isinstance(node, hm.VAE) for part in parts_of(node.likelihood)}
    binary = bool(ours & {hm.Bernoulli, hm.Categorical, hm.Ordinal, hm.Poisson, hm.NegativeBinomial, hm.ZeroInflated})
    if hm.LogNormal in ours:  # with codes and counts in other columns
        return x.round() + 1 if binary else x + 0.1
    return x.round() if binary else x


def build(
    tree: Tree, shape: tuple[int, ...], *, objective: str = "elbo", seed: int = 0, missing: bool = False
) -> hm.HMoEVAE:
    """A model in double precision with fixed weights; learned priors start away from uniform."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = hm.HMoEVAE(tree, shape, objective=objective, missing=missing).double()
        if model.prior.logits is not None:
            torch.nn.init.normal_(model.prior.logits)
    return model


def with_gaps(x: Tensor, share: float = 0.3, seed: int = 0) -> Tensor:
    """The same samples with NaN in a share of their cells, at random, but in the last sample, which is whole."""
    gaps = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    gaps[-1] = False
    return x.masked_fill(gaps, torch.nan)


@dataclass(frozen=True)
class Case:
    """A tree to test, with what it takes to make a model and data of it."""

    tree: Tree
    shape: tuple[int, ...]
    objective: str
    batch: int
    seed: int

    # Made when asked for, not when drawn: the tests' type checks use `random`, which hypothesis forbids its strategies.
    @property
    def model(self) -> hm.HMoEVAE:
        """A fresh model, in double precision."""
        return build(self.tree, self.shape, objective=self.objective, seed=self.seed)

    @property
    def x(self) -> Tensor:
        """Samples that it can model."""
        return data_for(self.tree, self.shape, self.batch, self.seed)


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    objectives: tuple[str, ...] = ("expected", "elbo", "marginal"),
    depth: int = 3,
    leaf_root: bool = True,
    max_leaves: int = 12,
) -> Case:
    """Random trees over images or vectors, with an objective that suits them."""
    image = draw(st.booleans())
    shape = draw(st.sampled_from(((1, 3, 4), (2, 3, 3)) if image else ((3,), (2, 2))))
    tree = draw(trees(depth=depth, image=image, leaf_root=leaf_root, max_leaves=max_leaves))
    learned = any(isinstance(node, hm.Mixture) and node.prior == "learned" for _, node in tree.walk())
    objective = draw(st.sampled_from([name for name in objectives if not (learned and name == "expected")]))
    return Case(tree, shape, objective, batch=draw(st.integers(1, 5)), seed=draw(st.integers(0, 99)))


def about(name: str) -> Callable[[str], str]:
    """For `assert_close(..., msg=about(name))`: put the name in front of the numbers."""
    return lambda text: f"{name}: {text}"


def fit(model: hm.HMoEVAE, data: Any, **options: Any) -> hm.History:
    """`hm.fit` on the CPU without a bar, told fields of its `hm.Training` and arguments of its own alike."""
    options = {"device": "cpu", "progress": False} | options
    own = {name: options.pop(name) for name in inspect.signature(hm.fit).parameters if name in options}
    return hm.fit(model, data, hm.Training(**options), **own)


@contextmanager
def fixed_noise() -> Iterator[None]:
    """Inside, every expert draws the same noise for the same sample, whatever its place in the tree, in every pass."""

    def noise(group: Any, x: Tensor, generator: torch.Generator | None = None, share: object = None) -> Tensor:
        drawn = torch.randn(8, x.shape[-1], generator=torch.Generator().manual_seed(0), dtype=x.dtype)
        return drawn[: group.latent_dim].expand(group.n_experts, -1, -1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hmoevae.nn.experts.ExpertGroup.noise", noise)
        yield


@pytest.fixture
def as_users_call() -> Iterator[None]:
    """Switch off the tests' own type checks, which would answer a bad argument before the package does."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def rng_untouched() -> Iterator[None]:
    """The test leaves torch's global random state as it found it."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training takes bfloat16 where it is asked for, on a CPU without its instructions too: slow, but the same."""
    monkeypatch.setattr("hmoevae.training.device.has_bfloat16", lambda device: True)


@pytest.fixture(scope="session")
def compiler() -> None:
    """Skips where `torch.compile` does not work, whatever is compiled: on a CPU it needs a C++ compiler."""
    if torch.__version__ < "2.7":
        pytest.skip("compiled passes need PyTorch 2.7")
    code = "import torch; torch.compile(lambda x: x.sin() + x.cos())(torch.rand(64))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"torch.compile does not work here: {done.stderr.strip().splitlines()[-1]}")
