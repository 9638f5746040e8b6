"""History: the measurements of a training, one row per epoch, for CSV, JSON, notebooks and plots."""

import csv
import io
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hmoevae import markup
from hmoevae.errors import ArgumentError, CheckpointError, HMoEVAEError, mismatch
from hmoevae.saving import files
from hmoevae.training.record import Training, training_from_json

NODES = ("usage/", "information/")
"""Prefixes of the columns of which there is one per leaf or mixture."""
SHOWN = 10
"""Largest number of rows that a notebook shows, half of them from the end."""


@dataclass
class History:
    """The epochs of one training run.

    Columns are `epoch` (from 1), `seconds` (since the start), `loss`, the terms whose sum it is, `usage/<leaf path>`
    (mean probability of every leaf over the epoch's samples), `information/<mixture path>` (mutual information between
    the samples that arrive at the mixture and the child they go to, at most the log of the number of children),
    `val_<term>` with validation data, and `revived`, the number of children revived after the epoch. Losses and
    information are means over samples, in nats.

    Attributes:
        rows: One mapping from column to value for every finished epoch.
        interrupted: Whether Ctrl-C ended training early.
        converged: Whether `hmoevae.fit_em` ended because the loss had stopped falling; `None` for other trainings.
        best_epoch: The epoch whose weights early stopping loaded; `None` without early stopping.
        training: The options of the training; plain data if they were read from a file that only describes one of them.

    >>> history = History([{"epoch": 1.0, "loss": 3.5}, {"epoch": 2.0, "loss": 3.25}])
    >>> history["loss"], history.columns, len(history)
    ([3.5, 3.25], ('epoch', 'loss'), 2)
    >>> history
    <History of 2 epochs, loss 3.5 to 3.25>
    """

    rows: list[dict[str, int | float]] = field(default_factory=list)
    interrupted: bool = False
    best_epoch: int | None = None
    training: Training | dict[str, Any] | None = None
    converged: bool | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, in order of appearance."""
        return tuple(dict.fromkeys(column for row in self.rows for column in row))

    def __getitem__(self, column: str) -> list[float]:
        """One column, a value for every epoch; NaN where an epoch has none."""
        if not self.rows:
            raise ArgumentError(mismatch("column", "a history of one epoch or more", f"{column!r} of none"))
        if column not in self.columns:
            raise ArgumentError(mismatch("column", f"one of {', '.join(self.columns)}", repr(column)))
        return [float(row.get(column, math.nan)) for row in self.rows]

    def __repr__(self) -> str:
        """The number of epochs, and the first and the last loss."""
        text = f"History of {len(self)} epoch{'' if len(self) == 1 else 's'}"
        losses = [row["loss"] for row in self.rows if "loss" in row]
        if losses:
            text += f", loss {losses[0]:.4g}" + (f" to {losses[-1]:.4g}" if len(losses) > 1 else "")
        return f"<{text}{', interrupted' if self.interrupted else ''}>"

    def _repr_html_(self) -> str:
        """HTML for notebooks: a table of the first and the last epochs, without the columns of leaves and mixtures."""
        columns = [column for column in self.columns if not column.startswith(NODES)]
        rows = [[f"{row[c]:.4g}" if c in row else "" for c in columns] for row in self.rows]
        if len(rows) > SHOWN:
            rows = [*rows[: SHOWN // 2], ["..."] * len(columns), *rows[-SHOWN // 2 :]]
        hidden = len(self.columns) - len(columns)
        note = f"{hidden} more columns: {', '.join(f'{name}<path>' for name in NODES)}" if hidden else ""
        return markup.heading(repr(self).strip("<>")) + (markup.table(columns, rows, note) if self.rows else "")

    def __len__(self) -> int:
        """Number of finished epochs."""
        return len(self.rows)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the rows as CSV with a header line, which `from_csv` reads back.

        A history without an epoch writes the columns that every history has. `to_json` writes the attributes too.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     History([{"epoch": 1, "loss": 3.5}]).to_csv(f"{folder}/history.csv")
        ...     print(Path(f"{folder}/history.csv").read_text(), end="")
        epoch,loss
        1,3.5
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns or ("epoch", "seconds", "loss"), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        files.write_text(path, text.getvalue())

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str]) -> "History":
        """Read a history that `to_csv` wrote.

        Raises:
            CheckpointError: The file is missing, damaged, or not a history.

        >>> import tempfile
        >>> history = History([{"epoch": 1, "loss": 3.5}, {"epoch": 2, "val_elbo": 4.0}])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     history.to_csv(f"{folder}/history.csv")
        ...     History.from_csv(f"{folder}/history.csv") == history
        True
        """
        try:
            with Path(path).open(encoding="utf-8", newline="") as file:
                columns, *lines = list(csv.reader(file, strict=True)) or [[]]
            if "epoch" not in columns:
                raise ValueError("no column 'epoch'")
            for number, line in enumerate(lines, 1):
                if len(line) != len(columns):
                    raise ValueError(f"row {number} with {len(line)} of {len(columns)} cells")
            rows = [{c: _number(cell) for c, cell in zip(columns, line, strict=True) if cell} for line in lines]
        except (OSError, ValueError, csv.Error) as error:
            reason = "text that is not UTF-8" if isinstance(error, UnicodeError) else getattr(error, "strerror", None)
            raise CheckpointError(mismatch(str(path), "a history written by to_csv", reason or error)) from None
        return cls(rows)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON, which `from_json` reads back.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     History([{"epoch": 1, "loss": 3.5}]).to_json(f"{folder}/history.json")
        ...     print(Path(f"{folder}/history.json").read_text(), end="")
        {
         "interrupted": false,
         "best_epoch": null,
         "training": null,
         "rows": [
          {
           "epoch": 1,
           "loss": 3.5
          }
         ]
        }
        """
        training = json.loads(self.training.to_json()) if isinstance(self.training, Training) else self.training
        about = {"interrupted": self.interrupted, "best_epoch": self.best_epoch, "training": training}
        about |= {} if self.converged is None else {"converged": self.converged}
        files.write_text(path, json.dumps(about | {"rows": self.rows}, indent=1) + "\n")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> "History":
        """Read a history that `to_json` wrote.

        Raises:
            CheckpointError: The file is missing, damaged, or not a history.

        >>> import tempfile
        >>> history = History([{"epoch": 1, "loss": 3.5}])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     history.to_json(f"{folder}/history.json")
        ...     History.from_json(f"{folder}/history.json") == history
        True
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            rows = [{column: float(value) for column, value in row.items()} for row in content["rows"]]
            best_epoch, training = content.get("best_epoch"), content.get("training")
            return cls(rows, bool(content["interrupted"]), best_epoch, _training(training), content.get("converged"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(mismatch(str(path), "a history written by to_json", f"{error}")) from None


def _training(content: Any) -> Training | dict[str, Any] | None:
    """The record, if JSON holds all of it; otherwise the plain data."""
    if content is None:
        return None
    try:
        return training_from_json(json.dumps(content))
    except HMoEVAEError:  # from another version, with a kind that is not registered, or an option only described
        return dict(content)


def _number(cell: str) -> int | float:
    return int(cell) if cell.removeprefix("-").isdecimal() else float(cell)
