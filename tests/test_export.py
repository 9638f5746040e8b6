"""Routing, encoders and decoders as modules: equal to the model, exported by torch, and run by ONNX Runtime."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import about, build, data_for
from test_contract import SORTS
from torch import Tensor, nn

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError

BATCHES = (1, 2, 17)
"""Sizes to run; programs are exported with another."""

pytestmark = pytest.mark.parametrize("sort", SORTS)


@pytest.fixture
def model(sort: str) -> hm.HMoEVAE:
    tree, shape, objective = SORTS[sort]
    return build(tree, shape, objective=objective).float()


@pytest.fixture
def x(sort: str) -> Tensor:
    tree, shape, _ = SORTS[sort]
    return data_for(tree, shape, max(BATCHES)).float()


def exported(module: nn.Module, example: Tensor) -> Any:
    return torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)


def test_modules_do_what_the_model_does(model, x):
    for level in (None, *range(model.plan.depth + 1)):
        torch.testing.assert_close(hm.export.routing(model, level=level)(x), model.predict_proba(x, level=level))
    z = torch.randn(17, model.experts.latent_dim, generator=torch.Generator().manual_seed(0))
    for leaf, node in enumerate(model.plan.leaves):
        encoder = hm.export.encoder(model, leaf)
        for result, latents in zip(encoder(x), model.encode(x, node=node.path, return_std=True), strict=True):
            torch.testing.assert_close(result, latents[:, : encoder.latent_dim], msg=about(f"leaf {leaf}"))
        decoder = hm.export.decoder(model, leaf)
        expected = model.decode(z, torch.full((17,), leaf))
        torch.testing.assert_close(decoder(z[:, : decoder.latent_dim]), expected, msg=about(f"leaf {leaf}"))


def test_modules_are_copies_of_what_they_need(model, x):
    last = model.plan.n_leaves - 1
    routing, encoder, decoder = hm.export.routing(model), hm.export.encoder(model, last), hm.export.decoder(model, last)
    before = routing(x), decoder(torch.ones(2, decoder.latent_dim)), *encoder(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert torch.equal(routing(x), before[0])
    assert torch.equal(decoder(torch.ones(2, decoder.latent_dim)), before[1])
    assert all(map(torch.equal, encoder(x), before[2:]))
    assert not any(p.requires_grad for m in (routing, encoder, decoder) for p in m.parameters())
    assert {routing.training, encoder.training, decoder.training} == {False}
    spec = model.plan.leaves[-1].spec
    alone = build(spec, model.input_shape, missing=model.missing).experts.groups[0]
    for module, own in ((encoder, alone.encoder), (decoder, alone.decoder)):
        # With gaps, exact posteriors are computed from the decoder and the likelihood for each sample.
        generative = module is encoder and model.missing and isinstance(spec.encoder, hm.LinearPosterior)
        likelihood = alone.likelihood.parameters() if module is decoder or generative else ()
        others = alone.decoder.parameters() if generative else ()
        assert {p.shape for p in module.parameters()} == {p.shape for p in (*own.parameters(), *likelihood, *others)}


@pytest.mark.slow
def test_torch_export_runs_any_batch_equal_to_eager(model, x):
    routing, encoder, decoder = hm.export.routing(model), hm.export.encoder(model, 0), hm.export.decoder(model, 0)
    z = torch.randn(17, decoder.latent_dim, generator=torch.Generator().manual_seed(0))
    for module, values in ((routing, x), (encoder, x), (decoder, z)):
        program = exported(module, values[:3]).module()
        for n in BATCHES:
            torch.testing.assert_close(program(values[:n]), module(values[:n]))


@pytest.mark.slow
def test_onnx_runtime_runs_any_batch_equal_to_eager(model, x, tmp_path):
    last = model.plan.n_leaves - 1
    routing, encoder, decoder = hm.export.routing(model), hm.export.encoder(model, last), hm.export.decoder(model, last)
    z = torch.randn(17, decoder.latent_dim, generator=torch.Generator().manual_seed(0))
    atol = 1e-6
    for name, module, values in (("routing", routing, x), ("encoder", encoder, x), ("decoder", decoder, z)):
        file = tmp_path / f"{name}.onnx"
        torch.onnx.export(exported(module, values[:3]), dynamo=True, verbose=False).save(file)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (argument,) = session.get_inputs()
        for n in BATCHES:
            results, expected = session.run(None, {argument.name: values[:n].numpy()}), module(values[:n])
            expected = expected if isinstance(expected, tuple) else (expected,)
            for result, own in zip(results, expected, strict=True):
                np.testing.assert_allclose(result, own.numpy(), rtol=1e-5, atol=atol, err_msg=name)


@pytest.mark.usefixtures("as_users_call")
def test_bad_arguments(model):
    n = model.plan.n_leaves
    for leaf in (-1, n, 0.0, "root", True):
        with pytest.raises(ArgumentError, match=f"leaf: expected an integer from 0 to {n - 1}, got {leaf!r}"):
            hm.export.decoder(model, leaf)
        with pytest.raises(ArgumentError, match=f"leaf: expected an integer from 0 to {n - 1}, got {leaf!r}"):
            hm.export.encoder(model, leaf)
    with pytest.raises(ArgumentError, match="level: expected an integer from 0 to the tree's depth"):
        hm.export.routing(model, level=model.plan.depth + 1)
    for given in (model.tree, hm.VAEMixture(2)):
        of_a_leaf = (lambda wrong: hm.export.encoder(wrong, 0)), (lambda wrong: hm.export.decoder(wrong, 0))
        for export in (hm.export.routing, *of_a_leaf):
            with pytest.raises(ArgumentTypeError, match=f"model: expected an HMoEVAE, got {type(given).__name__}"):
                export(given)
