"""The Hugging Face Hub, played by its client's own cache and by a fake of its upload: nothing here needs a network."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import build
from huggingface_hub import HfApi, RepoUrl
from huggingface_hub.errors import LocalEntryNotFoundError

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, CheckpointError

NET = hm.MLP((3,))
TREE = hm.Mixture.of(hm.VAE(2, NET, NET), 3, gate=NET)


def make(seed: int = 0) -> hm.HMoEVAE:
    return build(TREE, (4,), seed=seed).float()


def same(a: hm.HMoEVAE, b: hm.HMoEVAE) -> bool:
    return a.tree == b.tree and all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache that holds `me/digits` as downloaded twice: at the tag v1, and at main."""
    repository = tmp_path / "cache" / "models--me--digits"
    (repository / "refs").mkdir(parents=True)
    for seed, revision in enumerate(("v1", "main")):
        commit = f"{seed:040x}"
        (repository / "refs" / revision).write_text(commit)
        make(seed).save_pretrained(repository / "snapshots" / commit)
    return tmp_path / "cache"


# --- from the Hub ---------------------------------------------------------------------------------------------------


def test_a_repository_in_the_cache(cache: Path) -> None:
    loaded = hm.HMoEVAE.from_pretrained("me/digits", cache_dir=cache, local_files_only=True)
    assert same(loaded, make(1))
    assert not loaded.training
    assert same(hm.HMoEVAE.from_pretrained("me/digits", revision="v1", cache_dir=cache, local_files_only=True), make(0))


@pytest.mark.parametrize(("name", "revision"), [("me/others", None), ("me/digits", "v2"), ("me/dig its", None)])
def test_what_the_cache_does_not_hold(cache: Path, name: str, revision: str | None) -> None:
    expected = f"{name}: expected a folder with a saved model, or a repository on the Hugging Face Hub, got "
    with pytest.raises(CheckpointError) as caught:
        hm.HMoEVAE.from_pretrained(name, revision=revision, cache_dir=cache, local_files_only=True)
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_a_damaged_download(cache: Path) -> None:
    """Such as `[[[[...`, which the client's own reader of configs would choke on."""
    snapshot = cache / "models--me--digits" / "snapshots" / f"{1:040x}"
    for content in (b"[" * 100_000, b"[]", b"\xff"):
        (snapshot / "config.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"config\.json: expected a "):
            hm.HMoEVAE.from_pretrained("me/digits", cache_dir=cache, local_files_only=True)


def test_everything_that_is_said_reaches_the_client(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make().save_pretrained(tmp_path / "remote")
    asked = []

    def download(repo_id: str, filename: str, **options: object) -> str:
        asked.append((repo_id, filename, options))
        return str(tmp_path / "remote" / filename)

    monkeypatch.setattr("hmoevae.saving.pretrained.hf_hub_download", download)
    options = {"revision": "v1", "cache_dir": str(cache), "force_download": True, "token": "secret"}
    assert same(hm.HMoEVAE.from_pretrained("me/digits", **options), make())
    options["local_files_only"] = False
    assert asked == [("me/digits", "config.json", options), ("me/digits", "model.safetensors", options)]


def test_a_repository_of_a_pickle(cache: Path) -> None:
    """It is not looked at."""
    snapshot = cache / "models--me--digits" / "snapshots" / f"{1:040x}"
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="me/digits: expected a folder with a saved model, or a repository on"):
        hm.HMoEVAE.from_pretrained("me/digits", cache_dir=cache, local_files_only=True)


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("offline"), ConnectionError("down"), PermissionError("no")])
def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(*args: object, **options: object) -> str:
        raise error

    monkeypatch.setattr("hmoevae.saving.files.get_hf_file_metadata", lambda *args: None)
    monkeypatch.setattr("hmoevae.saving.pretrained.hf_hub_download", download)
    with pytest.raises(CheckpointError, match="me/digits: expected"):
        hm.HMoEVAE.from_pretrained("me/digits")


@pytest.fixture
def out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The addresses that are asked for, of which none answers; a download would ask for half a minute."""
    asked = []
    monkeypatch.chdir(tmp_path)  # the examples leave a folder `runs` where they are run

    class ConnectError(Exception):
        """What the client's HTTP library raises, which is no OSError."""

    def look(url: str, *_: object) -> None:
        asked.append(url)
        raise ConnectError("[Errno -2] Name or service not known")

    def download(*args: object, **options: object) -> str:
        raise AssertionError("asked to download")

    monkeypatch.setattr("hmoevae.saving.files.get_hf_file_metadata", look)
    monkeypatch.setattr("hmoevae.saving.pretrained.hf_hub_download", download)
    return asked


