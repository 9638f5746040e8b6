"""The model card: the README.md of a saved model, as the Hugging Face Hub shows it."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, SupportsFloat, runtime_checkable

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hmoevae.errors import ArgumentError, ArgumentTypeError, mismatch
from hmoevae.spec import Tree

CARD_NAME = "README.md"
TRAINING_NAME = "training.json"
_TEMPLATE = """\
---
{{ card_data }}
---

# A hierarchical mixture of variational auto-encoders

{{ facts }}

## Tree

```text
{{ tree }}
```

## Data

{{ data }}

## Training

{{ training }}

## Metrics

{{ metrics }}

## Usage

```python
{{ usage }}
```
"""
_USAGE = """\
import torch

import hmoevae as hm

model = hm.HMoEVAE.from_pretrained({source})
x = {x}  # in place of your samples
model.predict_proba(x)  # (8, {n_leaves}): which leaf, by the gates
model.sample(8)  # new samples"""
_NO_DIGEST = b"0" * 64
# A card that has been edited no longer matches the digest at its end, and is not overwritten.
_SEAL = b"\n<!-- hmoevae writes this card anew with the model, until somebody edits it: %s -->\n"


@runtime_checkable
class TrainingRecord(Protocol):
    """A training as data, such as `hmoevae.Training`; the card shows its `str`.

    >>> isinstance("epochs=20", TrainingRecord)
    False
    """

    def to_json(self) -> str:
        """The record as JSON."""
        ...


@dataclass(frozen=True)
class ModelFacts:
    """The part of a model card that the model knows.

    Args:
        tree: The model's tree, which the card prints.
        input_shape: Shape of one sample.
        objective: The model's objective.
        n_parameters: Number of parameters.
        example: A value that samples may have; `None` if samples may have every value from 0 to 1.

    >>> from hmoevae.spec import VAE
    >>> str(ModelFacts(VAE(latent_dim=2), (4,), "elbo", 1234))
    'Samples of shape (4,), objective `elbo`, 1,234 parameters.'
    """

    tree: Tree
    input_shape: tuple[int, ...]
    objective: str
    n_parameters: int
    example: float | None = None

    def __str__(self) -> str:
        """One line."""
        return f"Samples of shape {self.input_shape}, objective `{self.objective}`, {self.n_parameters:,} parameters."


@dataclass(frozen=True)
class CardInfo:
    """The part of a model card that the model does not know: its data, its training and its metrics.

    Args:
        dataset: Name of the data; `None` leaves them undescribed.
        description: More about the data, in Markdown.
        dataset_id: The data's id on the Hugging Face Hub, such as `"ylecun/mnist"`, if they are there.
        split: The part of the data on which the metrics were measured, such as `"test"`.
        metrics: Values by name, such as the result of `hmoevae.metrics.report`.
        training: The training that `hmoevae.fit` was called with.

    Raises:
        ArgumentError: The name is empty, or a metric is not finite.
        ArgumentTypeError: The metrics are not a mapping, one of them is not a number, or the training is no record.

    >>> CardInfo("MNIST", split="test", metrics={"accuracy": 0.98})
    CardInfo(dataset='MNIST', description=None, dataset_id=None, split='test', metrics={'accuracy': 0.98},
             training=None)
    """

    dataset: str | None = None
    description: str | None = None
    dataset_id: str | None = None
    split: str | None = None
    metrics: Mapping[str, SupportsFloat] = field(default_factory=dict)
    training: TrainingRecord | None = None

    def __post_init__(self) -> None:
        if self.dataset == "":
            raise ArgumentError(mismatch("dataset", "the name of the data", repr(self.dataset)))
        if not isinstance(self.metrics, Mapping):
            expected = "a mapping from names to numbers"
            raise ArgumentTypeError(mismatch("metrics", expected, type(self.metrics).__name__))
        for name, value in self.metrics.items():
            try:
                finite = math.isfinite(value)
            except TypeError:
                raise ArgumentTypeError(mismatch(f"metrics[{name!r}]", "a number", repr(value))) from None
            if not finite:
                raise ArgumentError(mismatch(f"metrics[{name!r}]", "a finite number", value))
        given = self.training
        is_record = isinstance(given, TrainingRecord) and not isinstance(given, type)  # a class has the method too
        if given is not None and not is_record:
            raise ArgumentTypeError(mismatch("training", "a Training or None", repr(given)))


