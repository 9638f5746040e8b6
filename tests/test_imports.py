"""Who may import whom, and what an `import hmoevae` does to the process that says it: nothing."""

import ast
import inspect
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

import hmoevae as hm

PACKAGE = Path(hm.__file__).parent
# The rooms of the design, from the ground up; a module imports from its own room or from those below.
ROOMS: dict[str, float] = {
    "hmoevae.checks": 0,
    "hmoevae.errors": 0,
    "hmoevae.markup": 0,
    "hmoevae.spec": 0,
    "hmoevae.spec.balances": 0,
    "hmoevae.spec.likelihoods": 0,
    "hmoevae.spec.networks": 0,
    "hmoevae.spec.nodes": 0,
    "hmoevae.spec.record": 0,
    "hmoevae.version": 0,
    "hmoevae.plan": 1,
    # Arrays, and samples made of them.
    "hmoevae.tables.frames": 1.5,
    "hmoevae.tables.sparse": 1.5,
    "hmoevae.tables.columns": 1.5,
    "hmoevae.tables.inference": 1.5,
    "hmoevae.tables.table": 1.5,
    "hmoevae.tables": 1.5,
    # Within nn/ too: kernels and tables, layers and likelihoods, networks, experts and gates.
    "hmoevae.nn.attributes": 2,
    "hmoevae.nn.draws": 2,
    "hmoevae.nn.objectives": 2,
    "hmoevae.nn.posteriors": 2,
    "hmoevae.nn.paths": 2,
    "hmoevae.nn.routes": 2,
    "hmoevae.nn.rows": 2,
    "hmoevae.nn.sample_weights": 2,
    "hmoevae.nn.agreement": 2.1,
    "hmoevae.nn.balance": 2.1,
    "hmoevae.nn.prior": 2.1,
    "hmoevae.nn.settings": 2.1,
    "hmoevae.nn.grouped": 2.2,
    "hmoevae.nn.likelihoods.module": 2.2,
    "hmoevae.nn.likelihoods.codes": 2.21,
    "hmoevae.nn.likelihoods.columns": 2.21,
    "hmoevae.nn.likelihoods.counts": 2.21,
    "hmoevae.nn.likelihoods.unit": 2.21,
    "hmoevae.nn.likelihoods.continuous": 2.22,
    "hmoevae.nn.likelihoods.build": 2.23,
    "hmoevae.nn.likelihoods": 2.24,
    "hmoevae.nn.conv": 2.3,
    "hmoevae.nn.gaps": 2.3,
    "hmoevae.nn.linear": 2.3,
    "hmoevae.nn.stacked": 2.3,
    "hmoevae.nn.networks": 2.4,
    "hmoevae.nn.kernels": 2,
    "hmoevae.nn.kernels.choice": 2,
    "hmoevae.nn.kernels.chosen": 2,
    "hmoevae.nn.kernels.cpu": 2,
    "hmoevae.nn.kernels.memory": 2,
    "hmoevae.nn.kernels.plain": 2,
    "hmoevae.nn.kernels.precision": 2,
    "hmoevae.nn.kernels.products": 2,
    "hmoevae.nn.kernels.readouts": 2,
    "hmoevae.nn.exchange": 2,
    "hmoevae.nn.cut_experts": 3.1,
    "hmoevae.nn.experts": 3,
    "hmoevae.nn.gates": 3,
    "hmoevae.nn.beam": 3.1,
    "hmoevae.nn.conditional": 3.1,
    "hmoevae.nn": 3.1,
    "hmoevae.door": 4,
    "hmoevae.hints": 4,
    "hmoevae.output": 4,
    "hmoevae.samples": 4,
    "hmoevae.saving": 4,
    "hmoevae.saving.card": 4,
    "hmoevae.saving.files": 4,
    "hmoevae.saving.pretrained": 4,
    "hmoevae.saving.sharded": 4,
    "hmoevae.tree_module": 4.1,
    "hmoevae.missing": 4.2,
    "hmoevae.routing": 4.2,
    "hmoevae.model": 4.2,
    "hmoevae.cells": 5,
    "hmoevae.datasets": 5,
    "hmoevae.export": 5,
    "hmoevae.features": 5,
    "hmoevae.hierarchies": 5,
    "hmoevae.kinds": 5,
    "hmoevae.labels": 5,
    "hmoevae.metrics": 5,
    "hmoevae.photographs": 5,
    "hmoevae.plot": 5.5,
    "hmoevae.plot.arguments": 5.5,
    "hmoevae.plot.canvas": 5.5,
    "hmoevae.plot.clusters": 5.5,
    "hmoevae.plot.trees": 5.5,
    "hmoevae.plot.grids": 5.5,
    "hmoevae.plot.dendrograms": 5.5,
    "hmoevae.plot.growths": 5.5,
    "hmoevae.plot.leaves": 5.5,
    "hmoevae.plot.portraits": 5.5,
    "hmoevae.plot.tables": 5.5,
    "hmoevae.plot.training": 5.5,
    "hmoevae.starts": 5,
    "hmoevae.views": 5,
    # Within training/ too: parts of the record, the record, steps, epochs, fit.
    "hmoevae.training.agreement": 5.1,
    "hmoevae.training.device": 5.1,
    "hmoevae.training.early": 5.1,
    "hmoevae.training.random_states": 5.1,
    "hmoevae.training.gradients": 5.05,
    "hmoevae.training.row_adam": 5.05,
    "hmoevae.training.processes": 5.1,
    "hmoevae.training.cut_state": 5.1,
    "hmoevae.training.scales": 5.1,
    "hmoevae.training.states": 5.1,
    "hmoevae.training.threads": 5.1,
    "hmoevae.training.usage": 5.1,
    "hmoevae.training.warmup": 5.1,
    "hmoevae.training.words": 5.1,
    "hmoevae.training.batches": 5.2,
    "hmoevae.training.best": 5.2,
    "hmoevae.training.checkpoints": 5.2,
    "hmoevae.training.compiled": 5.2,
    "hmoevae.training.course": 5.2,
    "hmoevae.training.finite": 5.2,
    "hmoevae.training.freezing": 5.2,
    "hmoevae.training.revival": 5.2,
    "hmoevae.training.gate_views": 5.2,
    "hmoevae.training.record": 5.3,
    "hmoevae.history": 5.4,
    "hmoevae.training.loop": 5.4,
    "hmoevae.training.resume": 5.5,
    "hmoevae.training.epochs": 5.6,
    "hmoevae.training.restarts": 5.6,
    "hmoevae.training.fitting": 5.7,
    "hmoevae.training": 5.8,
    "hmoevae.callbacks": 5.9,
    "hmoevae.trackers": 5.9,
    "hmoevae.surgery.parts": 5.1,
    "hmoevae.surgery.moves": 5.1,
    "hmoevae.surgery.optimizer": 5.1,
    "hmoevae.surgery.rebuild": 5.2,
    "hmoevae.surgery.teaching": 5.2,
    "hmoevae.surgery.carrying": 5.3,
    "hmoevae.surgery.cutting": 5.4,
    "hmoevae.surgery.grafting": 5.4,
    "hmoevae.surgery.nesting": 5.4,
    "hmoevae.surgery": 5.5,
    "hmoevae.growth.bounds": 5,
    "hmoevae.growth.record": 5.45,
    "hmoevae.growth.splits": 5.55,
    "hmoevae.growth.adding": 5.8,
    "hmoevae.growth.growing": 5.8,
    "hmoevae.growth": 5.85,
    "hmoevae.em.moments": 5.5,
    "hmoevae.em.covariances": 5.5,
    "hmoevae.em.record": 5.5,
    "hmoevae.em.leaves": 5.6,
    "hmoevae.em.fitting": 5.7,
    "hmoevae.em.stepwise": 5.7,
    "hmoevae.em": 5.8,
    "hmoevae.reporting.material": 6,
    "hmoevae.reporting.pictures": 6,
    "hmoevae.reporting.training": 6,
    "hmoevae.reporting.routed": 6.1,
    "hmoevae.reporting.choices": 6.2,
    "hmoevae.reporting.gates": 6.2,
    "hmoevae.reporting.moments": 6.2,
    "hmoevae.reporting.effects": 6.3,
    "hmoevae.reporting.evidence": 6.3,
    "hmoevae.reporting.differences": 6.4,
    "hmoevae.reporting.facts": 6.5,
    "hmoevae.reporting.page": 6.5,
    "hmoevae.reporting.report": 6.6,
    "hmoevae.reporting": 6.7,
    "hmoevae.estimator.leaves": 6,
    "hmoevae.estimator.rows": 6,
    "hmoevae.estimator.solvers": 6,
    "hmoevae.estimator.folder": 6,
    "hmoevae.estimator.trees": 6,
    "hmoevae.estimator.pickles": 6,
    "hmoevae.estimator.latents": 6.1,
    "hmoevae.estimator.number": 6.11,
    "hmoevae.estimator.results": 6.1,
    "hmoevae.estimator.mixture": 6.2,
    "hmoevae.estimator": 6.3,
    "hmoevae": 7,  # re-exports from everywhere; nothing imports it
}


