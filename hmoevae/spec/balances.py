"""Balances as data: the term that keeps a mixture from sending all samples to one child."""

import functools
from typing import Annotated, Any

from pydantic import BeforeValidator

from hmoevae.spec.record import REGISTER, NonNegativeFloat, Registered, expected, record


def _registered(value: Any) -> Any:
    if not REGISTER.has(value, Balance):
        *others, last = map(repr, REGISTER.kinds(Balance))
        raise expected(f"{', '.join(others)} or {last}")
    return value


@record()
class Balance:
    """The term that keeps a mixture from sending all samples to one child; formulas in `hmoevae.nn.balance`.

    Args:
        kind: `"variance"`: population variance of the children's importance, which is a sum over the batch, so its
            strength grows with the batch size; `"cv2"`: squared coefficient of variation (Shazeer et al. 2017);
            `"kl"`: divergence of the mean usage from the prior, in nats; or a kind of your own (`hmoevae.balance`).
        weight: Factor of the term; 0 switches it off.

    >>> print(Balance("kl", weight=20))
    balance kl 20
    """

    kind: Annotated[str, BeforeValidator(_registered)] = "variance"
    weight: NonNegativeFloat = 0.1

    def __str__(self) -> str:
        return f"balance {self.kind} {self.weight:g}"


def register_balance(kind: str, origin: tuple[str, str]) -> None:
    """Let `Balance` be of a kind, in Python and in files; `hmoevae.nn.balance.balance` says what it computes.

    Args:
        kind: Its name.
        origin: Module and name of the function that computes it.

    Raises:
        SpecError: Something else has that kind already.
    """
    REGISTER.add(kind, Registered(Balance, functools.partial(Balance, kind), "Balance(...)", origin))


for _kind in ("variance", "cv2", "kl"):
    register_balance(_kind, ("hmoevae.nn.balance", _kind))
