"""grow: finds the kinds among samples, trains a tree of them, and splits and merges its leaves as held-out data ask."""

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hmoevae import surgery
from hmoevae.errors import ArgumentTypeError, DataError, ShapeError, mismatch
from hmoevae.growth.bounds import log_joint
from hmoevae.growth.record import USUAL, Decision, Grown, Growth
from hmoevae.growth.splits import Split, after_prune, chosen, found_splits, judged, with_splits
from hmoevae.history import History
from hmoevae.kinds import LEAST, Kinds, kinds_of, limit_of, neighbour_graph
from hmoevae.model import HMoEVAE
from hmoevae.nn.draws import borrowed_random_state
from hmoevae.plan import PlannedNode
from hmoevae.samples import Data
from hmoevae.spec import VAE, Mixture, Tree
from hmoevae.starts import comparable
from hmoevae.tables import Table
from hmoevae.training.fitting import fit_quietly
from hmoevae.training.freezing import frozen
from hmoevae.training.record import Training

START = 0.25
"""Share of the epochs in which a gate without agreement learns the kinds that were found, at least."""
NOISE = 0.01
"""Noise on the halves of a split, relative to the weights."""
USUAL_TRAINING = Training()


def grow(
    tree: Tree,
    x: Data,
    growth: Growth = USUAL,
    training: Training = USUAL_TRAINING,
    *,
    table: Table | None = None,
    progress: bool = True,
) -> Grown:
    """Grow a tree from one leaf, or from a given tree, to what held-out samples ask for. No label is used.

    1. **Kinds.** Where `tree` is a leaf, `hmoevae.find_kinds` finds how many kinds there are. The tree becomes a
       mixture of so many leaves, which `training` trains. Its start is the kinds that were found, and its prior their
       shares; without `agreement`, a quarter of the epochs at least are the start. A given tree is trained as it is.
    2. **Splits.** Every leaf is split in two along the best cut of the graph of its samples, all leaves at once. Gates
       above stay as they are, so that the samples of a leaf stay its own. The halves learn for some epochs, and so does
       the leaf without a split. A split is kept where the held-out samples of the leaf gain from it; of several, those
       that gain most, as far as leaves are left. A leaf that is a kind becomes a mixture of two styles; a style becomes
       two styles of the same kind.
    3. **Merges.** A style without which its samples lose next to nothing is merged into its siblings, and a leaf to
       which no sample goes is pruned.
    4. Steps 2 and 3 are repeated with the new leaves, until none gains.

    Args:
        tree: A `VAE`, which all leaves will equal; or a tree.
        x: Samples, in memory, as `data` of `hmoevae.fit`.
        growth: Options of the growth.
        training: Options of the training of the kinds. The trainings of splits have its batch size, learning rate,
            view, precision and device.
        table: The table that encodes the rows of `x`, if they are a data frame.
        progress: Show a progress bar.

    Returns:
        The model, with objective `"elbo"`; every decision; and the histories.

    Raises:
        ArgumentTypeError: An argument has a wrong type.
        ShapeError: The samples have no features.
        DataError: There are too few samples.

    >>> import hmoevae as hm
    >>> rng = torch.Generator().manual_seed(0)
    >>> x = torch.cat([torch.randn(200, 4, generator=rng) + 8 * i for i in range(3)])
    >>> leaf = hm.VAE(latent_dim=1, encoder=hm.MLP((8,)), decoder=hm.MLP(()), likelihood=hm.Gaussian(1.0, "identity"))
    >>> grown = grow(leaf, x, Growth(round_epochs=2), Training(epochs=4, lr=1e-2), progress=False)
    >>> grown.model.plan.n_leaves, [decision.action for decision in grown.decisions if decision.accepted]
    (3, ['cut', 'cut', 'stop'])
    """
    for name, value, expected in (
        ("tree", tree, (VAE, Mixture)),
        ("growth", growth, (Growth,)),
        ("training", training, (Training,)),
    ):
        if not isinstance(value, expected):
            words = " or ".join(f"a {each.__name__}" for each in expected)
            raise ArgumentTypeError(mismatch(name, words, type(value).__name__))
    with borrowed_random_state(training.seed):
        return _Job(tree, x, growth, training, table, progress=progress).run()


