"""The pages name only what exists: links, anchors, commands, options, settings, commits of measurements."""

import argparse
import ast
import importlib
import json
import re
import shlex
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from midigen_jax import config as cfg
from midigen_jax.cli.main import SUBCOMMANDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
SHELL = ("sh", "bash")
LINK = re.compile(r"(!?)\[((?:`[^`]*`|[^\]`])*)\]\(([^)\s]+)\)")
SETTING = re.compile(rf"(?<![\w./-])(?:{'|'.join(cfg.Config.__dataclass_fields__)})\.\w+(?:=\S+)?")
FILE = re.compile(r"(?:midigen_jax|kernels|configs|tests|benchmarks|docs)/[\w./-]*")
RESULTS = r"\((?:\.\./benchmarks/)?results/([\w-]+\.json)\)"
RESULT = re.compile(RESULTS + r"[^(]*?commit\s+`([0-9a-f]{7})`")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced code blocks of a page: language and text."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """A page without its fenced code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def inline_code(page: Path) -> list[str]:
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> list[list[str]]:
    """The commands of a page, in its shell blocks and between backticks, as lists of words."""
    lines = [line for kind, text in blocks(page) if kind in SHELL for line in text.replace("\\\n", " ").splitlines()]
    found = [shlex.split(line, comments=True) for line in lines]
    for code in inline_code(page):
        if re.match(r"(\S*python|midigen) ", code):
            found.append(shlex.split(code))
    return [words for words in found if words]


def subcommand(words: list[str]) -> tuple[str, list[str]] | None:
    """The subcommand of midigen that a command stands for, and its arguments; None if it is another command."""
    if words[0] == "midigen":
        return (words[1], words[2:]) if words[1] != "SUBCOMMAND" else None
    if Path(words[0]).name != "python":
        return None
    if words[1] in ("train.py", "sample.py"):
        return words[1].removesuffix(".py"), words[2:]
    if words[1] == "-m" and words[2].startswith("midigen_jax."):
        return {"music21_corpus": "music21"}.get(name := words[2].partition(".")[2], name), words[3:]
    return None


class Parsed(Exception):
    """Stops a command when it has parsed its arguments."""


def parse(monkeypatch: pytest.MonkeyPatch, name: str, arguments: list[str]) -> argparse.Namespace:
    """The arguments of a subcommand as its own parser understands them."""

    def parse_args(self: argparse.ArgumentParser) -> None:
        raise Parsed(self.parse_known_args(arguments))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(Parsed) as parsed:
        importlib.import_module(f"midigen_jax.cli.{name}").main()
    args, unknown = parsed.value.args[0]
    assert not unknown, f"midigen {name} has no {unknown}"
    return args


@cache
def known_options() -> set[str]:
    """The options of all commands and benchmarks, as they are written in the sources."""
    sources = [*(ROOT / "midigen_jax" / "cli").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    sources.append(ROOT / "tests" / "conftest.py")
    return {option for path in sources for option in re.findall(r'"(--[\w-]+)"', path.read_text())} | {"--help"}


@cache
def definitions(path: Path) -> set[str]:
    """The functions, classes and methods of a module."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)}
    return found


def test_there_are_pages():
    """The other tests find something to check."""
    assert len(PAGES) >= 9
    assert sum(len(commands(page)) for page in PAGES) > 20


def test_readme_fits_on_two_screens():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    assert "`make demo`" in text
    assert "`make test`" in text


@each_page
def test_links_lead_somewhere(page):
    for _, label, target in LINK.findall(prose(page)):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), target
        if path.suffix == ".py" and re.fullmatch(r"`[\w.]+`", label) and not label.endswith(".py`"):
            assert label.strip("`") in definitions(path), f"{label} is not in {target}"


@each_page
def test_files_exist(page):
    for code in inline_code(page):
        if FILE.fullmatch(code):
            assert (ROOT / code).exists(), code


@each_page
def test_commands_are_understood(page, monkeypatch):
    for words in commands(page):
        known = subcommand(words)
        if known is None:
            continue
        name, arguments = known
        assert name in SUBCOMMANDS, words
        if arguments in ([], ["..."]):
            continue
        args = parse(monkeypatch, name, arguments)
        if name == "train":
            cfg.override(cfg.load(ROOT / args.config), args.set)


@each_page
def test_benchmarks_are_there(page):
    for words in commands(page):
        if Path(words[0]).name == "python" and words[1].startswith("benchmarks/"):
            assert (ROOT / words[1]).exists(), words
            assert {word for word in words if word.startswith("--")} <= known_options(), words
            settings = [value for option, value in pairwise(words) if option == "--set"]
            cfg.override(cfg.Config(), settings)


@each_page
def test_options_exist(page):
    """Options and settings between backticks, also without a command before them."""
    for code in inline_code(page):
        if code.startswith("--"):
            assert {word for word in code.split() if word.startswith("--")} <= known_options(), code
        for setting in SETTING.findall(code):
            key, _, value = setting.partition("=")
            assert key in cfg.flatten(cfg.Config()) or key.endswith(".py"), code
            if value and value != "...":
                cfg.override(cfg.Config(memory=cfg.Memory(knn=0)), [setting])


@each_page
def test_measurements_name_their_commit(page):
    """Where a page says which commit a result is from, the result says the same."""
    text = page.read_text()
    found = RESULT.findall(text)
    assert len(found) == len(re.findall(RESULTS, text))
    for name, commit in found:
        result = json.loads((ROOT / "benchmarks" / "results" / name).read_text())
        assert result["environment"]["commit"].startswith(commit), f"{name} was measured at another commit"
