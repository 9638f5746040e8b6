"""Tests of the tests: they find what is planted, and nothing else."""

import itertools

import numpy as np
import pytest
import torch

import hmoevae as hm
from hmoevae.reporting import evidence as room
from hmoevae.reporting.evidence import evidence, gap, gaps, pooled
from hmoevae.reporting.material import Feature, read
from hmoevae.reporting.routed import route


def findings_of(mixture, x, **more):
    material = read(mixture.model_, mixture.table_.encode(x), labels=None, names=None, table=mixture.table_)
    return evidence(material, route(mixture.model_, material.x), **more)


def test_statistics_are_differences_of_means_and_total_variations():
    draw = np.random.default_rng(0)
    values = np.column_stack([draw.normal(size=60), draw.integers(3, size=60)]).astype(float)
    values[::7, 0] = np.nan
    values[::11, 1] = np.nan
    features = [Feature("a", "number"), Feature("b", "category", categories=("u", "v", "w"))]
    coded, owner = room._coded(features, values)
    orders = np.stack([draw.permutation(np.arange(60) % 3) for _ in range(4)])
    found = room._statistics(orders, np.array([0, 2]), coded, owner, 2)
    for o, order in enumerate(orders):
        for c, child in enumerate((0, 2)):
            own, rest = values[order == child], values[order != child]
            assert found[o, c, 0] == pytest.approx(abs(np.nanmean(own[:, 0]) - np.nanmean(rest[:, 0])), abs=1e-5)
            shares = [
                np.array([(part[:, 1] == k).sum() for k in range(3)]) / (~np.isnan(part[:, 1])).sum()
                for part in (own, rest)
            ]
            assert found[o, c, 1] == pytest.approx(np.abs(shares[0] - shares[1]).sum(), abs=1e-5)


def test_pooled_p_values_are_even_under_the_null_hypothesis():
    draw = np.random.default_rng(0)
    scale = np.array([0.1, 1.0, 30.0])
    p = []
    for _ in range(200):
        found = np.abs(draw.normal(size=(100, 1, 3)) * scale)
        found /= np.sqrt(np.square(found[1:]).mean(0))
        p.append(pooled(found[0], found[1:]))
    p = np.array(p).ravel()
    assert np.mean(p <= 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(p <= 0.5) == pytest.approx(0.5, abs=0.07)
    assert pooled(np.zeros((1, 1)), np.zeros((9, 1, 1))).item() == 1.0


@pytest.mark.parametrize(
    "of_one_mode",
    [
        lambda draw: draw.normal(size=300),
        lambda draw: draw.uniform(size=300),
        lambda draw: draw.exponential(size=300),
        lambda draw: draw.normal(size=300).round(),
        lambda draw: draw.standard_t(2, size=300),
        lambda draw: draw.poisson(3, size=300).astype(float),
    ],
    ids=["normal", "even", "skewed", "rounded", "heavy", "counts"],
)
def test_a_cut_through_one_mode_is_no_gap(of_one_mode):
    """Wherever the cut is, which is what a gate does to a column that it splits."""
    found = []
    for seed in range(100):
        draw = np.random.default_rng(seed)
        values = of_one_mode(draw)
        cut = np.quantile(values, draw.uniform(0.25, 0.75))
        found.append(gap(values[values < cut], values[values >= cut], draw))
    assert np.mean(np.array(found) <= 0.05) <= 0.07


def test_two_modes_are_a_gap_where_the_siblings_are_its_sides():
    draw = np.random.default_rng(0)
    low, high = draw.normal(size=150), draw.normal(5, 1, size=150)
    assert gap(low, high, draw) < 1e-4
    mixed = draw.permutation(np.concatenate([low, high]))
    assert gap(*sorted((mixed[:150], mixed[150:]), key=np.median), draw) == 1.0
    child = np.repeat([0, 1], 150)
    values = np.concatenate([low, high])
    values[::9] = np.nan
    assert (gaps(values, child, 2, draw) < 1e-4).all()
    assert (gaps(values, np.full(300, -1), 2, draw) == 1).all()


def test_on_samples_that_training_has_not_seen_noise_is_not_found():
    """Of trees that were fitted to noise; a plain permutation test of the leaves finds nearly every column of them."""
    found, plain = [], []
    for seed in range(5):
        draw = np.random.default_rng(seed)
        mixture = hm.VAEMixture(2, random_state=seed).fit(draw.normal(size=(300, 6)))
        x = draw.normal(size=(500, 6))
        found.append((findings_of(mixture, x)[0].q <= 0.05).any())
        leaf = mixture.predict(x)
        order = np.stack([leaf, *(draw.permutation(leaf) for _ in range(99))])
        statistics = room._statistics(order, np.array([0]), x.astype(np.float32), np.arange(6), 6)
        plain.append((pooled(statistics[0], statistics[1:]) <= 0.05).any())
    assert np.sum(found) <= 1
    assert np.mean(plain) >= 0.8, "else there would be nothing to be honest about"


def test_what_is_planted_is_found_at_the_mixture_where_it_is():
    """Two kinds that differ in two columns, each of two styles that differ in one more."""
    draw = np.random.default_rng(0)
    kind, style = np.repeat([0, 1], 400), np.tile([0, 1], 400)
    x = draw.normal(size=(800, 6))
    x[:, 0] += 8 * kind
    x[:, 1] -= 8 * kind
    x[:, 4] += 6 * style
    leaf = hm.VAE(1, encoder=hm.LinearPosterior(), decoder=hm.MLP(()), likelihood=hm.Gaussian("learned", "identity"))
    tree = hm.Mixture.of(hm.Mixture.of(leaf, 2, gate=hm.PosteriorGate()), 2, gate=hm.PosteriorGate())
    model = hm.HMoEVAE(tree, (6,), objective="elbo").double()
    hm.fit_em(model, torch.from_numpy(x), hm.EM(max_iter=60))
    material = read(model, torch.from_numpy(x), labels=None, names=None, table=None)
    routed = route(model, material.x)
    assert hm.metrics.accuracy(2 * kind + style, routed.leaf) > 0.98
    found = evidence(material, routed)
    assert np.flatnonzero((found[0].q <= 0.05).any(0)).tolist() == [0, 1]
    for index in (1, 4):
        assert np.flatnonzero((found[index].q <= 0.05).any(0)).tolist() == [4]


def test_many_features_are_swapped_in_blocks_that_hold_each_once():
    for shape in ((1, 28, 28), (3, 9, 5), (16, 16), (70,), (5,)):
        model = hm.HMoEVAE(hm.VAE(latent_dim=1), shape)
        material = read(model, torch.rand(9, *shape), labels=None, names=None, table=None)
        blocks = room._blocks(material)
        assert sorted(itertools.chain(*blocks)) == list(range(int(np.prod(shape))))
        assert len(blocks) <= room.MOST_ALONE
    rows, columns = np.divmod(
        np.array(
            room._blocks(
                read(
                    hm.HMoEVAE(hm.VAE(latent_dim=1), (24, 24)),
                    torch.rand(2, 24, 24),
                    labels=None,
                    names=None,
                    table=None,
                )
            )[0]
        ),
        24,
    )
    assert set(rows) == set(columns) == {0, 1, 2, 3}


def test_the_same_seed_gives_the_same_tests():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(120, 3)) + 5 * np.repeat([[0], [1]], 60, axis=0)
    mixture = hm.VAEMixture(2, random_state=0).fit(x)
    one, same, other = (findings_of(mixture, x, seed=seed)[0].p for seed in (0, 0, 1))
    assert (one == same).all()
    assert (one != other).any()
