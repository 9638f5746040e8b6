"""A network of one's own: dense, with residual blocks and dropout, for encoders, decoders and gates.

>>> import torch
>>> tree = hm.Mixture.of(hm.VAE(2, encoder=Residual(), decoder=Residual(width=32)), 3, gate=Residual(16))
>>> model = hm.HMoEVAE(tree, input_shape=(1, 4, 4))
>>> model.reconstruct(torch.rand(5, 1, 4, 4)).shape
torch.Size([5, 1, 4, 4])
"""

import math

from torch import Tensor, nn

import hmoevae as hm


@hm.record(kind="residual")
class Residual(hm.Network):
    """Dense blocks, each of which adds to what it reads."""

    width: int = 64
    blocks: int = 1
    dropout: float = 0.0

    def build(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> nn.Module:
        """One network with fresh weights."""
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(input_shape), self.width),
            *(Block(self.width, self.dropout) for _ in range(self.blocks)),
            nn.Linear(self.width, math.prod(output_shape)),
            nn.Unflatten(1, output_shape),
        )


class Block(nn.Module):
    """x + f(x)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, width) to the same."""
        return x + self.inner(x)
