"""Stacked: runs a group of a user's plain modules as one, batched over their stacked weights.

Axes: `group` counts the networks, `inp` and `out` are flat features; `batch` is last. The user's module itself is
batch-first.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.lazy import LazyModuleMixin

from hmoevae.errors import SpecError, mismatch
from hmoevae.nn.attributes import has_numbers, is_same, plain_attributes
from hmoevae.nn.draws import borrowed_random_state
from hmoevae.nn.grouped import GroupedNetwork
from hmoevae.nn.rows import rows_of
from hmoevae.spec import Network


class Stacked(GroupedNetwork):
    """`groups` modules of a user's own side by side.

    Args:
        record: The user's record, whose `build` makes one module.
        groups: Number of networks.
        input_shape: Shape of one input.
        output_shape: Shape of one output.
        place: The network's name in error messages, such as `"root/0.encoder"`.

    Raises:
        SpecError: The module cannot be stacked, or its outputs have another shape; the message says why.

    >>> from hmoevae.spec import record
    >>> @record(kind="affine")
    ... class Affine(Network):
    ...     def build(self, input_shape, output_shape):
    ...         return nn.Linear(*input_shape, *output_shape)
    >>> network = Stacked(Affine(), 3, (4,), (2,), "root.gate")
    >>> network(torch.rand(4, 5)).shape, [(name, p.shape[0]) for name, p in network.named_parameters()]
    (torch.Size([3, 2, 5]), [('module.weight', 3), ('module.bias', 3)])
    """

    batched = True
    """Whether the modules run batched by `vmap`; else one by one, which `torch.export` takes with any batch size."""

    def __init__(
        self, record: Network, groups: int, input_shape: tuple[int, ...], output_shape: tuple[int, ...], place: str
    ) -> None:
        super().__init__()
        self.input_shape = input_shape
        build = partial(record.build, input_shape, output_shape)
        modules = [build() for _ in range(groups)]
        _check(modules[0], record, input_shape, output_shape, place)
        _check_equal([*modules, *_built_again(modules[0], build, record, place)], record, place)
        self.module: nn.Module = modules[0]
        states = [dict(chain(module.named_parameters(), module.named_buffers())) for module in modules]
        # By identity, not by name: a weight that two layers share stays one weight.
        by_original = {id(first): _stack([state[name] for state in states]) for name, first in states[0].items()}
        for part in self.module.modules():
            part._non_persistent_buffers_set = set()  # files hold what may differ from node to node
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        tensors[name] = by_original[id(tensor)]  # type: ignore[assignment]
        _check_runs(self, place)

    def forward(
        self, x: Float[Tensor, "inp batch"] | Float[Tensor, "group inp batch"]
    ) -> Float[Tensor, "group out batch"]:
        """Run every module on inputs that all modules share (2-D) or on inputs of its own (3-D)."""
        state = dict(chain(self.module.named_parameters(), self.module.named_buffers()))

        def one(state: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(self.module, state, (x.t().unflatten(1, self.input_shape),)).flatten(1).t()

        groups = len(next(iter(state.values())))
        if groups == 1 or not self.batched:
            own = x.unsqueeze(0).expand(groups, -1, -1) if x.ndim == 2 else x
            rows = ({name: value[i] for name, value in state.items()} for i in range(groups))
            return torch.stack([one(row, own[i]) for i, row in enumerate(rows)])
        return vmap(one, in_dims=(0, None if x.ndim == 2 else 0), randomness="different")(state, x)


def _stack(tensors: list[Tensor]) -> Tensor:
    """One parameter or buffer of all modules, with the group axis first."""
    together = torch.stack([tensor.detach() for tensor in tensors])
    first = tensors[0]
    return nn.Parameter(together, first.requires_grad) if isinstance(first, nn.Parameter) else together


def _built_again(module: nn.Module, build: Callable[[], nn.Module], record: Network, place: str) -> list[nn.Module]:
    """The record's module twice more: with other numbers, and without any, as loading makes it first."""
    if _is_outline(module):
        return []
    try:
        with borrowed_random_state(device=next(module.parameters()).device):
            again = build()
            with torch.device("meta"):
                return [again, build()]
    except Exception as error:  # whatever the function of a user raises
        expected = f"a build that runs without numbers, on torch's meta device, too, as {record}.build does in loading"
        raise SpecError(mismatch(place, expected, _first_line(error))) from error


def _check_equal(modules: list[nn.Module], record: Network, place: str) -> None:
    """Refuse modules that differ in more than the values of their weights."""
    first, *others = map(_outline, modules)
    for other in others:
        for name in first | other:
            if first.get(name) != other.get(name):
                expected = (
                    f"equal modules from {record}.build, with {first.get(name, 'nothing')} at {name or 'the root'}"
                )
                raise SpecError(mismatch(place, expected, other.get(name, "nothing")))
    fixed, *others = map(_fixed, modules)
    for other in others:
        for name, value in fixed.items():
            if not is_same(value, other.get(name)):
                expected = f"an attribute {name} of equal numbers in every module from {record}.build"
                raise SpecError(mismatch(place, expected, "others (a buffer may differ and is saved)"))


def _fixed(module: nn.Module) -> dict[str, Any]:
    """The tensors and arrays that are plain attributes of a module's parts, by name: no file holds them."""
    return {
        f"{name}.{attribute}".strip("."): value
        for name, part in module.named_modules()
        for attribute, value in plain_attributes(part)
        if has_numbers(value)
    }


