"""Pretrained: the base class of models that are saved and loaded, in a folder or on the Hugging Face Hub."""

import inspect
import os
from abc import abstractmethod
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from torch import nn

from hmoevae.errors import ArgumentError, ArgumentTypeError, CheckpointError, HMoEVAEError, mismatch, warn
from hmoevae.nn.draws import borrowed_random_state
from hmoevae.saving import card, files, sharded
from hmoevae.saving.card import CardInfo, ModelFacts

Model = TypeVar("Model", bound="Pretrained")


class Pretrained(nn.Module, ModelHubMixin):
    """A module that is saved as a JSON object, its config, and its weights, and is built from them again.

    A subclass defines `_config`, which makes the config, `_build`, which makes a model from it, and `_facts` for the
    card. No code runs from a file: a config names registered kinds only.

    >>> import tempfile
    >>> class Line(Pretrained):
    ...     def __init__(self, size):
    ...         super().__init__()
    ...         self.linear = nn.Linear(size, 1)
    ...     def _config(self):
    ...         return {"size": self.linear.in_features}
    ...     @classmethod
    ...     def _build(cls, config):
    ...         return cls(config["size"])
    ...     def _facts(self):
    ...         from hmoevae.spec import VAE
    ...         return ModelFacts(VAE(), (self.linear.in_features,), "none", 0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Line(3).save_pretrained(folder)
    ...     Line.from_pretrained(folder)
    Line(
      (linear): Linear(in_features=3, out_features=1, bias=True)
    )
    """

    @abstractmethod
    def _config(self) -> dict[str, Any]:
        """The config, as data that JSON can hold."""

    @classmethod
    @abstractmethod
    def _build(cls: type[Model], config: dict[str, Any]) -> Model:
        """Make the model that a config describes, with fresh weights."""

    @abstractmethod
    def _facts(self) -> ModelFacts:
        """The facts about the model for its card."""

    # --- saving -----------------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        info: CardInfo | None = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write config.json, model.safetensors and a model card, README.md: each whole or not at all.

        A README.md that somebody else wrote or edited is not overwritten. If `info` has a training, it is written to
        training.json.

        Args:
            save_directory: The folder. It is created if missing; other files in it are not touched.
            info: Data, training and metrics for the card.
            repo_id: The model's id on the Hugging Face Hub, for the card's usage snippet and for `push_to_hub`; the
                folder's name if `None`.
            push_to_hub: Upload the saved model to the Hub too.
            model_card_kwargs: Arguments of `generate_model_card`, which `push_to_hub` passes on.
            **push_to_hub_kwargs: As in `huggingface_hub.ModelHubMixin.push_to_hub`, such as `private=True`.

        Returns:
            With `push_to_hub` the commit's address, else `None`.

        Raises:
            ArgumentError: The folder cannot be written, the weights are not finite, loading would not rebuild the model
                (see `check_rebuilds`), or an argument is given that needs `push_to_hub`.
            ArgumentTypeError: There is no such argument.
        """
        push_to_hub_kwargs.pop("config", None)  # the Hub's client passes one; the model makes its own
        _check_hub_arguments(push_to_hub_kwargs, push_to_hub=push_to_hub)
        self.check_rebuilds()  # before the folder is made
        folder = Path(save_directory)
        source = repo_id or (folder.name if folder.is_absolute() else folder.as_posix())
        about: dict[str, Any] = {"info": info, "source": source} | (model_card_kwargs or {})
        readme = folder / card.CARD_NAME
        with files.replacing_files_of(folder) as beside:
            self._save_pretrained(beside)
            ours = card.may_replace(readme)
            text = self.generate_model_card(**about)  # checks `info`, whether or not the card is written
            if ours:
                card.write_card(beside / card.CARD_NAME, text)
            has_training = card.write_training(beside / card.TRAINING_NAME, about["info"])
        if not ours and about["info"] is not None:
            warn(f"{readme} was written or edited by somebody else and is kept, so it does not have the given info")
        if not has_training and (folder / card.TRAINING_NAME).exists():
            warn(f"{folder / card.TRAINING_NAME} was there before, and does not describe the training of this model")
        if push_to_hub:
            return self.push_to_hub(repo_id or folder.name, info=about["info"], **push_to_hub_kwargs)
        return None

    def push_to_hub(self, repo_id: str, *, info: CardInfo | None = None, **kwargs: Any) -> str:
        """Upload the model with its card to a repository on the Hugging Face Hub.

        Args:
            repo_id: The repository's id; the repository is created if missing.
            info: Data, training and metrics for the card.
            **kwargs: As in `huggingface_hub.ModelHubMixin.push_to_hub`, such as `private=True`.

        Returns:
            The commit's address.
        """
        return super().push_to_hub(repo_id, model_card_kwargs={"info": info, "source": repo_id}, **kwargs)

    def generate_model_card(self, *, info: CardInfo | None = None, source: str = "path/or/repository") -> ModelCard:
        """The model card: tree, data, training, metrics, and how to load and use the model.

        Args:
            info: Data, training and metrics for the card.
            source: The folder or the repository's id that the usage snippet loads.
        """
        return card.model_card(self._facts(), source=source, info=info)

    def check_rebuilds(self) -> None:
        """Check that `from_pretrained` can rebuild this model. `save_pretrained` and checkpoints check it first.

        Raises:
            ArgumentError: A module, parameter, buffer or attribute is not what the tree makes; the message names it.
        """
        try:
            rebuilt = self._outline(self._config())
        except TypeError as error:  # of a subclass
            known = next(kind.__name__ for kind in type(self).__mro__ if "_build" in vars(kind))
            raise ArgumentError(mismatch("model", f"a class with the constructor of {known}", f"{error}")) from None
        files.check_rebuilds(self, rebuilt)

    def _save_pretrained(self, save_directory: Path) -> None:
        files.write_model(save_directory, self._config(), self.state_dict())

    # --- loading ----------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # an unknown argument is an error
        cls: type[Model],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Model:
        """Load a model that `save_pretrained` wrote, from a folder or from a repository on the Hugging Face Hub.

        Args:
            pretrained_model_name_or_path: A folder, or a repository's id.
            revision: Branch, tag or commit of the repository.
            cache_dir: Folder of downloads.
            force_download: Download files again that are in the cache.
            local_files_only: Use the cache only, not the network.
            token: Token of a user who may read the repository; `True` for the user that is logged in.

        Raises:
            CheckpointError: A file is missing, damaged, not of this package, of a newer format, or of another tree, or
                it names a kind of network, likelihood, balance or objective that is not registered.
        """
        given = pretrained_model_name_or_path
        folder = Path(given)
        if folder.is_dir():  # a folder is ours to read; what else may be an id is the Hub's
            return cls._load(folder / files.CONFIG_NAME, folder / files.WEIGHTS_NAME)
        expected = "a folder with a saved model, or a repository on the Hugging Face Hub"
        if not isinstance(given, str) or not files.may_be_repository(given) or folder.exists():
            got = "a file" if folder.exists() else "no such folder"
            raise CheckpointError(mismatch(f"{given}", expected, got))

        def download(name: str) -> Path:
            file = hf_hub_download(
                folder.as_posix(),
                name,
                revision=revision,
                cache_dir=cache_dir if cache_dir is None else str(cache_dir),
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
            return Path(file)

        try:
            if not local_files_only:
                files.check_reach(given, revision, cache_dir, token)
            downloaded = download(files.CONFIG_NAME), download(files.WEIGHTS_NAME)
        except (OSError, ValueError) as error:  # what the Hub's client raises
            got = f"no such folder, and from the Hub: {f'{error}'.splitlines()[0]}"
            raise CheckpointError(mismatch(given, expected, got)) from error
        return cls._load(*downloaded)

    @classmethod
    def _outline(cls: type[Model], config: dict[str, Any]) -> Model:
        """Make the model that a config describes, without weights."""
        with torch.device("meta"):  # takes no memory, even if the config describes a huge model
            return cls._build(config)

    @classmethod
    def _load(cls: type[Model], config_file: Path, weights_file: Path) -> Model:
        saved = files.read_model(config_file, weights_file)
        try:
            outline = cls._outline(saved.config)
        except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            # Beside our own words, Python's and PyTorch's for sizes that nothing can have.
            own = isinstance(error, HMoEVAEError | KeyError)
            got = f"{error}" if own else f"one that cannot be built ({f'{error}'.splitlines()[0]})"
            modules = saved.config.get("modules")
            if own and isinstance(modules, dict) and modules:  # told, and never imported
                told = ", ".join(f"{kind!r} from the module {module!r}" for kind, module in modules.items())
                got += f"; the model was saved with {told}"
            raise CheckpointError(mismatch(str(config_file), "the description of a model", got)) from None
        rows = weights_file.parent / sharded.FOLDER
        if rows.is_dir():  # a checkpoint of experts that were cut over processes
            saved.state.update(sharded.read_model(rows))
        files.check_weights(weights_file, saved.state, outline.state_dict())
        with borrowed_random_state():  # the weights drawn here are not kept
            model = cls._build(saved.config)
        model.to(next(iter(saved.state.values())).dtype).load_state_dict(saved.state)
        return model.eval()


def _check_hub_arguments(given: dict[str, Any], *, push_to_hub: bool) -> None:
    """Check that the Hub's client has these arguments, and that the model is to be pushed."""
    known = inspect.signature(ModelHubMixin.push_to_hub).parameters
    for name in given:
        if name not in known:
            expected = f"an argument of save_pretrained or {ModelHubMixin.__name__}.push_to_hub"
            raise ArgumentTypeError(mismatch(name, expected, "one of neither"))
    if given and not push_to_hub:
        raise ArgumentError(mismatch("push_to_hub", f"True where {', '.join(given)} is given", push_to_hub))
