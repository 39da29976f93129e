"""What the documentation tells people to type works."""

from __future__ import annotations

import ast
import json
import re
import shlex
import tokenize
from collections.abc import Iterator, Sequence
from io import StringIO
from itertools import product
from pathlib import Path

import pytest
import timm
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file

from classifier_lens.data.planted import CLASSES
from classifier_lens.runner import api as explaining
from classifier_lens.runner.cluster.submit import read_settings
from tests.cli import ROOT, Cli

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TINY = (
    "generator.resolution=16", "generator.steps=2", "generator.attention_maps.resolution=8", "optimizer.steps=1",
    "augment.crops=1",
)  # fmt: skip


def generator(cli: Cli, words: Sequence[str]) -> list[str]:
    """The words that make a command's generator tiny, where it has one."""
    if {"generator=none", "task=input_gradients", "experiment=planted/fig13"} & set(words):
        return [word for word in TINY if not word.startswith(("generator.steps", "generator.attention_maps"))]
    return [f"generator.path={cli.pipeline}", *TINY]


def blocks(document: Path, *kinds: str) -> list[str]:
    return re.findall(rf"```(?:{'|'.join(kinds)})\n(.*?)```", document.read_text(), re.DOTALL)


def name(document: Path) -> str:
    """A document's path in the repository."""
    return str(document.relative_to(ROOT))


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command of every block, as words, with the document that has it."""
    for document in DOCUMENTS:
        for block in blocks(document, "bash", "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield name(document), words


COMMANDS = list(commands())
SUBMISSIONS = [words[2:] for _, words in COMMANDS if words[:2] == ["python", "scripts/submit.py"]]
QUERIES = [words for words in SUBMISSIONS if words[0] in ("status", "collect")]
RUNS = [words[2:] for _, words in COMMANDS if words[:2] == ["python", "run.py"]]
RUNS += [read_settings(words)[1] for words in SUBMISSIONS if words not in QUERIES]
RUNS = list({tuple(words): words for words in RUNS}.values())  # many commands stand on several pages


def test_every_command_is_of_a_kind_that_is_checked() -> None:
    kinds = {tuple(words[:2]) if words[0] == "python" else words[0] for _, words in COMMANDS}
    scripts = {kind for kind in kinds if isinstance(kind, tuple) and kind[1].startswith("scripts/")}
    assert kinds - scripts == {"make", ("python", "run.py")}
    assert all((ROOT / kind[1]).is_file() for kind in scripts)
    assert len(RUNS) >= 10


def test_every_make_target_exists_and_has_its_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    named = {words[1] for _, words in COMMANDS if words[0] == "make"}
    in_text = {name for path in DOCUMENTS for name in re.findall(r"`make ([a-z-]+)", path.read_text())}
    assert named | in_text <= targets and {"install", "demo", "test", "check", "docs", "evaluate", "clean"} <= targets
    for _, words in COMMANDS:
        if words[0] == "make":
            assert all(f"$({word.split('=')[0]})" in makefile for word in words[2:])


def test_what_make_runs_is_there() -> None:
    """`demo`, `test` and `evaluate` call files of this repository, `check` tools that are installed."""
    recipes = re.findall(r"^\t@?\$\(PY\) (\S+)(?: (\S+))?", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {first for first, _ in recipes} >= {"run.py", "-m"}
    for first, second in recipes:
        if first == "-m":
            assert second in ("pytest", "ruff", "mypy", "mkdocs", "pip")
        else:
            assert (ROOT / first).is_file(), first


@pytest.mark.parametrize("words", RUNS, ids=" ".join)
def test_every_run_composes(words: list[str], capfd: pytest.CaptureFixture[str], cli: Cli) -> None:
    plain = [word for word in words if word != "-m"]
    choices = [[f"{w.split('=')[0]}={v}" for v in w.split("=")[1].split(",")] if "-m" in words else [w] for w in plain]
    for job in product(*choices):
        outcome = cli.plain(capfd, *job, "--cfg", "job")
        assert outcome.code == 0, outcome
        config = OmegaConf.create(outcome.out)
        for word in job:
            given = OverridesParser.create().parse_override(word)
            if "." in (key := given.get_key_element()):
                assert OmegaConf.select(config, key) == given.value(), word


@pytest.mark.parametrize(
    "words",
    [["limit=1"], ["task.target=viaduct", "limit=1"], ["task.baseline=pixels", "limit=1"]],
    ids=" ".join,
)
def test_documented_runs_on_a_tiny_generator(words: list[str], capfd: pytest.CaptureFixture[str], cli: Cli) -> None:
    """The default classifier as it is shipped, with the generator exchanged for one that takes a second."""
    assert any(set(words) - {"limit=1"} <= set(run) for run in RUNS), "these words must stand in the documentation"
    outcome = cli.plain(capfd, *words, *generator(cli, words), "logger=none", f"outputs={cli.outputs}")
    assert outcome.code == 0, outcome
    assert len((cli.folder / "results.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_python_block_runs(
    document: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Blocks of one document share their names, in a folder that has the files they speak of."""
    configure = explaining.compose_config
    tiny = [*TINY, f"generator.path={cli.pipeline}", f"outputs={cli.outputs}"]
    monkeypatch.setattr(explaining, "compose_config", lambda overrides, given: configure([*overrides, *tiny], given))
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "sandybrown").save("crab.png")
    Path("names.txt").write_text("\n".join(CLASSES) + "\n")
    torch.manual_seed(0)
    values: dict[str, object] = {}
    text = document.read_text()
    for block in blocks(document, "python"):
        if file := re.search(r"`([\w.]+\.py)`:?\s*$", text[: text.index(block)].removesuffix("```python\n")):
            Path(file[1]).write_text(block)
        exec(compile(block, f"{document.name} (python)", "exec"), values)
    if name(document) in ("README.md", "docs/guides/from_python.md"):
        assert getattr(values["result"], "image").shape == (3, 16, 16)  # noqa: B009
    capfd.readouterr()


