"""The facts of a report as plain data: what the page shows of every node.

Axes: `node` as in `hmoevae.plan`, `kept` the features that the page has distributions of.
"""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hmoevae.plan import PlannedNode
from hmoevae.reporting import pictures as drawing
from hmoevae.reporting.choices import Unsure, nearest, odd, typical, typicality, unsure
from hmoevae.reporting.differences import apart, differences, parents, region
from hmoevae.reporting.effects import of_node, without
from hmoevae.reporting.evidence import Findings, evidence, n_tested
from hmoevae.reporting.gates import gates
from hmoevae.reporting.material import Material
from hmoevae.reporting.moments import Moments, bins_of, compared, histogram, moments
from hmoevae.reporting.pictures import Scale, Sheet
from hmoevae.reporting.routed import Routed, route

MOST_PIXELS = 9_000_000
"""Pixels of all pictures of samples; a tree of many nodes has fewer pictures of each."""
MOST_STEPS = 3_000_000
"""Pixels of all pictures on the way along a latent."""
MOST_CELLS = 64_000
"""Distributions in a page, one for each node and feature; a tree of many nodes has those of fewer features."""
STEPS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
"""Where the pictures along a latent lie, in standard deviations of the prior."""
LISTED = 12
"""Features that are listed for a node."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """How many samples of each sort a node shows.

    >>> Amounts.of(30, 784) == Amounts(), Amounts.of(1000, 784)
    (True, Amounts(typical=3, unsure=2, odd=2, drawn=2))
    """

    typical: int = 12
    unsure: int = 8
    odd: int = 8
    drawn: int = 6

    @classmethod
    def of(cls, n_leaves: int, n_pixels: int) -> "Amounts":
        """The amounts for each leaf that a page has room for. Mixtures, of which there are fewer, show the usual ones.

        >>> Amounts.of(3, 1).typical
        12
        """
        usual = cls()
        each = usual.typical + usual.unsure + usual.odd + 2 * usual.drawn
        part = min(1.0, MOST_PIXELS / (n_leaves * n_pixels * each))
        kinds = ("typical", "unsure", "odd", "drawn")
        return cls(*(max(2, round(getattr(usual, kind) * part)) for kind in kinds))


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """What the page is told: plain data, and sheets of pictures by name.

    >>> Facts({"n": 1}, {}).data["n"]
    1
    """

    data: dict[str, Any]
    sheets: dict[str, Sheet]


@dataclass(frozen=True, slots=True, eq=False)
class _Chosen:
    """The samples that the page shows of every node."""

    typical: list[list[int]]
    unsure: list[list[Unsure]]
    odd: list[list[int]]
    nearest: list[list[int]]
    drawn: list[Float[Tensor, "drawn *input_shape"]]

    def shown(self) -> list[int]:
        """Every sample, once."""
        lists = (*self.typical, *self.odd, *self.nearest, *([s.sample for s in own] for own in self.unsure))
        return sorted({sample for own in lists for sample in own})


def facts(material: Material) -> Facts:
    """Everything that the page shows of nodes.

    Args:
        material: What the report is of.

    >>> import hmoevae as hm
    >>> from hmoevae.reporting.material import read
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(4,))
    >>> found = facts(read(model, torch.rand(40, 4), labels=None, names=None, table=None))
    >>> sum(found.data["count"][1:]), found.data["parent"], list(found.sheets)
    (40, [-1, 0, 0, 0], [])
    """
    model, plan = material.model, material.model.plan
    routed = route(model, material.x)
    values = compared(material.features, material.columns)
    found = moments(plan, routed, values)
    findings = evidence(material, routed)
    n_pixels = int(np.prod(drawing.size_of(model.input_shape))) if material.kind == "images" else 1
    chosen = _choose(material, routed, values, Amounts.of(plan.n_leaves, n_pixels))
    data = _nodes(material, routed) | _picks(material, chosen) | {"gates": _gates(material, routed)}
    if material.kind == "images":
        more, sheets = _images(material, routed, found, findings, chosen)
    else:
        more, sheets = _columns(material, routed, found, findings, chosen), {}
    return Facts(data | more, sheets)


def _nodes(material: Material, routed: Routed) -> dict[str, Any]:
    """The tree, with counts, priors and labels."""
    plan, names = material.model.plan, material.model.plan.names
    above = parents(plan)
    prior = material.model.prior.leaf_log_prob().detach().exp().cpu().double().numpy()
    ends = [(node.leaves.start, node.leaves.stop) for node in plan.nodes]
    data: dict[str, Any] = {
        "n": len(material.x),
        "kind": material.kind,
        "parent": [above[node.index].index if node.index in above else -1 for node in plan.nodes],
        "name": [names[node.path] for node in plan.nodes],
        "count": [int(routed.start[stop] - routed.start[start]) for start, stop in ends],
        "prior": [_short(prior[start:stop].sum()) for start, stop in ends],
        "labels": list(material.label_names),
        "tested": n_tested(material),
    }
    if material.label is not None:
        data["labelCounts"] = [
            _sparse(np.bincount(material.label[routed.samples_of(node)], minlength=len(material.label_names)))
            for node in plan.nodes
        ]
    return data


def _sparse(counts: np.ndarray) -> list[list[int]]:
    return [[int(i), int(counts[i])] for i in np.flatnonzero(counts)]


def _gates(material: Material, routed: Routed) -> dict[str, Any]:
    found = gates(material, routed)
    return {
        str(index): {
            "entropy": _short(gate.entropy),
            "confidence": gate.confidence.tolist(),
            "experts": [[_short(a), _short(b), n] for a, b, n in gate.experts],
            "labels": gate.labels and [[_short(a), _short(b), n] for a, b, n in gate.labels],
        }
        for index, gate in found.items()
    }


# --- samples ----------------------------------------------------------------------------------------------------------


def _choose(material: Material, routed: Routed, values: Float[np.ndarray, "n feature"], of_leaves: Amounts) -> _Chosen:
    model, plan = material.model, material.model.plan
    rank = typicality(routed, material.features, values)
    chosen = _Chosen([], [], [], [], [])
    observe = material.kind != "images"  # rows with their noise; images without, as everywhere
    generator = torch.Generator(model.device if observe else "cpu").manual_seed(0)
    for node in plan.nodes:
        amounts = Amounts() if node.child_edges else of_leaves
        new = model.sample(amounts.drawn, node=node.path, observe=observe, generator=generator).cpu().float()
        own = routed.samples_of(node)
        found = nearest(new.flatten(1), material.x[own].flatten(1).float()).numpy() if len(own) else own
        chosen.drawn.append(new)
        chosen.nearest.append(own[found].tolist())
        chosen.typical.append(typical(routed, rank, node, amounts.typical))
        chosen.unsure.append(unsure(routed, plan, node, amounts.unsure))
        chosen.odd.append(odd(routed, node, amounts.odd))
    return chosen


def _picks(material: Material, chosen: _Chosen) -> dict[str, Any]:
    """The samples of every node by number, and what is known of each sample that is shown."""
    shown = chosen.shown()
    return {
        "typical": chosen.typical,
        "unsure": [
            [[s.sample, s.own, _short(s.probability), s.other, _short(s.other_probability)] for s in own]
            for own in chosen.unsure
        ],
        "odd": chosen.odd,
        "nearest": chosen.nearest,
        "drawn": [len(new) for new in chosen.drawn],
        "shown": shown,
        "shownLabel": [] if material.label is None else material.label[shown].tolist(),
    }


# --- images -----------------------------------------------------------------------------------------------------------


def _images(
    material: Material, routed: Routed, found: Moments, findings: dict[int, Findings], chosen: _Chosen
) -> tuple[dict[str, Any], dict[str, Sheet]]:
    scale, shape = drawing.scale_of(material.x), tuple(material.x.shape[1:])
    height, width = drawing.size_of(shape)

    def pictures(samples: Tensor) -> Tensor:
        return drawing.pictures(samples, scale)

    def of(lists: list[list[int]]) -> Tensor:
        return material.x[[sample for own in lists for sample in own]]

    mean = torch.from_numpy(found.mean).float().unflatten(1, shape)
    sets = {
        "typical": of(chosen.typical),
        "unsure": of([[s.sample for s in own] for own in chosen.unsure]),
        "odd": of(chosen.odd),
        "nearest": of(chosen.nearest),
        "drawn": torch.cat(chosen.drawn),
    }
    sheets = {"mean": drawing.sheet(pictures(mean), lossless=True)}
    sheets |= {name: drawing.sheet(pictures(x), lossless=False) for name, x in sets.items() if len(x)}
    latents, ways = _ways(material, routed, height * width)
    sheets["ways"] = drawing.sheet(pictures(ways), lossless=False)
    data = {
        "width": width,
        "height": height,
        "regions": _regions(material, found, findings),
        "latents": latents,
        "steps": list(STEPS),
    }
    return data, sheets


def _ways(material: Material, routed: Routed, n_pixels: int) -> tuple[list[list[int]], Tensor]:
    """The latents of every leaf that vary most over its samples, and what lies along each of them."""
    model, plan = material.model, material.model.plan
    room = max(1, MOST_STEPS // (n_pixels * len(STEPS) * plan.n_leaves))
    latents, z = [], []
    for leaf in plan.leaves:
        own = routed.latent[routed.samples_of(leaf)][:, : leaf.spec.latent_dim]  # type: ignore[union-attr]  # a leaf's
        spread = own.var(0) if len(own) else np.zeros(own.shape[1])
        latents.append(np.argsort(-spread, kind="stable")[:room].tolist())
        for latent in latents[-1]:
            way = torch.zeros(len(STEPS), model.experts.latent_dim)
            way[:, latent] = torch.tensor(STEPS)
            z.append(way)
    times = torch.tensor([len(own) * len(STEPS) for own in latents])
    ways = model.decode(torch.cat(z), torch.repeat_interleave(torch.arange(plan.n_leaves), times))
    return latents, ways.cpu()


def _regions(material: Material, found: Moments, findings: dict[int, Findings]) -> list[list[Any] | None]:
    """For every node the largest effect against its siblings, and the region as bits; nothing at the root."""
    plan, regions = material.model.plan, []
    above = parents(plan)
    for node in plan.nodes:
        mask = region_of(material, found, findings, node)
        if mask is None:
            regions.append(None)
            continue
        one = of_node(found, node.index)
        other = without(of_node(found, above[node.index].index), one)
        spread = np.sqrt((one.std**2 + other.std**2) / 2)
        inside = np.broadcast_to(mask, material.x.shape[1:]).ravel()
        size_of = np.abs(np.nan_to_num(one.mean - other.mean)) / np.maximum(spread, 1e-6)
        largest = float(size_of[inside].max(initial=0.0))
        small = drawing.pictures(torch.from_numpy(mask[None].astype(np.float32)), Scale(0.0, 1.0))[0, 0] >= 128
        regions.append([_short(largest), _packed(np.packbits(small.numpy().ravel()))])
    return regions


def region_of(
    material: Material, found: Moments, findings: dict[int, Findings], node: PlannedNode
) -> np.ndarray | None:
    """The region that tells a node's images from its siblings'; `None` at the root and where one of both has none.

    Args:
        material: The images.
        found: The moments of their pixels.
        findings: The tests.
        node: The node.

    >>> import hmoevae as hm
    >>> from hmoevae.reporting.material import read
    >>> model = hm.HMoEVAE(hm.VAE(latent_dim=2), input_shape=(1, 8, 8))
    >>> material = read(model, torch.rand(9, 1, 8, 8), labels=None, names=None, table=None)
    >>> found = moments(model.plan, route(model, material.x), material.columns)
    >>> region_of(material, found, {}, model.plan.nodes[0]) is None
    True
    """
    parent = parents(material.model.plan).get(node.index)
    if parent is None:
        return None
    one = of_node(found, node.index)
    other = without(of_node(found, parent.index), one)
    if not (one.observed.any() and other.observed.any()):
        return None
    tested = findings.get(parent.index)
    is_tested = tested is not None and node.index in tested.children
    q = tested.q[tested.children.index(node.index)] if tested is not None and is_tested else np.ones(len(one.mean))
    return region(one, other, q, material.model.input_shape)


# --- tables -----------------------------------------------------------------------------------------------------------


def _columns(
    material: Material, routed: Routed, found: Moments, findings: dict[int, Findings], chosen: _Chosen
) -> dict[str, Any]:
    plan, columns = material.model.plan, material.columns
    effect, share = apart(material, routed, found)
    room = max(LISTED, MOST_CELLS // len(plan.nodes))
    kept = np.sort(np.argsort(-share.max(0), kind="stable")[:room])
    bins = [bins_of(material.features[i], columns[:, i]) for i in kept]
    above = parents(plan)
    told: list[list[list[float | int | None]]] = []
    for node in plan.nodes:
        parent = above.get(node.index)
        tested = None if parent is None else findings.get(parent.index)
        most = 0 if parent is None else LISTED
        listed = differences(node.index, effect[:, kept], share[:, kept], _only(tested, kept), most)
        told.append([[d.feature, _short(d.effect), _short(d.apart), _short(d.q)] for d in listed])
    features = [material.features[i] for i in kept]
    histograms = [histogram(plan, routed, own, columns[:, i]) for i, own in zip(kept, bins, strict=True)]
    return {
        "nFeatures": len(material.features),
        "features": [
            {"name": f.name, "kind": f.kind, "mean": f.mean, "scale": f.scale, "log": f.log, "categories": f.categories}
            | {"edges": [_short(e) for e in own.edges], "bars": own.categories}
            for f, own in zip(features, bins, strict=True)
        ],
        "differences": told,
        "observed": _packed(found.observed[:, kept].astype(np.float32)),
        "means": _packed(found.mean[:, kept].astype(np.float32)),
        "stds": _packed(found.std[:, kept].astype(np.float32)),
        "histograms": _packed(np.concatenate([_as_bytes(h).ravel() for h in histograms])),
        "rows": _packed(columns[chosen.shown()][:, kept].astype(np.float32)),
        "drawnRows": _packed(torch.cat(chosen.drawn).flatten(1).numpy()[:, kept].astype(np.float32)),
    }


def _only(findings: Findings | None, kept: np.ndarray) -> Findings | None:
    return None if findings is None else Findings(findings.children, findings.p[:, kept], findings.q[:, kept])


def _as_bytes(counts: np.ndarray) -> np.ndarray:
    """Histograms of which the highest bar is 255."""
    return np.rint(255 * counts / np.maximum(counts.max(1, keepdims=True), 1)).astype(np.uint8)


def _packed(values: np.ndarray) -> str:
    """An array as base64, little-endian."""
    return base64.b64encode(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()).decode()


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None
