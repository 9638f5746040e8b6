"""The flat mixture on MNIST by several processes, each with its part of every batch.

    torchrun --nproc-per-node 2 examples/distributed.py
    accelerate launch --num_processes 2 examples/distributed.py

One process for each GPU; on a machine without one, for each part of its cores (`accelerate launch --cpu ...`). They end
with the model that `mnist_flat.py` trains in one. Nothing here knows of processes but for the size of a batch.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import _run
from _recipes import RECIPES, Layout, Trained, Training
from accelerate import PartialState
from torch import Tensor

Run = Callable[[Layout, Tensor, Training], Trained]


def divided(run: Run, layout: Layout, x: Tensor, training: Training) -> Trained:
    """The recipe's batch, divided among the processes: `fit` takes the size of a process's part."""
    batch_size = math.ceil(training.batch_size / PartialState().num_processes)
    return run(layout, x, replace(training, batch_size=batch_size))


if __name__ == "__main__":
    recipes = {name: replace(recipe, run=partial(divided, recipe.run)) for name, recipe in RECIPES.items()}
    try:
        _run.main("flat", recipes, "Ten VAE experts and one gate on MNIST, by several processes.", load=_run.load_mnist)
    finally:
        PartialState().destroy_process_group()
