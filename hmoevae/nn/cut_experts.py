"""CutExperts: experts whose rows are cut over several processes, which send each other samples and get numbers back.

Axes: as in `hmoevae.nn.experts`; `own` counts the leaves whose weights this process holds, group by group; `all` counts
the samples of all processes that hold a part.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hmoevae.errors import ArgumentError, mismatch
from hmoevae.nn.draws import Share
from hmoevae.nn.exchange import Peers
from hmoevae.nn.experts import ExpertGroup, Experts, _normal
from hmoevae.nn.linear import LinearEncoder
from hmoevae.nn.posteriors import Draw


class CutExperts(Experts):
    """Experts of which this process holds some rows of every group.

    For all leaves, every process sends its samples to all others, computes its own leaves for all samples, and sends
    the numbers back. For chosen leaves, it sends each sample and its noise to the processes that hold them.

    Args:
        experts: Whole experts. Their parameters are cut in place, and shared; `whole` undoes that.
        peers: The processes.

    Raises:
        ArgumentError: Any use of the experts while `peers` is silent, and uses other than `noise`, `estimates`,
            `elbo_and_log_weight` and `evidence`.
    """

    owner_of_leaf: Int[Tensor, " leaf"]

    def __init__(self, experts: Experts, peers: Peers) -> None:
        nn.Module.__init__(self)
        self.peers = peers
        self._whole = [experts]  # in a list, so that it is no submodule
        self.groups = experts.groups
        self.n_features, self.latent_dim = experts.n_features, experts.latent_dim
        self._first, self._sizes = experts._first, experts._sizes
        self.learns = any(parameter.requires_grad for parameter in experts.parameters())
        group, row = experts.group_of_leaf.tolist(), experts.row_of_leaf.tolist()
        owners, rows = self._places(group, row)
        order = sorted(range(len(group)), key=lambda leaf: (owners[leaf], group[leaf], row[leaf]))
        self.n_of_peers = [owners.count(index) for index in range(peers.count)]
        where = experts.group_of_leaf.device
        self.register_buffer("group_of_leaf", experts.group_of_leaf, persistent=False)
        self.register_buffer("row_of_leaf", torch.tensor(rows, device=where), persistent=False)
        self.register_buffer("owner_of_leaf", torch.tensor(owners, device=where), persistent=False)
        self.register_buffer("leaf_order", torch.tensor(order, device=where).argsort(), persistent=False)
        for one, size in zip(self.groups, self._sizes, strict=True):
            kept = peers.rows(size)
            _replace(one, lambda tensor, kept=kept: tensor[kept].clone())

    def _places(self, group: list[int], row: list[int]) -> tuple[list[int], list[int]]:
        """For every leaf, the process that holds its weights, and their row there."""
        owners: list[int] = []
        rows: list[int] = []
        for g, r in zip(group, row, strict=True):
            owner = r // self.peers.rows(self._sizes[g], 0).stop
            owners.append(owner)
            rows.append(r - self.peers.rows(self._sizes[g], owner).start)
        return owners, rows

    def own_rows(self, name: str, tensor: Tensor) -> Tensor:
        """This process's rows of a whole tensor, of a weight with this name in the model."""
        group = int(name.split(".")[2])  # experts.groups.<group>
        return tensor[self.peers.rows(self._sizes[group])].clone()

    def own_row(self, group: int, row: int) -> int | None:
        """This process's index of a row of a group; `None` if another process holds it."""
        kept = self.peers.rows(self._sizes[group])
        return row - kept.start if kept.start <= row < kept.stop else None

    def row(self, group: int, row: int, own: Float[Tensor, "own *axes"]) -> Float[Tensor, "*axes"]:
        """One row of a tensor of a group, in all processes that hold some of its rows, each of which calls this."""
        owner = row // self.peers.rows(self._sizes[group], 0).stop
        place, count = self.own_row(group, row), self.peers.count
        sent = own[:0] if place is None else own[place].expand(count, *own.shape[1:])
        send, receive = [0 if place is None else 1] * count, [int(index == owner) for index in range(count)]
        return self.peers.exchange(sent, send, receive)[0]

    def whole(self) -> Experts:
        """Give every process all rows again, in host memory, and return the experts that were cut."""
        for group, size in zip(self.groups, self._sizes, strict=True):
            sizes = [_length(self.peers.rows(size, index)) for index in range(self.peers.count)]
            _replace(group, lambda tensor, sizes=sizes: self.peers.gather(tensor, sizes).cpu())
        return self._whole[0].cpu()

    # --- what training uses -----------------------------------------------------------------------------------------

    def noise(
        self,
        x: Float[Tensor, "feature batch"],
        generator: torch.Generator | None = None,
        share: Share | None = None,
        *,
        n_slots: int | None = None,
    ) -> list[Float[Tensor, "_ _ _"]]:
        """As in `Experts`; for all leaves, the noise of the process's own leaves for the samples of all.

        For chosen leaves there is none for the dummy sample of a process without samples, so that no row steps for it.
        """
        self.peers.check_may_talk()
        if share is None:
            raise ArgumentError(mismatch("share", "that of a step of hm.fit, for cut experts", None))
        if n_slots is not None:
            drawn = super().noise(x, generator, share, n_slots=n_slots)
            return drawn if share.n else [one[..., :0] for one in drawn]
        shares = [Share(start, n, share.total) for start, n in self.peers.numbers(x.device, share.start, share.n)]
        result: list[Tensor] = []
        for group, size in zip(self.groups, self._sizes, strict=True):
            # All processes draw all of it, so that it is that of a single process.
            drawn = _normal((size, group.latent_dim, share.total), x, generator)[self.peers.rows(size)]
            result.append(torch.cat([drawn[..., one.rows] for one in shares], dim=-1))
        return result

    def estimates(
        self,
        x: Float[Tensor, "feature batch"],
        noise: list[Float[Tensor, "_ _ _"]],
        *,
        of: Callable[[Draw], Float[Tensor, "_ _"]],
        leaf: Int[Tensor, "slot batch"] | None = None,
    ) -> Float[Tensor, "slot batch"]:
        """As in `Experts`."""
        if leaf is not None:
            return self._of_pairs(x, noise[0], of, leaf)
        everyone, sizes = self._samples_of_all(x)
        draws = self._draws(everyone, noise)
        return self._back([of(draw) for draw in draws], sizes, noise[0].dtype)

    def elbo_and_log_weight(
        self, x: Float[Tensor, "feature batch"], noise: list[Float[Tensor, "_ _ _"]]
    ) -> tuple[Float[Tensor, "leaf batch"], Float[Tensor, "leaf batch"]]:
        """As in `Experts`."""
        everyone, sizes = self._samples_of_all(x)
        draws = self._draws(everyone, noise)
        dtype = noise[0].dtype
        elbo = self._back([draw.elbo() for draw in draws], sizes, dtype)
        return elbo, self._back([draw.log_weight() for draw in draws], sizes, dtype)

    def evidence(self, x: Float[Tensor, "feature batch"]) -> Float[Tensor, "leaf batch"]:
        """As in `Experts`."""
        everyone, sizes = self._samples_of_all(x)
        by_group = [
            group.evidence(everyone)
            if isinstance(group.encoder, LinearEncoder)
            else x.new_zeros(group.n_experts, everyone.shape[1])
            for group in self.groups
            if group.n_experts
        ]
        return self._back(by_group, sizes, x.dtype)

    # --- exchanges --------------------------------------------------------------------------------------------------

    def _samples_of_all(self, x: Float[Tensor, "feature batch"]) -> tuple[Float[Tensor, "feature all"], list[int]]:
        """The samples of all processes, and how many each of them has."""
        sizes = [n for (n,) in self.peers.numbers(x.device, x.shape[1])]
        return self.peers.gather(x.t(), sizes).t(), sizes

    def _draws(self, everyone: Float[Tensor, "feature all"], noise: list[Float[Tensor, "_ _ all"]]) -> list[Draw]:
        """A draw of z from every own leaf for every sample of all processes; groups without own leaves have none."""
        pairs = zip(self.groups, noise, strict=True)
        return [group.draw(everyone, group.posterior(everyone), drawn) for group, drawn in pairs if group.n_experts]

    def _back(
        self, by_group: list[Float[Tensor, "_ all"]], sizes: list[int], dtype: torch.dtype
    ) -> Float[Tensor, "leaf batch"]:
        """Send the numbers of every sample to its process, and put those that come in the order of the leaves."""
        index, batch = self.peers.index, sizes[self.peers.index]
        n_own = self.n_of_peers[index]
        own = [numbers.to(dtype) for numbers in by_group] or [self.row_of_leaf.new_zeros(0, sum(sizes), dtype=dtype)]
        blocks = torch.cat([block.flatten() for block in torch.cat(own).split(sizes, dim=1)])
        send, receive = [n_own * n for n in sizes], [n * batch for n in self.n_of_peers]
        answers = self.peers.exchange(blocks, send, receive, learns=self._learns())
        assert self.leaf_order is not None
        return answers.view(-1, batch).index_select(0, self.leaf_order)

    def _of_pairs(
        self,
        x: Float[Tensor, "feature batch"],
        noise: Float[Tensor, "slot latent batch"],
        of: Callable[[Draw], Float[Tensor, "_ _"]],
        leaf: Int[Tensor, "slot batch"],
    ) -> Float[Tensor, "slot batch"]:
        """Send every (slot, sample) pair to the process that holds its leaf, which computes its number."""
        unsent = leaf.shape[1] - noise.shape[2]
        leaf = leaf[:, : noise.shape[2]]
        n_slots, batch = leaf.shape
        owner = self.owner_of_leaf[leaf.flatten()]
        order = owner.argsort(stable=True)
        send = owner.bincount(minlength=self.peers.count).tolist()
        receive = self.peers.counts(x.device, send)
        sent = torch.cat([x.t()[order % max(batch, 1)], noise.mT.flatten(0, 1)[order]], dim=1)
        theirs = self.peers.exchange(sent, send, receive)
        leaves = self.peers.exchange(leaf.flatten()[order], send, receive)
        samples, drawn = theirs.split([len(x), noise.shape[1]], dim=1)
        own = noise.new_zeros(1, 0)
        if len(leaves):
            packed = [drawn.t().unsqueeze(0).to(noise.dtype)]
            own = super().estimates(samples.t().to(x.dtype), packed, of=of, leaf=leaves.unsqueeze(0))
        answers = self.peers.exchange(own.squeeze(0).to(noise.dtype), receive, send, learns=self._learns())
        return F.pad(answers.index_select(0, order.argsort()).view(n_slots, batch), (0, unsent))

    def _learns(self) -> bool:
        """Whether gradients go back: the same answer in all processes, whatever they hold or were sent."""
        return self.learns and torch.is_grad_enabled()

    # --- what whole experts are for ---------------------------------------------------------------------------------

    def check_whole(self) -> None:
        """Refuse: this process holds a part of the experts only."""
        with self.peers.silence(self.peers.silent or "during hm.fit"):
            self.peers.check_may_talk()

    def draw(self, x: Tensor, noise: list[Tensor]) -> list[Draw]:  # noqa: ARG002
        """Refused."""
        self.check_whole()
        raise AssertionError

    def log_marginal(self, *_: object, **__: object) -> Tensor:
        """Refused."""
        self.check_whole()
        raise AssertionError

    def encode(self, x: Tensor, leaf: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Refused."""
        self.check_whole()
        raise AssertionError

    def decode(self, z: Tensor, leaf: Tensor, **_: object) -> Tensor:  # noqa: ARG002
        """Refused."""
        self.check_whole()
        raise AssertionError


def _length(rows: slice) -> int:
    return rows.stop - rows.start


@torch.no_grad()
def _replace(group: ExpertGroup, change: Callable[[Tensor], Tensor]) -> None:
    """Give every parameter and buffer of a group other content along the group axis, in place."""
    for parameter in group.parameters():
        parameter.grad = None
        parameter.data = change(parameter.data)
    for module in group.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = change(buffer)