def model_card(facts: ModelFacts, *, source: str, info: CardInfo | None = None) -> ModelCard:
    """Write the card of a model.

    Args:
        facts: The facts that the model knows.
        source: The argument of `from_pretrained` in the usage snippet: a folder, or a repository's id.
        info: Data, training and metrics.

    Returns:
        The card; its metadata hold the metrics as the Hub's evaluation results.

    Raises:
        ArgumentTypeError: `info` is something else.
    """
    if info is not None and not isinstance(info, CardInfo):
        raise ArgumentTypeError(mismatch("info", "a CardInfo or None", type(info).__name__))
    shape = (8, *facts.input_shape)
    samples = f"torch.rand{shape}" if facts.example is None else f"torch.full({shape}, {facts.example!r})"
    return ModelCard.from_template(
        ModelCardData(
            library_name="hmoevae",
            tags=["mixture-of-experts", "variational-autoencoder", "clustering"],
            datasets=[info.dataset_id] if info and info.dataset_id else None,
            metrics=list(info.metrics) if info and info.metrics else None,
            model_name=source.rpartition("/")[2],
            eval_results=_eval_results(info) if info and info.metrics else None,
        ),
        template_str=_TEMPLATE,
        facts=str(facts),
        tree=str(facts.tree),
        data=_data(info),
        training=f"```text\n{info.training}\n```" if info and info.training else "Not described.",
        metrics=_table(info) if info and info.metrics else "None were given.",
        usage=_USAGE.format(source=json.dumps(source, ensure_ascii=False), x=samples, n_leaves=facts.tree.n_leaves),
    )


def write_card(path: Path, card: ModelCard) -> None:
    """Write a card with its digest, by which `may_replace` recognises it."""
    text = str(card).encode()
    path.write_bytes(text + _SEAL % hashlib.sha256(text).hexdigest().encode())


def write_training(path: Path, info: CardInfo | None) -> bool:
    """Write the training in `info`, if there is one; returns whether there is.

    Raises:
        ArgumentError: The record's `to_json` does not return JSON.
    """
    if info is None or info.training is None:
        return False
    text = info.training.to_json()
    try:
        json.loads(text)
    except ValueError as error:
        raise ArgumentError(mismatch("training", "a record whose to_json returns JSON", f"{error}")) from None
    path.write_text(text.rstrip() + "\n", encoding="utf-8")
    return True


def may_replace(path: Path) -> bool:
    """Whether there is nothing at `path`, or a card that `write_card` wrote and nobody has edited since."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return True
    except OSError:  # a file that cannot be read may be somebody else's
        return False
    text = content[: -len(_SEAL % _NO_DIGEST)]
    return content == text + _SEAL % hashlib.sha256(text).hexdigest().encode()


def _eval_results(info: CardInfo) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="clustering",
            dataset_type=info.dataset_id or info.dataset or "unknown",
            dataset_name=info.dataset or "unknown",
            dataset_split=info.split,
            metric_type=name,
            metric_value=float(value),  # YAML writes Python's floats, not numpy's or torch's
        )
        for name, value in info.metrics.items()
    ]


def _data(info: CardInfo | None) -> str:
    if info is None or info.dataset is None:
        return "Not described."
    name = f"[{info.dataset}](https://huggingface.co/datasets/{info.dataset_id})" if info.dataset_id else info.dataset
    return f"{name}: {info.description}" if info.description else name


def _table(info: CardInfo) -> str:
    of_what = ", ".join(part for part in (info.dataset, info.split) if part)
    where = f"On {of_what}:" if of_what else "On data that are not described:"
    rows = [f"| {name} | {float(value):.4g} |" for name, value in info.metrics.items()]
    return "\n".join([where, "", "| metric | value |", "|---|---|", *rows])