def module_name(path: Path) -> str:
    parts = ("hmoevae", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top, inside functions and for type checkers."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module


def own_imports(module: str) -> set[str]:
    """The modules of the package that `module` imports."""
    return {name for name in imports(MODULES[module]) if name.split(".")[0] == "hmoevae"}


def test_the_walk_sees_imports() -> None:
    """The tests below would hold of a walk that finds nothing."""
    assert "hmoevae.errors" in own_imports("hmoevae.spec.nodes")
    assert {"hmoevae.saving.pretrained", "hmoevae.nn.experts", "hmoevae.plan"} <= own_imports("hmoevae.tree_module")
    assert "networkx" in set(imports(MODULES["hmoevae.spec.nodes"]))  # inside a function


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    assert module in ROOMS, "give the new module a room"
    for imported in own_imports(module):
        assert imported in ROOMS, f"{module} imports {imported}, which is no module"
        assert ROOMS[imported] <= ROOMS[module], f"{module} imports {imported} from a room above"


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"hmoevae.errors"}))
def test_warnings_go_by_way_of_the_function_that_finds_the_users_line(module: str) -> None:
    assert "warnings" not in set(imports(MODULES[module]))


def test_messages_name_extras_that_there_are_and_what_they_bring() -> None:
    """And the way that works: the package is on no index, so `pip install` finds it in a clone alone."""
    extras = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set()
    for path in MODULES.values():
        source = path.read_text(encoding="utf-8")
        assert "hmoevae[" not in source, path
        for call in ast.walk(ast.parse(source)):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "from_extra":
                package, extra = call.args
                named.add((ast.unparse(package), ast.literal_eval(extra)))
    assert len(named) > 5
    brought = {"sklearn": ["scipy"], "trackers": ["name"], "report": ["package"]}  # by way of scikit-learn; variables
    for package, extra in named:
        known = [*extras[extra], *brought.get(extra, [])]
        assert any(requirement.startswith(package.strip("'")) for requirement in known), (package, extra)


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = nx.DiGraph([(module, imported) for module in MODULES for imported in own_imports(module)])
    assert list(nx.simple_cycles(graph)) == []