class _Job:
    """One call of `grow`."""

    def __init__(
        self, tree: Tree, x: Data, growth: Growth, training: Training, table: Table | None, *, progress: bool
    ) -> None:
        self.began = time.perf_counter()
        self.tree, self.growth, self.training, self.progress = tree, growth, training, progress
        self.samples = _samples(tree, x, table)
        n = len(self.samples)
        if n < 4 * LEAST:
            raise DataError(mismatch("x", f"at least {4 * LEAST} samples", n))
        order = torch.randperm(n, generator=torch.Generator().manual_seed(training.seed or 0))
        n_held = max(LEAST, round(growth.held_out * n))
        self.held, self.own = self.samples[order[:n_held]], self.samples[order[n_held:].sort().values]
        self.least = max(LEAST, round(growth.smallest * len(self.own)))
        self.shape: Any = table or tuple(self.samples.shape[1:])
        self.decisions: list[Decision] = []
        self.histories: list[History] = []
        self.fresh: set[str] | None = None  # the leaves that may be split; all of the first tree

    def run(self) -> Grown:
        """Grow."""
        outline = HMoEVAE(_first_leaf(self.tree), self.shape, objective="elbo")
        self.compared = comparable(outline, self.own).unflatten(1, self._seen(outline))
        graph = {name: getattr(self.growth, name) for name in ("neighbour", "changes", "n_changes")}
        self.graph = neighbour_graph(self.compared, **graph, seed=self.training.seed or 0)
        model = self._planted()
        for turn in itertools.count(1):
            grown = self._round(model, turn)
            if grown is None:
                break
            model = grown
        else:  # leaves were split and merged again
            self._stop(self.growth.max_leaves, model, f"the limit of {self.growth.max_leaves} rounds")
        return Grown(model, self.decisions, self.histories, self.growth)

    def _seen(self, model: HMoEVAE) -> tuple[int, ...]:
        """The shape of what is compared: that of images, as long as networks see them as they are."""
        n_shown = comparable(model, self.own[:1]).shape[1]
        return self.samples.shape[1:] if n_shown == self.samples[0].numel() else (n_shown,)

    # --- kinds ------------------------------------------------------------------------------------------------------

    def _planted(self) -> HMoEVAE:
        """The first tree, trained."""
        training, kinds = self.training, None
        if isinstance(self.tree, VAE) and self.growth.kinds:
            how = {name: getattr(self.growth, name) for name in ("neighbour", "smallest")}
            limit = limit_of(self.compared, self.growth.max_conductance, **how, seed=self.training.seed or 0)
            smallest = self.growth.smallest
            kinds = kinds_of(self.graph, limit=limit, smallest=smallest, max_kinds=self.growth.max_leaves)
            self._note_kinds(kinds)
        if kinds is None or kinds.n_kinds == 1:
            model = HMoEVAE(self.tree, self.shape, objective="elbo")
            if isinstance(self.tree, VAE):
                training = replace(training, init="random", agreement=None)
            self._fit(model, training)
            return model
        growth = self.growth
        tree = Mixture.of(self.tree, kinds.n_kinds, gate=growth.gate, balance=growth.balance, prior="learned")
        model = HMoEVAE(tree, self.shape, objective="elbo")
        model.prior.set_shares_(kinds.shares)
        assert model.prior.logits is not None
        model.prior.logits.requires_grad_(False)  # else it would follow the gate, and balance nothing
        start = training.init_epochs
        if training.agreement is None:  # nothing else than the start tells the gate of the kinds
            start = max(start, math.ceil(START * training.epochs))
        self._fit(model, replace(training, init=kinds.labels, init_epochs=start))
        model.prior.logits.requires_grad_(True)
        return model

    def _note_kinds(self, kinds: Kinds) -> None:
        n_leaves = 1
        for cut in kinds.cuts:
            n_leaves += cut.accepted
            is_good = cut.conductance <= self.growth.max_conductance
            reason = "" if cut.accepted else "no leaf is left" if is_good else "no good cut: this is a kind"
            about = {"conductance": cut.conductance, "n_leaves": n_leaves, "reason": reason}
            self._note(0, "cut", cut.path, cut.accepted, cut.size, **about)

    # --- rounds -----------------------------------------------------------------------------------------------------

    def _round(self, model: HMoEVAE, turn: int) -> HMoEVAE | None:
        """Split, judge and merge; `None` at the end, which is noted."""
        n_free = self.growth.max_leaves - model.plan.n_leaves
        assigned = model.predict(self.own).cpu()
        if n_free <= 0:
            return self._stop(turn, model, f"the limit of {self.growth.max_leaves} leaves")
        if self.growth.max_rounds is not None and turn > self.growth.max_rounds:
            return self._stop(turn, model, f"the limit of {self.growth.max_rounds} rounds")
        if self.growth.max_seconds is not None and time.perf_counter() - self.began > self.growth.max_seconds:
            return self._stop(turn, model, f"the limit of {self.growth.max_seconds:g} seconds")
        leaves = [leaf for leaf in model.plan.leaves if self.fresh is None or leaf.path in self.fresh]
        splits = found_splits(leaves, assigned, self.graph, self.least)
        if not splits:
            return self._stop(turn, model, "no leaf is left to split")
        alone, parted = self._with_and_without(model, splits, assigned)
        splits = judged(splits, alone, parted, self.held)
        kept = chosen(splits, self.growth.min_gain, n_free)
        n_leaves = alone.plan.n_leaves
        for split in splits:
            n_leaves += split in kept
            self._note_split(turn, split, split in kept, n_leaves)
        if not kept:
            return self._stop(turn, alone, "no split gains")
        model, new = with_splits(alone, parted, kept, self.own)
        self.fresh = set(new)
        return self._tidy(model, turn)

    def _with_and_without(
        self, model: HMoEVAE, splits: Sequence[Split], assigned: Int[Tensor, " n"]
    ) -> tuple[HMoEVAE, HMoEVAE]:
        """The model after some epochs, without the splits and with them; gates that there are already are kept."""
        growth, base = self.growth, self.training
        training = replace(
            base,
            epochs=growth.round_epochs,
            init="random",
            init_shared=False,
            agreement=None,
            warmup=None,
            revive=False,
            early_stopping=None,
            lr_schedule="cosine",
        )
        alone = surgery.rename(model, {})  # a copy
        mixtures = [mixture.path for mixture in model.plan.mixtures]
        with frozen(alone, mixtures):
            self._fit(alone, training)
        parted, start = model, torch.zeros_like(assigned)
        for split in splits:
            parted = surgery.split(parted, split.path, gate=growth.style_gate, noise=NOISE)
        of_path = {leaf.path: i for i, leaf in enumerate(parted.plan.leaves)}
        first = [of_path.get(leaf.path, of_path.get(f"{leaf.path}/0", 0)) for leaf in model.plan.leaves]
        start = torch.tensor(first)[assigned]
        for split in splits:
            start[split.members[split.second]] += 1
        with frozen(parted, mixtures):
            self._fit(parted, replace(training, init=start, init_epochs=1))
        return alone, parted

    def _tidy(self, model: HMoEVAE, turn: int) -> HMoEVAE:
        """Merge leaves into siblings without which their samples lose next to nothing; prune what is empty."""
        while True:
            bound = log_joint(model, self.held)
            best = bound.argmax(0)
            found: list[tuple[float, PlannedNode, int]] = []
            for i, leaf in enumerate(model.plan.leaves):
                siblings = [j for j in model.plan.node(leaf.path.rpartition("/")[0] or "root").leaves if j != i]
                mine = best == i
                if leaf.depth < 2 or not siblings:
                    continue  # kinds are told apart by the graph
                if not mine.any():
                    found.append((-math.inf, leaf, 0))
                    continue
                others = torch.cat([bound[:i], bound[i + 1 :]])[:, mine].logsumexp(0)
                loss = (bound[:, mine].logsumexp(0) - others).mean().item()
                found.append((loss, leaf, int(mine.sum())))
            loss, leaf, n = min(found, key=lambda each: each[0], default=(math.inf, None, 0))
            if leaf is None or loss >= self.growth.min_gain:
                return model
            n_siblings = len(model.plan.node(leaf.path.rpartition("/")[0]).child_edges)
            model = surgery.prune(model, [leaf.path])
            self.fresh = {after_prune(path, leaf.path, n_siblings) for path in self.fresh or () if path != leaf.path}
            action = "merge" if n else "prune"
            reason = "its siblings explain its samples" if n else "no sample is its own"
            about = {"gain": -loss if n else None, "n_leaves": model.plan.n_leaves, "reason": reason}
            self._note(turn, action, leaf.path, True, n, **about)

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _fit(self, model: HMoEVAE, training: Training) -> None:
        self.histories.append(fit_quietly(model, self.own, training, progress=self.progress))
        if self.histories[-1].interrupted:  # half a training is not to be compared
            raise KeyboardInterrupt

    def _note(self, turn: int, action: Any, path: str, accepted: bool, n_samples: int, **more: Any) -> None:
        seconds = time.perf_counter() - self.began
        self.decisions.append(Decision(turn, action, path, accepted, n_samples, **more, seconds=seconds))

    def _note_split(self, turn: int, split: Split, accepted: bool, n_leaves: int) -> None:
        reason = ""
        if not accepted:
            enough = split.gain > max(self.growth.min_gain, 2 * split.error)
            reason = "others gain more, and no leaf is left" if enough else "held-out samples gain too little"
        about = {"gain": split.gain, "error": split.error, "conductance": split.conductance, "reason": reason}
        self._note(turn, "split", split.path, accepted, len(split.members), **about, n_leaves=n_leaves)

    def _stop(self, turn: int, model: HMoEVAE, reason: str) -> None:
        self._note(turn, "stop", "root", True, len(self.own), n_leaves=model.plan.n_leaves, reason=reason)


def _first_leaf(tree: Tree) -> VAE:
    return next(node for _, node in tree.walk() if isinstance(node, VAE))


def _samples(tree: Tree, x: Data, table: Table | None) -> Float[Tensor, "n *sample"]:
    """All samples, checked."""
    if table is not None and not isinstance(table, Table):
        raise ArgumentTypeError(mismatch("table", "a Table, such as Table.of(frame)", type(table).__name__))
    shape: Any = table
    if shape is None:
        size = getattr(x, "shape", None)
        if size is None:
            expected = "a tensor or array in memory, or a data frame with table="
            raise ArgumentTypeError(mismatch("x", expected, type(x).__name__))
        if len(size) < 2:
            raise ShapeError(mismatch("x", "(n, *sample)", tuple(size)))
        shape = tuple(size)[1:]
    model = HMoEVAE(_first_leaf(tree), shape, objective="elbo")
    return torch.cat(list(model._pieces(x, 1024)))
