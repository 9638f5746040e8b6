"""EM: fits trees whose leaves are factor analysers in closed form, without gradients."""

from hmoevae.em.fitting import fit_em
from hmoevae.em.record import EM

__all__ = ["EM", "fit_em"]
