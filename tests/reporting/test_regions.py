"""The region by which a report tells two leaves apart is the bar that was drawn through half of the sevens."""

import dataclasses
import os
from pathlib import Path

import barred_sevens
import numpy as np
import pytest
import torch
from recipes import styles_training

import hmoevae as hm
from hmoevae.datasets import LabelledImages
from hmoevae.reporting.evidence import evidence
from hmoevae.reporting.facts import region_of
from hmoevae.reporting.material import read
from hmoevae.reporting.moments import moments
from hmoevae.reporting.routed import route

HAS_MNIST = Path(os.environ.get("HMOEVAE_DATA", "."), "MNIST", "raw").is_dir()


@pytest.mark.slow
@pytest.mark.skipif(not HAS_MNIST, reason="needs real MNIST: set HMOEVAE_DATA to a folder with MNIST/raw/ in it")
def test_the_region_is_the_bar():
    """Two leaves that nobody told of bars, trained on sevens; overlap over union with half the most ink drawn."""
    draw = np.random.default_rng(barred_sevens.DRAWING_SEED)
    sevens = [LabelledImages(split.name, split.x[split.y == 7], split.y[split.y == 7]) for split in hm.datasets.mnist()]
    (train, _), (test, drawn) = (barred_sevens.with_bars(split, draw) for split in sevens)
    layer = hm.MLP((128,))
    leaf = hm.VAE(10, encoder=layer, decoder=layer, likelihood=hm.Gaussian(scale=0.5, mean="sigmoid"))
    tree = hm.Mixture.of(leaf, 2, gate=hm.Conv(), balance=hm.Balance("kl", 20.0))
    torch.manual_seed(0)
    model = hm.HMoEVAE(tree, (1, 28, 28), objective="elbo")
    training = dataclasses.replace(styles_training(len(train)), epochs=24, seed=0, device="cpu", precision="fp32")
    hm.fit(model, train.x, training, progress=False)
    assert hm.metrics.purity(drawn.long(), model.predict(test.x)) > 0.85

    material = read(model, test.x, labels=None, names=None, table=None)
    routed = route(model, material.x)
    found = moments(model.plan, routed, material.columns)
    ink = (test.x - sevens[1].x)[drawn].mean((0, 1)).numpy()
    bar = ink >= ink.max() / 2
    for node in model.plan.leaves:
        region = region_of(material, found, evidence(material, routed), node)
        overlap = (region & bar).sum() / (region | bar).sum()
        assert overlap > 0.6, f"{overlap:.2f}"
