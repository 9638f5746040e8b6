"""The networks a plan is run with: grouped layers, likelihoods, experts, gates, and the objectives that train them."""

from hmoevae.nn.experts import Experts
from hmoevae.nn.gates import Gates
from hmoevae.nn.grouped import GroupedLinear, GroupedMLP

__all__ = ["Experts", "Gates", "GroupedLinear", "GroupedMLP"]
