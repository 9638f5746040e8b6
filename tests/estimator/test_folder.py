"""Saved estimators: what a fresh process reads is the same to the last bit, and damage is named."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

import hmoevae as hm
from hmoevae.errors import ArgumentError, CheckpointError

pytestmark = pytest.mark.usefixtures("as_users_call")


def frame(n=80):
    rng = np.random.default_rng(0)
    kind = rng.integers(2, size=n)
    columns = {"mass": 4000 + 900 * kind + 100 * rng.normal(size=n), "sex": rng.choice(["f", "m"], n)}
    columns["eggs"] = rng.poisson(1 + 4 * kind)
    made = pd.DataFrame(columns)
    made.loc[3:5, "sex"] = None
    return made


OPTIONS = {
    "em": {"kinds": {"eggs": "count"}},
    "gradients": {"hidden": (4,), "tol": 5.0, "init": "random", "n_importance": 3, "balance": hm.Balance("cv2", 0.5)},
    "a tree": {"tree": hm.Mixture.of(hm.VAE(1, hm.MLP(()), hm.MLP(()), hm.Gaussian(1.0, "identity")), 2), "tol": 5.0},
}


def fitted(**options):
    return hm.VAEMixture(2, latent_dim=1, random_state=0, device="cpu", **options)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_saved_estimator_is_the_same_to_the_last_bit(tmp_path, name, dtype):
    x = np.random.default_rng(0).normal(size=(80, 3)).astype(dtype) if name == "a tree" else frame().dropna()
    mixture = fitted(**OPTIONS[name]).fit(x)
    mixture.save_pretrained(tmp_path / "saved")
    again = hm.VAEMixture.from_pretrained(tmp_path / "saved")
    assert again.get_params() == mixture.get_params()
    assert clone(again).get_params() == mixture.get_params()
    assert again.table_ == mixture.table_
    assert again.history_ == mixture.history_
    for method in ("predict", "predict_proba", "transform", "score_samples"):
        np.testing.assert_array_equal(getattr(again, method)(x), getattr(mixture, method)(x))
    for attribute in ("labels_", "weights_", "loss_", "n_iter_", "converged_", "n_features_in_", "n_samples_seen_"):
        np.testing.assert_array_equal(getattr(again, attribute), getattr(mixture, attribute))
    assert hasattr(again, "feature_names_in_") == hasattr(mixture, "feature_names_in_")
    np.testing.assert_array_equal(np.asarray(again.sample(5)[0]), np.asarray(mixture.sample(5)[0]))
    assert not any(path.suffix in (".pkl", ".pt", ".bin") for path in (tmp_path / "saved").iterdir())
    model = hm.HMoEVAE.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(one, same) for one, same in zip(model.parameters(), again.model_.parameters(), strict=True))


READER = """
import sys, json
import numpy as np, pandas as pd
import hmoevae as hm
mixture = hm.VAEMixture.from_pretrained(sys.argv[1])
X = pd.read_json(sys.argv[2], dtype={"eggs": int})
print(json.dumps([mixture.score_samples(X).tolist(), mixture.predict_proba(X).tolist()]))
"""


@pytest.mark.slow
def test_a_fresh_process_predicts_the_same(tmp_path):
    x = frame().round(3)
    mixture = fitted(kinds={"eggs": "count"}).fit(x)
    mixture.save_pretrained(tmp_path / "saved")
    x.to_json(tmp_path / "X.json", double_precision=15)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", READER, str(tmp_path / "saved"), str(tmp_path / "X.json")],
        cwd=Path(hm.__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    scores, proba = json.loads(run.stdout)
    assert scores == mixture.score_samples(x).tolist()
    assert proba == mixture.predict_proba(x).tolist()


def test_what_cannot_be_written_is_said(tmp_path):
    mixture = fitted().fit(frame()).set_params(random_state=np.random.RandomState(0))
    with pytest.raises(ArgumentError, match="random_state: expected a value that JSON can hold, such as an integer"):
        mixture.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_damage_is_named(tmp_path):
    mixture = fitted().fit(frame())
    mixture.save_pretrained(tmp_path)
    about = json.loads((tmp_path / "estimator.json").read_text())

    def write(**changes):
        (tmp_path / "estimator.json").write_text(json.dumps(about | changes))

    def refused(message):
        with pytest.raises(CheckpointError, match=message):
            hm.VAEMixture.from_pretrained(tmp_path)

    write(format_version=99, version="99.0")
    refused("expected an estimator of format 1 or older, got one of hmoevae 99.0")
    write(parameters=about["parameters"] | {"magic": 1})
    refused("expected an estimator that save_pretrained wrote, got no parameter magic")
    write(parameters={name: value for name, value in about["parameters"].items() if name != "tol"})
    assert hm.VAEMixture.from_pretrained(tmp_path).tol == hm.VAEMixture().tol
    write(parameters=[])
    refused("expected an estimator that save_pretrained wrote")
    write()
    other = tmp_path / "other"
    fitted().fit(frame(60)).save_pretrained(other)
    (tmp_path / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    refused("expected the model that was saved with estimator.json, got another one")
    (tmp_path / "estimator.json").unlink()
    refused("expected an estimator that save_pretrained wrote, got .*No such file")