def anchors(document: Path) -> set[str]:
    """The addresses of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_and_paths_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([\w-]+))?\)", text):
        if not target.startswith("http"):
            path = document.parent / target if target else document
            assert path.exists(), target
            assert not anchor or anchor in anchors(path), f"{target}#{anchor}"
    for path in re.findall(r"`((?:conf|data|docs|models|runner|scripts|tasks|tests)/[\w./-]+)`", text):
        made = ("docs/results/", "models/pretrained/")
        assert (ROOT / path).exists() or path.startswith(made), path


def test_the_documented_keys_exist_with_their_defaults() -> None:
    table = (ROOT / "docs" / "reference" / "configuration.md").read_text()
    rows = re.findall(r"^\| `([a-z_.]+)` \| `?([^|`]+?)`? \|", table, re.MULTILINE)
    config = explaining.compose_config([])
    assert len(rows) >= 24
    for key, default in rows:
        value = OmegaConf.select(OmegaConf.create(config), key, throw_on_missing=True)
        if re.fullmatch(r"[\d.]+|null|auto|none|outputs", default):
            assert str("null" if value is None else value) == default, key


ALONE = [words[2:] for page, words in COMMANDS if page == "docs/guides/without_a_generator.md"]


@pytest.mark.parametrize("words", ALONE, ids=lambda words: words[0])
def test_images_and_a_checkpoint_alone_reach_a_result(
    words: list[str], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The documented commands of somebody who has a folder of images and the weights of a network, of a small one here
    and at a small size; no generator is built."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "classifier_lens.models.generator.latent_diffusion.load_networks",
        lambda *arguments: pytest.fail("a generator is loaded"),
    )
    names = ["crab", "shark", "bridge"]
    for seed, file in enumerate(("my.safetensors", "other.safetensors")):
        torch.manual_seed(seed)
        save_file(timm.create_model("test_resnet", num_classes=len(names)).state_dict(), file)
    Path("names.txt").write_text("\n".join(names))
    for i, name in enumerate(names):
        Path("images", name).mkdir(parents=True)
        for k in range(2):
            noise = (255 * torch.rand(40, 48, 3, generator=torch.Generator().manual_seed(10 * i + k))).byte()
            Image.fromarray(noise.numpy()).save(Path("images", name, f"{k}.png"))
    small = ["generator.resolution=32", "limit=1", "logger=none", f"outputs={cli.outputs}", "augment.crops=2"]
    task, steps = words[0].partition("=")[2], {"input_gradients": [], "neuron_vis": ["baseline.yosinski.steps=2"]}
    few = steps.get(task, ["baseline.feature_attack.steps=2"] if task == "neuron_cf" else ["optimizer.steps=2"])
    overrides = [re.sub("=resnet[0-9]+$", "=test_resnet", word) for word in words]
    outcome = cli.plain(capfd, *overrides, *small, *few)
    assert outcome.code == 0, outcome
    (record,) = map(json.loads, (cli.folder / "results.jsonl").read_text().splitlines())
    assert "latent_distance" not in record["loss"]


# Words of this project's former dialect, and British spellings: the glossary of the field has others.
DIALECT = (
    r"pictures?", r"answers?", r"asked", r"surest", r"surely", r"portraits?", r"doubts?", r"contestants?", r"exchanged",
    r"(?:is|are|was) called", r"called so", r"what is free", r"free to change", r"drawn", r"tied", r"begun", r"worded",
    r"stands? beside", r"people say", r"fresh", r"grey", r"colours?", r"optimis\w+", r"normalis\w+",
    r"neighbour\w*", r"licences?",
)  # fmt: skip
# Code of Markdown, of Jinja and of HTML.
NOT_PROSE = r"```.*?```|`[^`]*`|\{[{%#].*?[}%#]\}|<!--.*?-->|<(script|style)\b.*?</\1>|</?\w[^>]*>"
PROSE = [
    *DOCUMENTS,
    *sorted((ROOT / "models" / "pretrained").rglob("*.md")),
    *sorted((ROOT / "runner" / "report" / "templates").glob("*.j2")),
]


@pytest.mark.parametrize("document", PROSE, ids=name)
def test_prose_uses_the_terms_of_the_field(document: Path) -> None:
    prose = re.sub(NOT_PROSE, "", document.read_text(), flags=re.DOTALL)
    found = re.findall(rf"\b(?:{'|'.join(DIALECT)})\b", prose, re.IGNORECASE)
    assert not found, sorted(set(found))


CODE_FOLDERS = ("conf", "data", "models", "runner", "scripts", "tasks")
# The same in docstrings and comments of code, apart from quoted values and names. There a function is called.
CODE_DIALECT = (
    *(word for word in DIALECT if "called" not in word), r"called so", r"answered", r"told", r"nobody", r"whoever",
    r"excit\w+", r"maximis\w+", r"minimis\w+", r"initialis\w+", r"labell\w+", r"modell\w+", r"centre",
    r"favour\w*", r"behaviour\w*", r"what is asked", r"looked for", r"hangs? on",
)  # fmt: skip
QUOTED = r"`[^`]*`|\"[^\"]*\""


def code_prose(path: Path) -> str:
    """The docstrings and comments of a module."""
    source = path.read_text()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [ast.get_docstring(n) or "" for n in ast.walk(ast.parse(source)) if isinstance(n, documented)]
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    return "\n".join([*docstrings, *(token.string for token in tokens if token.type == tokenize.COMMENT)])


@pytest.mark.parametrize("folder", CODE_FOLDERS)
def test_docstrings_and_comments_use_the_terms_of_the_field(folder: str) -> None:
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        prose = re.sub(QUOTED, "", code_prose(path))
        if words := re.findall(rf"\b(?:{'|'.join(CODE_DIALECT)})\b", prose, re.IGNORECASE):
            found[name(path)] = sorted(set(words))
    assert not found
