"""Compiled passes against those that PyTorch runs one operation at a time: outputs, gradients, whole trainings.

In a process of its own, without the run-time checks of shapes that the other tests switch on: torch.compile cannot look
into them.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import hmoevae as hm
from hmoevae.errors import ArgumentError
from hmoevae.training import CompiledPass

pytestmark = pytest.mark.slow

WORKER = Path(__file__).parent / "compiling.py"


def run(*argv: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, str(WORKER), *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def passes(compiler: None) -> dict[str, Any]:
    return run("passes")


@pytest.mark.parametrize(
    "case", ["gaussian", "bernoulli", "continuous", "conv", "bf16", "gaps", "posteriors", "posteriors with gaps"]
)
def test_outputs_and_gradients_are_those_without_it(passes: dict[str, Any], case: str) -> None:
    """To the rounding of the precision, relative to the largest entry of each."""
    errors = passes[case]
    assert {"loss", "leaf_elbo", "leaf_log_prob", "edge_log_prob", "elbo", "balance"} <= errors.keys()
    assert sum(name.startswith("gradient") for name in errors) > 8
    assert max(errors.values()) < (0.05 if case == "bf16" else 2e-5), errors


def test_draws_are_those_of_the_generator(passes: dict[str, Any]) -> None:
    assert passes["draws"] == {"same": True, "other": False}


def test_other_passes_run_as_without_it(passes: dict[str, Any]) -> None:
    """Of the sizes 5, 3, 5, then without gradients, with another weight of the KL, routes, a share, a share of all."""
    assert passes["compiled_calls"] == 3


def test_the_weight_of_the_kl_is_a_constant_of_the_code(passes: dict[str, Any]) -> None:
    assert passes["weighed"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("how", "calls"),
    [
        ("plain training", 6 * 4),  # four batches of five an epoch; the three samples left run without it
        ("start", 5 * 4),
        ("agreement", 4 * 4),
        ("warm-up", 4 * 4),
        ("another weight", 6 * 4),
        ("warm-up to another weight", 3 * 4),
        ("loader", 6 * 4),
        ("few samples", 6),
    ],
)
def test_fit_trains_to_the_same_losses_and_hangs_nothing_on_the_model(
    passes: dict[str, Any], how: str, calls: int
) -> None:
    fit = passes["fit"][how]
    assert fit["compiled"] == pytest.approx(fit["plain"], rel=1e-4)
    assert fit["calls"] == calls
    assert fit["left"] == []


def test_torch_compile_of_a_model_takes_batches_of_any_size(passes: dict[str, Any]) -> None:
    assert passes["sizes"] == [[8, 4], [8, 4], [5, 4], [1, 4]]


def test_every_model_has_code_of_its_own(passes: dict[str, Any]) -> None:
    """The compiler makes only so many variants of a function, by default eight, and then none, without a word."""
    assert passes["models_compiled"] == 3


def test_other_errors_keep_their_words(passes: dict[str, Any]) -> None:
    assert passes["bad_levels"] == "agreement_levels: expected ascending levels from 1 to the tree's depth 2, got (3,)"
    assert passes["later_error"] == "RuntimeError: out of memory"


def test_pytorch_2_6_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its compiler fails in the backward pass of trees with several levels, with an assertion of its own."""
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.6.0+cpu"))
    model = hm.HMoEVAE(hm.VAE(latent_dim=2), (4,))
    with pytest.raises(ArgumentError, match=r"compile: expected False, or PyTorch 2\.7 or newer, got 2\.6\.0"):
        hm.fit(model, torch.rand(8, 4), hm.Training(compile=True), progress=False)


@pytest.mark.skipif(torch.__version__ < "2.7", reason="compiled passes need PyTorch 2.7")
def test_a_weight_that_is_none_is_refused(as_users_call: None) -> None:
    with pytest.raises(ArgumentError, match="kl_weight: expected a finite number >= 0, got -1"):
        CompiledPass(hm.HMoEVAE(hm.VAE(latent_dim=2), (4,)), kl_weight=-1.0)


@pytest.mark.skipif(torch.__version__ < "2.7", reason="compiled passes need PyTorch 2.7")
def test_layers_too_large_to_gain_are_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    small, large = (hm.HMoEVAE(hm.VAE(2, hm.MLP((n,)), hm.MLP((4,))), (1024,)) for n in (8, 8192))
    CompiledPass(small)
    assert not recwarn
    with pytest.warns(UserWarning, match="compile: expected layers of at most 31 MiB, got 32 MiB"):
        CompiledPass(large)


@pytest.mark.skipif(torch.__version__ < "2.7", reason="compiled passes need PyTorch 2.7")
def test_without_a_compiler_fit_says_so() -> None:
    answer = run("broken")
    assert answer["error"].startswith(
        "ArgumentError: compile: expected False, or a machine on which torch.compile works"
    )


def test_compile_is_a_truth_value(as_users_call: None) -> None:
    model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 2), (4,))
    with pytest.raises(hm.errors.ArgumentTypeError, match="compile: expected True or False, got 'max-autotune'"):
        hm.fit(model, torch.rand(8, 4), hm.Training(compile="max-autotune"))  # type: ignore[arg-type]
