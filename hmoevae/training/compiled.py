"""CompiledPass: a model's pass compiled by `torch.compile` for batches of one size."""

from contextlib import AbstractContextManager
from types import FunctionType, MethodType

import torch
from torch import Tensor

from hmoevae.checks import check_number
from hmoevae.errors import ArgumentError, mismatch, warn
from hmoevae.model import HMoEVAE
from hmoevae.nn.draws import Share
from hmoevae.nn.kernels.memory import GLIBC_LARGEST
from hmoevae.nn.kernels.products import faster_library
from hmoevae.nn.routes import ALL
from hmoevae.nn.sample_weights import SampleWeights
from hmoevae.nn.settings import USUAL, StepSettings
from hmoevae.output import Inputs, Output


class CompiledPass:
    """A callable to use in place of a model, with the same arguments: it runs the model's pass as compiled code.

    The first batch compiles the code for batches of its size, which takes some 6 to 20 seconds on a CPU. Checks and
    random draws are not compiled, so the same generator gives the same draws. The KL weight is a constant of the code.
    These passes run uncompiled: batches of other sizes, passes without gradients, with another KL weight or a
    temperature other than 1, as those of a warm-up, with routes other than `ALL`, or with sums over processes. In the
    output, only the loss has a gradient. `hmoevae.fit` uses it with `compile=True`; in a loop of your own::

        compiled = CompiledPass(model)
        for x in batches:
            optimizer.zero_grad()
            with compiled.step():
                compiled(x).loss.backward()
            optimizer.step()

    On a CPU it warns of large layers, for which compiled steps are likely to be slower: compiled code allocates the
    memory of their gradients in every step, while plain steps reuse it (`hmoevae.StepMemory`).

    Args:
        model: The model, which is not changed.
        kl_weight: The KL weight of the passes to compile; others run uncompiled.

    Raises:
        ArgumentError: The weight is no finite number >= 0, or PyTorch is older than 2.7, whose compiler fails on trees
            of several levels. The first batch raises it where `torch.compile` does not work: on a CPU it needs a C++
            compiler.

    >>> from hmoevae import VAE, Mixture
    >>> compiled = CompiledPass(HMoEVAE(Mixture.of(VAE(latent_dim=2), 3), input_shape=(4,)))
    >>> with torch.no_grad():  # this pass runs uncompiled
    ...     compiled(torch.rand(5, 4)).leaf_elbo.shape
    torch.Size([5, 3])
    """

    def __init__(self, model: HMoEVAE, *, kl_weight: float = 1.0) -> None:
        check_number("kl_weight", kl_weight)
        if torch.__version__ < "2.7":  # its CPU code lacks scatter-add, and fails in the backward pass only
            raise ArgumentError(mismatch("compile", "False, or PyTorch 2.7 or newer", torch.__version__))
        largest = max(parameter.nbytes for parameter in model.parameters())
        if model.device.type == "cpu" and largest > GLIBC_LARGEST:
            expected = f"layers of at most {GLIBC_LARGEST >> 20} MiB"
            got = f"{largest >> 20} MiB; compiled steps are likely to be slower"
            warn(mismatch("compile", expected, got))
        self.model = model
        self.kl_weight = kl_weight
        self.batch_size: int | None = None
        plain = CompiledPass._plain
        # A code object of its own, because the compiler makes at most eight variants of one code object.
        own = FunctionType(plain.__code__.replace(), plain.__globals__, plain.__name__, None, plain.__closure__)
        self._tensors = torch.compile(MethodType(own, self), dynamic=False)

    @staticmethod
    def step() -> AbstractContextManager[None]:
        """A context for forward and backward pass, which chooses the library of `hmoevae.nn.kernels.products`."""
        return faster_library()

    def __call__(
        self,
        x: Tensor,
        *,
        view: Tensor | None = None,
        other_view: Tensor | None = None,
        sample_weight: Tensor | SampleWeights | None = None,
        settings: StepSettings = USUAL,
        generator: torch.Generator | None = None,
        share: Share | None = None,
        validate: bool = True,
    ) -> Output:
        """Run the pass; the result is that of `HMoEVAE.forward`.

        Args:
            x: As in `HMoEVAE.forward`.
            view: As in `HMoEVAE.forward`.
            other_view: As in `HMoEVAE.forward`.
            sample_weight: As in `HMoEVAE.forward`.
            settings: As in `HMoEVAE.forward`.
            generator: As in `HMoEVAE.forward`.
            share: As in `HMoEVAE.forward`.
            validate: As in `HMoEVAE.forward`.

        Raises:
            ArgumentError: This is the first batch, and `torch.compile` does not work on this machine.
        """
        inputs = self.model.prepare(
            x,
            view=view,
            other_view=other_view,
            sample_weight=sample_weight,
            settings=settings,
            generator=generator,
            share=share,
            validate=validate,
        )
        size = inputs.samples.shape[1]
        is_alone = share is None or share.importance_of_all is None
        weighed = settings.kl_weight == self.kl_weight and settings.gate_temperature == 1
        is_usual = weighed and settings.routes == ALL
        if not is_usual or not is_alone or self.batch_size not in (None, size) or not torch.is_grad_enabled():
            return self.model.compute(inputs, settings, share)
        out = self._compiled(inputs, settings)
        self.batch_size = size
        return out

    def _compiled(self, inputs: Inputs, settings: StepSettings) -> Output:
        try:
            return Output(*self._tensors(inputs, settings))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # the base class of the errors of torch._dynamo and torch._inductor
            if self.batch_size is not None:  # compiling has succeeded before, so this is another error
                raise
            lines = f"{type(error).__name__}: {error}".splitlines()
            first = next(line for line in lines if not line.endswith("raised:"))  # a heading of older versions
            expected = "False, or a machine on which torch.compile works (on a CPU it needs a C++ compiler)"
            raise ArgumentError(mismatch("compile", expected, first)) from error

    def _plain(
        self, inputs: Inputs, settings: StepSettings
    ) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor, Tensor]:
        out = self.model.compute(inputs, settings)
        terms = {name: term.detach() for name, term in out.terms.items()}
        # Only the loss has a gradient, so the other outputs cost nothing in the backward pass.
        return out.loss, terms, out.leaf_log_prob.detach(), out.edge_log_prob.detach(), out.leaf_elbo.detach()
