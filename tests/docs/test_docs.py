"""The documentation: links lead somewhere, commands exist, code runs, tables are up to date."""

import ast
import doctest
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name

import pytest
import tables
import torch

import hmoevae as hm

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)])


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


# --- links ----------------------------------------------------------------------------------------------------------


def links() -> Iterator[tuple[Path, str]]:
    """Every link and picture that leads to a file or a heading of ours."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
            link = target[0] or target[1]
            if not re.match(r"[a-z]+:", link):
                yield page, link


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "link"), [pytest.param(p, x, id=f"{name_of(p)}-{x}") for p, x in links()])
def test_links_lead_somewhere(page: Path, link: str) -> None:
    file, _, anchor = link.partition("#")
    target = (page.parent / file).resolve() if file else page
    assert target.exists()
    if anchor:
        assert anchor in anchors(target)


def test_every_page_is_in_the_sites_contents() -> None:
    """In the index, or in the contents of the page that it is a part of."""
    listed = [
        name
        for page in PAGES
        for contents in blocks(page, "{toctree}")
        for name in re.findall(r"^([\w/]+)$", contents, re.MULTILINE)
    ]
    assert len(listed) == len(set(listed))
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES if DOCS in page.parents}
    assert pages == {*listed, "index"}


def test_every_picture_is_shown() -> None:
    shown = {(page.parent / link).resolve() for page, link in links()}
    assert set((DOCS / "images").iterdir()) <= shown


# --- commands -------------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[Path, list[str]]]:
    """Every command that runs a Python file of ours."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for command in re.findall(
            r"(?:python3?|torchrun --nproc-per-node \d) ((?:examples|benchmarks|docs)/[\w/.]+\.py[^\n`&#|]*)", text
        ):
            yield page, command.split()


