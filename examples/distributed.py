"""The flat mixture on MNIST by several processes, each with its part of every batch.

    torchrun --nproc-per-node 2 examples/distributed.py
    accelerate launch --num_processes 2 examples/distributed.py

One process for each GPU; on a machine without one, for each part of its cores. They end with the model that
`mnist_flat.py` trains in one. Nothing here knows of processes but for the size of a batch, and that one of them writes.
"""

import math
from dataclasses import replace

import _run
import torch
from accelerate import PartialState
from mnist_flat import make_training, make_tree

import hmoevae as hm


def main() -> None:
    """What `mnist_flat.py` does, its batch divided among the processes: `fit` takes the size of a process's part."""
    args = _run.arguments(__doc__)
    images, test = _run.load(args)
    training = _run.chosen(make_training(len(images)), args, len(images))
    processes = PartialState()
    training = replace(training, batch_size=math.ceil(training.batch_size / processes.num_processes))
    processes.print(f"{processes.num_processes} processes, {training.batch_size} images a step each")

    torch.manual_seed(args.seed)
    model = hm.HMoEVAE(make_tree(), input_shape=(1, 28, 28), objective="elbo")
    recorder = hm.SampleRecorder(n_frames=20)
    history = hm.fit(
        model, images.x, training, callbacks=[recorder], checkpoint_dir=args.checkpoints, resume=args.resume
    )

    if processes.is_main_process:
        _run.leave(model, history, recorder, (images, test), args)


if __name__ == "__main__":
    try:
        _run.run(main)
    finally:
        PartialState().destroy_process_group()
