"""EM: fits trees whose leaves are factor analysers in closed form, without gradients."""

from hmoevae.em.fitting import fit_em
from hmoevae.em.record import EM
from hmoevae.em.stepwise import Step, step_em

__all__ = ["EM", "Step", "fit_em", "step_em"]