def options(script: Path) -> set[str]:
    """The options that a script's parser knows, its own and those of the modules beside it that it imports."""
    known = {"--help"}
    tree = ast.parse(script.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            known |= {a.value for a in node.args if isinstance(a, ast.Constant)}
        for module in [alias.name for alias in node.names] if isinstance(node, ast.Import) else []:
            if (beside := script.parent / f"{module}.py").is_file():
                known |= options(beside)
    return known


@pytest.mark.parametrize(
    ("page", "command"), [pytest.param(p, c, id=f"{name_of(p)}-{' '.join(c)}") for p, c in commands()]
)
def test_commands_name_files_and_options_that_exist(page: Path, command: list[str]) -> None:
    script, *arguments = command
    assert (ROOT / script).is_file()
    given = {argument for argument in arguments if argument.startswith("--")}
    assert given <= options(ROOT / script)


# --- code -----------------------------------------------------------------------------------------------------------


LONG = {"docs/missing.md", "docs/surgery.md", "docs/tutorials/own_table.md"}  # their sessions train for seconds


def snippets(language: str) -> list[object]:
    """Every code block of every page by itself, README.md's among them."""
    return [
        pytest.param(page, block, id=f"{name_of(page)}-{i}", marks=[pytest.mark.slow] if name_of(page) in LONG else [])
        for page in PAGES
        for i, block in enumerate(blocks(page, language))
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "block"), snippets("python"))
def test_a_snippet_runs_as_pasted(page: Path, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself, with no name but its own, in an empty folder: as a reader does who has just installed the package."""
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        exec(compile(block, name_of(page), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(("page", "block"), snippets("pycon"))
def test_a_session_gives_what_it_says(page: Path, block: str) -> None:
    session = doctest.DocTestParser().get_doctest(block, {}, name_of(page), str(page), 0)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert session.examples
    assert doctest.DocTestRunner(optionflags=flags).run(session).failed == 0


def test_code_is_marked_as_code() -> None:
    """Python in a block of another language would be run by nobody."""
    for page in PAGES:
        fences = re.findall(r"^```(\S*)[^\n]*\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        for language, block in fences:
            is_run = language in {"python", "pycon"}
            assert is_run or not re.search(r"^(import|from) \w+|^>>> ", block, re.MULTILINE), name_of(page)


# --- tables ---------------------------------------------------------------------------------------------------------


def test_tables_are_up_to_date() -> None:
    assert {name_of(page) for page in tables.pages()} >= {"README.md", "docs/results.md", "docs/balance.md"}
    tables.main(["--check"])  # or ends with the page that is not


def test_a_page_out_of_date_is_named_and_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    page = tmp_path / "docs" / "more" / "page.md"
    page.parent.mkdir(parents=True)
    (tmp_path / "README.md").write_text("nothing asked for", encoding="utf-8")
    page.write_text("before\n<!-- table: published -->\nbetween\n<!-- table: published -->\nold\n<!-- end -->\nbehind")
    with pytest.raises(SystemExit, match=r"page\.md: its tables are not those"):
        tables.main(["--check"])
    tables.main([])
    tables.main(["--check"])
    text = page.read_text(encoding="utf-8")
    assert text.count(tables.TABLES["published"]()) == 2
    assert text.count("<!-- end -->\nbe") == 2  # each marker keeps its line
    assert [word in text for word in ("before", "between", "old", "behind")] == [True, True, False, True]


def test_tables_asked_for_exist_and_have_rows() -> None:
    asked = {name for page in PAGES for name in tables.MARK.findall(page.read_text(encoding="utf-8"))}
    assert asked == set(tables.TABLES)
    for name in asked - {"others"}:  # there may be none
        assert len(tables.TABLES[name]().splitlines()) > 2, name


def test_a_new_result_turns_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = {"dataset": "mnist", "recipe": "new", "precision": "fp32", "epochs": 3, "leaves": 2, "usage": [0.5, 0.5]}
    runs = [{**run, "seed": i, "accuracy": a, "nmi": a, "elbo_loss": a} for i, a in enumerate((0.25, 0.75))]
    lines = "\n".join(map(json.dumps, runs))
    (tmp_path / "new.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert "| new, flat, 2 leaves, fp32 | 2 | 3 | 50.0 ± 35.4 |" in tables.clustering()
    assert "| mnist, new, flat, 2 leaves, fp32 | 3 | 2 | 25 | 50 | 75 | 1.00 |" in tables.reliability()
    before = "a\n<!-- table: headline -->\nold\n<!-- end -->\nb"
    assert tables.fill(tables.fill(before)) == tables.fill(before)
    assert "50.0 ± 35.4 %" in tables.fill(before)
    assert "| -0.5 ± 0.4 |" in tables.fill(before), "a bound"
    assert "old" not in tables.fill(before)


def test_a_report_of_a_new_sort_turns_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hardware = {"gpu": None, "cpu": "some", "cpu_capability": "AVX2", "threads": 1, "cores": 2}
    rows = [{"fault": "a cut", "tries": 9, "share": 0.123456, "each": [1, 2]}, {"fault": "a flip", "tries": 8}]
    report = {"date": "2026-01-02T03:04", "hardware": hardware, "rows": rows}
    (tmp_path / "new.json").write_text(json.dumps(report), encoding="utf-8")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert "`new.json`: some (AVX2), 1 of 2 cores, 2026-01-02" in tables.others()
    assert "| a cut | 9 | 0.1235 |\n| a flip | 8 |  |" in tables.others()
    assert "`new.json`" in tables.files()


def test_machines_are_kept_apart_and_the_newest_report_of_each_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = {"op": "train", "leaves": 10, "depth": 1, "batch": 100, "precision": "fp32"}
    made = [("AVX512", "2026-01-02", 2.0), ("AVX512", "2026-01-01", 3.0), ("AVX2", "2026-01-03", 9.0)]
    for capability, date, ms in made:
        ours, loop = ({**cell, "what": what, "ms": ms, "speedup": 1.5} for what in ("hmoevae", "loop"))
        hardware = {"gpu": None, "cpu": "some", "cpu_capability": capability, "threads": 1, "cores": 2}
        report = {"date": date, "hardware": hardware, "rows": [ours, loop]}
        (tmp_path / f"{ms}.json").write_text(json.dumps(report), encoding="utf-8")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    shown = tables.steps()
    assert "2.00 ms" in shown.partition("some (AVX512), 1 of 2 cores, 2026-01-02:")[2]
    assert "9.00 ms" in shown.partition("some (AVX2), 1 of 2 cores, 2026-01-03:")[2]
    assert "3.00 ms" not in shown


# --- the reference --------------------------------------------------------------------------------------------------

REFERENCE = "\n".join(page.read_text(encoding="utf-8") for page in sorted((DOCS / "reference").glob("*.md")))
INTERNALS = (DOCS / "contributing" / "internals.md").read_text(encoding="utf-8")


def documented(text: str) -> dict[str, object]:
    """Every class and function that pages of reference show, by the name under which they do."""
    found: dict[str, object] = {}
    module_name = ""
    directives = re.finditer(r"^\.\. (\w+):: (\S+)\n((?:   :.*\n)*)", text, re.MULTILINE)
    for kind, name, options in (directive.groups() for directive in directives):
        match kind:
            case "currentmodule":
                module_name = name
            case "autoclass" | "autofunction":
                full = name if name.startswith("hmoevae.") else f"{module_name}.{name}"
                found[full] = resolve_name(full)
            case "automodule":
                module = importlib.import_module(name)
                members = re.search(r":members:(.*)", options)
                left_out = re.search(r":exclude-members:(.*)", options)
                assert members
                given = [member.strip() for member in members[1].split(",") if member.strip()]
                hidden = {member.strip() for member in left_out[1].split(",")} if left_out else set()
                own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == name and n[0] != "_"]
                own = getattr(module, "__all__", own)  # as Sphinx does
                for member in given or [n for n in own if n not in hidden]:
                    value = getattr(module, member)
                    if inspect.isclass(value) or inspect.isfunction(value):
                        found[f"{name}.{member}"] = value
    return found


SHOWN = documented(REFERENCE)


def methods(cls: type) -> dict[str, object]:
    """The public methods and properties that a class defines itself, but for torch's hooks and the upload."""
    kinds = (property, classmethod, staticmethod)
    return {
        name: value
        for name, value in vars(cls).items()
        if not name.startswith("_")
        and name not in ("forward", "extra_repr", "push_to_hub")
        and (inspect.isfunction(value) or isinstance(value, kinds))
    }


def examples(value: object) -> str:
    """The code of the examples in a docstring."""
    docstring = getattr(value, "__doc__", None) or ""
    return "".join(example.source for example in doctest.DocTestParser().get_examples(docstring))


def test_every_public_name_is_in_the_reference() -> None:
    for name in hm.__all__:
        value = getattr(hm, name)
        if inspect.ismodule(value):
            assert f"automodule:: {value.__name__}\n" in REFERENCE, name
        else:
            assert SHOWN[f"hmoevae.{name}"] is value, name


def test_the_overview_has_a_line_for_every_name() -> None:
    overview = (DOCS / "reference.md").read_text(encoding="utf-8")
    lines = re.findall(r"^   ([\w.]+)$", overview, re.MULTILINE)
    assert {f"hmoevae.{line}" for line in lines} == set(SHOWN)
    assert len(lines) == len(SHOWN)


def test_the_reference_has_no_internals() -> None:
    inside = documented(INTERNALS)
    assert inside
    assert not {value.__module__ for value in SHOWN.values()} & {value.__module__ for value in inside.values()} - {
        "hmoevae.plan",
        "hmoevae.errors",
        "hmoevae.door",
        # The room of networks: what a user builds on, and what is made of it.
        "hmoevae.nn.balance",
        "hmoevae.nn.likelihoods.build",
        "hmoevae.nn.likelihoods.module",
        "hmoevae.nn.objectives",
        "hmoevae.nn.paths",
        "hmoevae.nn.routes",
    }
    assert not set(SHOWN) & set(inside)


def is_error(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Warning | Exception)


NEEDS_AN_EXTRA = {"hmoevae.starts.umap"}
EVERYTHING = SHOWN | documented(INTERNALS)
NAMES = {name: value for name, value in EVERYTHING.items() if not is_error(value) and name not in NEEDS_AN_EXTRA}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_has_an_example(name: str) -> None:
    """In its own docstring, where the doctests run it."""
    assert re.search(rf"\b{name.rpartition('.')[2]}\b", examples(NAMES[name]))


@pytest.mark.parametrize("name", [name for name in hm.__all__ if inspect.isclass(getattr(hm, name))])
def test_every_method_has_an_example(name: str) -> None:
    """In its own docstring, in that of its class, or in that of a class above."""
    cls = getattr(hm, name)
    shown = "".join(examples(base) for base in cls.__mro__[:-1] if base.__module__.startswith("hmoevae"))
    for method, function in methods(cls).items():
        assert re.search(rf"\b{method}\b", shown + examples(function)), f"{method}: no example"