@pytest.mark.parametrize("module", [module for module, room in ROOMS.items() if room <= 1])
def test_trees_and_plans_need_no_torch(module: str) -> None:
    heavy = {"torch", "numpy", "jaxtyping", "einops", "accelerate", "safetensors", "huggingface_hub"}
    assert {name.split(".")[0] for name in imports(MODULES[module])} & heavy == set()


def test_every_public_name_is_there() -> None:
    assert len(set(hm.__all__)) == len(hm.__all__)
    for name in hm.__all__:
        assert getattr(hm, name) is not None
    assert set(dir(hm)) == {*hm.__all__, "__version__"}
    with pytest.raises(AttributeError, match="module 'hmoevae' has no attribute 'nonsense'"):
        _ = hm.nonsense


@pytest.mark.parametrize("module", ["errors", "training", *(n for n in hm.__all__ if inspect.ismodule(getattr(hm, n)))])
def test_a_module_lists_what_is_for_users(module: str) -> None:
    found = getattr(hm, module)
    assert dir(found) == sorted(found.__all__)
    for name in dir(found):
        value = getattr(found, name)
        assert not inspect.ismodule(value)
        home = getattr(value, "__module__", found.__name__)
        assert home.startswith(found.__name__) or not inspect.isroutine(value), f"{name} is of {home}"


def test_every_error_and_warning_is_listed() -> None:
    classes = {name: value for name, value in vars(hm.errors).items() if inspect.isclass(value)}
    own = {name for name, value in classes.items() if value.__module__ == hm.errors.__name__}
    assert "DataError" in own
    assert own <= set(dir(hm.errors))


PROBE = """
import json, logging, random, sys, warnings
import accelerate  # itself imports parts of torch 2.6 that add a warning filter
import numpy as np
import torch

def state():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "torch rng": torch.get_rng_state().tolist(),
        "python rng": str(random.getstate()),
        "numpy rng": str(np.random.get_state()),
        "grad mode": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "matmul precision": torch.get_float32_matmul_precision(),
        "deterministic": [torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark],
        "anomaly": torch.is_anomaly_enabled(),
        "argument validation": torch.distributions.Distribution._validate_args,
        "cuda": torch.cuda.is_initialized(),
        "print options": str(torch._tensor_str.PRINT_OPTS),
        "warnings": str(warnings.filters),
        "logging": [logging.root.level, str(logging.root.handlers)],
        "recursion": sys.getrecursionlimit(),
        "hooks": [str(sys.excepthook), str(sys.displayhook)],
    }

before = state()
import hmoevae
after = state()
print(json.dumps({
    "changed": [key for key in before if before[key] != after[key]],
    "modules": sorted(sys.modules),
    "exports": sorted(hmoevae.__all__),
}))
"""


@pytest.mark.slow
def test_importing_changes_nothing_loads_little_and_says_nothing() -> None:
    """In a process of its own, warnings as errors."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.count("\n") == 1  # the probe's own line
    answer = json.loads(run.stdout)
    assert answer["changed"] == []
    assert answer["exports"] == sorted(hm.__all__)
    loaded = {name.split(".")[0] for name in answer["modules"]}
    assert "hmoevae" in loaded
    tables = {"pandas", "polars", "narwhals", "anndata"}
    optional = {"matplotlib", "torchvision", "sklearn", "scipy", "umap", "mlxtend", "PIL", "transformers", "jinja2"}
    trackers = {"tensorboard", "wandb", "mlflow", "deepspeed", "IPython", "beartype", "pytest"}
    assert loaded & (tables | optional | trackers) == set()


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_a_file_has_one_job_and_a_function_one_idea(module: str) -> None:
    """Where a file grows past 500 lines, or a function past 60 without its docstring, an idea is missing."""
    text = MODULES[module].read_text(encoding="utf-8")
    assert text.count("\n") <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            statements = node.body[1:] if ast.get_docstring(node) is not None else node.body
            n_lines = node.body[-1].end_lineno - statements[0].lineno + 1 if statements else 0
            assert n_lines <= 60, node.name
