"""CompiledPass: the arithmetic of a model's pass as code that `torch.compile` makes for batches of one size."""

from contextlib import AbstractContextManager
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from hmoevae.errors import ArgumentError, mismatch, warn
from hmoevae.model import HMoEVAE
from hmoevae.nn.grouped import GroupedLinear
from hmoevae.nn.kernels.memory import GLIBC_LARGEST
from hmoevae.nn.kernels.products import faster_library
from hmoevae.output import Inputs, Output


class CompiledPass:
    """Compiled code in place of a model's own pass between `attach` and `detach`, for batches of one size.

    It is made at the first batch, whose size it is for, which takes some 6 to 20 seconds on a CPU. Checks and draws
    stay outside, so the same generator gives the same draws. Batches of other sizes, passes without gradients and those
    with a weight of the KL or a temperature other than 1 run as without it. Of the output only the loss has a gradient.
    `hmoevae.fit` uses it where `compile=True`; in a loop of your own::

        compiled = CompiledPass(model)
        compiled.attach()
        for x in batches:
            optimizer.zero_grad()
            with compiled.step():
                model(x).loss.backward()
            optimizer.step()
        compiled.detach()

    On a CPU it warns of layers whose gradient is so large that compiled code is likely to be slower: it asks the system
    for that memory at every step, where plain steps use theirs again (`hmoevae.StepMemory`).

    Args:
        model: The model.

    Raises:
        ArgumentError: PyTorch is older than 2.7, whose compiler fails on trees of several levels. At the first batch,
            where `torch.compile` does not work here: on a CPU it needs a C++ compiler.

    >>> from hmoevae import VAE, Mixture
    >>> model = HMoEVAE(Mixture.of(VAE(latent_dim=2), 3), input_shape=(4,))
    >>> compiled = CompiledPass(model)
    >>> compiled.attach()
    >>> with torch.no_grad():  # so not by compiled code
    ...     model(torch.rand(5, 4)).leaf_elbo.shape
    torch.Size([5, 3])
    >>> compiled.detach()
    """

    def __init__(self, model: HMoEVAE) -> None:
        if torch.__version__ < "2.7":  # its code for the CPU has no scatter-add, only found out in the backward pass
            raise ArgumentError(mismatch("compile", "False, or PyTorch 2.7 or newer", torch.__version__))
        layers = (layer for layer in model.modules() if isinstance(layer, GroupedLinear))
        largest = max(layer.weight.nbytes for layer in layers)
        if model.device.type == "cpu" and largest > GLIBC_LARGEST:
            expected = f"layers of at most {GLIBC_LARGEST >> 20} MiB for a gain"
            got = f"{largest >> 20} MiB; compiled steps are likely to be slower"
            warn(mismatch("compile", expected, got))
        self.model = model
        self.batch_size: int | None = None
        plain = CompiledPass._plain
        # With a code object of its own: the compiler makes no more than eight variants of one, all models together.
        own = FunctionType(plain.__code__.replace(), plain.__globals__, plain.__name__, None, plain.__closure__)
        self._tensors = torch.compile(MethodType(own, self), dynamic=False)

    def attach(self) -> None:
        """Let the model's passes run here."""
        self.model.compiled = self

    def detach(self) -> None:
        """Undo `attach`."""
        self.model.compiled = None

    @staticmethod
    def step() -> AbstractContextManager[None]:
        """For forward and backward pass: products go to the faster library (see `hmoevae.nn.kernels.products`)."""
        return faster_library()

    def __call__(self, inputs: Inputs, *, kl_weight: float, gate_temperature: float, **settings: Any) -> Output:
        """As `HMoEVAE.compute`."""
        size = inputs.samples.shape[1]
        is_usual = kl_weight == gate_temperature == 1 and self.batch_size in (None, size)
        if not is_usual or not torch.is_grad_enabled():
            return self.model.compute(inputs, kl_weight=kl_weight, gate_temperature=gate_temperature, **settings)
        try:
            out = Output(*self._tensors(*inputs, settings))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of which torch._dynamo's and torch._inductor's are
            if self.batch_size is not None:  # there is code, so it is another error
                raise
            lines = f"{type(error).__name__}: {error}".splitlines()
            first = next(line for line in lines if not line.endswith("raised:"))  # a heading of older versions
            expected = "False, or a machine on which torch.compile works (on a CPU it needs a C++ compiler)"
            raise ArgumentError(mismatch("compile", expected, first)) from error
        self.batch_size = size
        return out

    def _plain(self, *arguments: Any) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor, Tensor]:
        *inputs, settings = arguments
        out = self.model.compute(Inputs(*inputs), kl_weight=1.0, gate_temperature=1.0, **settings)
        terms = {name: term.detach() for name, term in out.terms.items()}
        # Without a gradient of their own the others cost the backward pass nothing.
        return out.loss, terms, out.leaf_log_prob.detach(), out.edge_log_prob.detach(), out.leaf_elbo.detach()