@pytest.mark.parametrize(
    "name", ["runs", "./nope", "../runs/nope", "~/nope", "/runs/nope", "runs/a/nope", r"runs\nope"]
)
def test_a_folder_that_is_not_there_is_not_asked_for(out_of_reach: list[str], name: str) -> None:
    with pytest.raises(CheckpointError, match="expected a folder with a saved model, or a repository"):
        hm.HMoEVAE.from_pretrained(name)
    with pytest.raises(CheckpointError, match=r"runs/nope: expected a folder .*, got no such folder$"):
        hm.HMoEVAE.from_pretrained(Path("runs/nope"))
    assert out_of_reach == []


def test_what_may_be_a_repository_is_asked_for_once(out_of_reach: list[str], tmp_path: Path) -> None:
    got = "got no such folder, and from the Hub: it cannot be reached ([Errno -2] Name or service not known)"
    with pytest.raises(CheckpointError, match=re.escape(got)):
        hm.HMoEVAE.from_pretrained("runs/nope", cache_dir=tmp_path)
    assert [url.rpartition("//")[2].partition("/")[2] for url in out_of_reach] == ["runs/nope/resolve/main/config.json"]


def test_what_is_in_the_cache_needs_no_look(cache: Path, out_of_reach: list[str]) -> None:
    with pytest.raises(AssertionError, match="asked to download"):
        hm.HMoEVAE.from_pretrained("me/digits", cache_dir=cache)
    assert out_of_reach == []


@pytest.mark.usefixtures("as_users_call")
def test_an_argument_that_does_not_exist(cache: Path) -> None:
    with pytest.raises(TypeError, match="revison"):
        hm.HMoEVAE.from_pretrained("me/digits", cache_dir=cache, local_files_only=True, revison="v1")


# --- to the Hub -----------------------------------------------------------------------------------------------------


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where uploads arrive, by the repository's id."""

    def upload_folder(self: HfApi, *, repo_id: str, folder_path: Path, **options: object) -> str:
        shutil.copytree(folder_path, tmp_path / "uploads" / repo_id, dirs_exist_ok=True)
        return f"https://example.org/{repo_id}/commit/1"

    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, repo_id, **options: RepoUrl(f"https://huggingface.co/{repo_id}")
    )
    return tmp_path / "uploads"


@pytest.mark.parametrize("by_saving", [True, False])
def test_a_push_uploads_model_and_card(tmp_path: Path, uploads: Path, by_saving: bool) -> None:
    info = hm.CardInfo("digits", metrics={"nmi": 0.5})
    if by_saving:
        url = make().save_pretrained(tmp_path / "model", info=info, repo_id="me/digits", push_to_hub=True, private=True)
        assert same(hm.HMoEVAE.from_pretrained(tmp_path / "model"), make())
    else:
        url = make().push_to_hub("me/digits", info=info)
    assert url == "https://example.org/me/digits/commit/1"
    remote = uploads / "me" / "digits"
    assert same(hm.HMoEVAE.from_pretrained(remote), make())
    assert 'from_pretrained("me/digits")' in (remote / "README.md").read_text()
    assert "| nmi | 0.5 |" in (remote / "README.md").read_text()


def test_a_push_that_fails_leaves_the_model_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: HfApi, **options: object) -> None:
        raise ConnectionError("the network is down")

    monkeypatch.setattr(HfApi, "create_repo", fail)
    with pytest.raises(ConnectionError):
        make().save_pretrained(tmp_path / "model", push_to_hub=True)
    assert same(hm.HMoEVAE.from_pretrained(tmp_path / "model"), make())


def test_arguments_of_a_push_without_a_push(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="push_to_hub: expected True where private is given, got False"):
        make().save_pretrained(tmp_path / "model", private=True)
    with pytest.raises(ArgumentTypeError, match=r"infos: expected an argument of save_pretrained or ModelHubMixin\.pu"):
        make().save_pretrained(tmp_path / "model", infos=None)
    assert not (tmp_path / "model").exists()
