"""The arithmetic of the layers: y = W x + b, activations, readouts.

Layers call `affine`, `activate` and `readout`, and nothing else of this folder. These choose between two backends
(`choice.py`): PyTorch's own operations (`plain.py`), and functions for the CPU with gradients written by hand
(`cpu.py`). Both give the same outputs and gradients.
"""

from hmoevae.nn.kernels.choice import activate, affine, readout
from hmoevae.nn.kernels.memory import StepMemory

__all__ = ["StepMemory", "activate", "affine", "readout"]