def _outline(module: nn.Module) -> dict[str, str]:
    """The classes of a module's parts, and the shapes of its parameters and buffers, by name.

    Classes go by name: a class that is defined in `build`, or that a parametrisation makes, is another each time.
    """
    outline = {name: type(part).__qualname__ for name, part in module.named_modules()}
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        frozen = "" if tensor.requires_grad or not isinstance(tensor, nn.Parameter) else "frozen "
        outline[name] = f"{frozen}{tensor.dtype} of shape {tuple(tensor.shape)}"
    return outline


def _check(
    module: object, record: Network, input_shape: tuple[int, ...], output_shape: tuple[int, ...], place: str
) -> None:
    """Refuse a module that cannot be stacked or has other shapes."""
    if not isinstance(module, nn.Module):
        raise SpecError(mismatch(place, f"a torch.nn.Module from {record}.build", type(module).__name__))
    for words in _obstacles(module):
        raise SpecError(mismatch(place, _STACKABLE, words))
    if _is_outline(module):
        return
    probe = _probe(module, input_shape)
    try:
        with borrowed_random_state(device=probe.device):
            given, changed = _looked_at(module, probe)
            again, _ = _looked_at(module, probe)
            alone, _ = _looked_at(module, probe[:1])
    except _ERRORS as error:
        expected = f"a module that takes (batch, {_sizes(input_shape)})"
        raise SpecError(mismatch(place, expected, _first_line(error))) from error
    for answer, n in ((given, 2), (alone, 1)):
        if not isinstance(answer, Tensor) or tuple(answer.shape) != (n, *output_shape):
            got = f"{tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
            got += f" of {n} input{'s' * (n > 1)}"
            raise SpecError(mismatch(place, f"outputs (batch, {_sizes(output_shape)}) of {record}", got))
    if changed is not None:
        raise SpecError(mismatch(place, _STACKABLE, f"the buffer {changed}, which a call changes"))
    rounding = 4 * torch.finfo(probe.dtype).eps ** 0.5
    if _is_close(given, again, rounding) and not _is_close(given[:1], alone, rounding):  # else it draws by itself
        raise SpecError(mismatch(place, _STACKABLE, "one whose answer to a sample depends on the others of its batch"))


def _check_runs(stacked: Stacked, place: str) -> None:
    """Refuse what `vmap` cannot run, such as a branch that depends on a tensor."""
    if _is_outline(stacked):
        return
    few = rows_of(stacked, slice(2))  # one alone runs without it
    probe = _probe(stacked, stacked.input_shape).flatten(1).t()
    try:
        with borrowed_random_state(device=probe.device):
            _looked_at(few, probe)
    except _ERRORS as error:
        raise SpecError(mismatch(place, "a module that torch.func.vmap can run", _first_line(error))) from error


_STACKABLE = "a module that can be stacked"
_ERRORS = RuntimeError, ValueError, TypeError, IndexError
"""What torch raises for a shape, or an operation, that it has no rule for."""


def _is_outline(module: nn.Module) -> bool:
    """Whether a module has shapes and no numbers: nothing can be found out by running it."""
    return any(tensor.is_meta for tensor in chain(module.parameters(), module.buffers()))


def _probe(module: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """Two samples to run a module on, of numbers between 0 and 1."""
    like = next(module.parameters())
    drawn = torch.rand(2, *input_shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    return drawn.to(like.device, like.dtype)


@torch.no_grad()
def _looked_at(module: nn.Module, probe: Tensor) -> tuple[Any, str | None]:
    """What a module answers in evaluation, having run in training too, and the name of a buffer that this changed."""
    modes = {part: part.training for part in module.modules()}
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        module.train()(probe)
        answer = module.eval()(probe)
    finally:
        for part, mode in modes.items():
            part.training = mode
    changed = (name for name, buffer in module.named_buffers() if not torch.equal(buffer, before[name]))
    return answer, next(changed, None)


def _is_close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two answers are equal, to a share of the largest number."""
    largest = torch.maximum(one.abs().max(), other.abs().max())
    return bool((one - other).abs().max() <= tolerance * largest)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {f'{error}'.splitlines()[0]}" if f"{error}" else type(error).__name__


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _obstacles(module: nn.Module) -> Iterator[str]:
    """The reasons, in words, why a module cannot be stacked."""
    for name, part in module.named_modules():
        if isinstance(part, _NormBase) and part.track_running_stats:
            yield f"{type(part).__name__} at {name or 'its root'}, whose running statistics change (GroupNorm has none)"
        elif isinstance(part, _BatchNorm):
            yield f"{type(part).__name__} at {name or 'its root'}, which mixes the samples of a batch"
        if isinstance(part, LazyModuleMixin) and part.has_uninitialized_params():  # type: ignore[attr-defined]
            yield f"{type(part).__name__} at {name or 'its root'}, whose sizes are not known yet"
    for name, buffer in module.named_buffers():
        if not buffer.is_floating_point():
            yield f"the buffer {name} of {buffer.dtype} (a plain attribute will do)"
    for name, parameter in module.named_parameters():
        if not parameter.is_floating_point():
            yield f"the parameter {name} of {parameter.dtype}"
    for name, part in module.named_modules():
        for attribute, value in plain_attributes(part):
            if kind := _hidden(value):
                where = f"{name}.{attribute}".strip(".")
                remedy = "ModuleList, ParameterList and torch.nn.utils.parametrizations show it"
                yield f"a {kind} in the attribute {where}, where torch does not see it ({remedy})"
    if next(module.parameters(), None) is None:
        yield "one without parameters"


def _hidden(value: object) -> str | None:
    """What torch does not see in a plain attribute, list or dictionary, so that it would neither learn nor be saved."""
    if isinstance(value, nn.Module) or (isinstance(value, Tensor) and value.requires_grad):
        return type(value).__name__
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return next((kind for part in parts if (kind := _hidden(part))), None)
