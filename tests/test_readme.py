"""The documents match the code: commands, options, snippets, links, names of files and modules."""

from __future__ import annotations

import itertools
import pkgutil
import re
import shlex
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sacvit_deploy.cli import VERBS, main
from sacvit_deploy.families.config import PRESETS
from sacvit_deploy.manifest import Manifest
from sacvit_deploy.samples import sample_pictures

_ROOT = Path(__file__).resolve().parents[1]
_DOCUMENTS = [_ROOT / "README.md", *sorted((_ROOT / "docs").glob("*.md"))]
_TEXTS = {path.relative_to(_ROOT).as_posix(): path.read_text("utf-8") for path in _DOCUMENTS}
_FOLDERS = (".", "benchmarks", "docs", "sacvit_deploy/assets/demo_bundle", "tests/golden")
_MARKDOWN = {
    path.relative_to(_ROOT).as_posix(): path.read_text("utf-8")
    for folder in _FOLDERS
    for path in sorted(_ROOT.glob(f"{folder}/*.md"))
}
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _blocks(document: str, *languages: str) -> list[str]:
    return [code for language, code in _FENCE.findall(_TEXTS[document]) if language in languages]


def _shell_lines(*documents: str) -> list[list[str]]:
    """Every command in a shell block: all lines of `sh`, the prompted ones of `console`."""
    lines = []
    for document in documents or _TEXTS:
        for block in _blocks(document, "sh"):
            lines += block.splitlines()
        for block in _blocks(document, "console"):
            lines += [line[2:] for line in block.splitlines() if line.startswith("$ ")]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def _command(verb: str) -> click.Command:
    command = main.get_command(click.Context(main), verb)
    assert isinstance(command, click.Command), f"there is no verb {verb!r}"
    return command


def _flags(verb: str) -> set[str]:
    options = (p for p in _command(verb).params if isinstance(p, click.Option))
    return {flag for option in options for flag in option.opts}


# `> file` is for the shell.
_COMMANDS = [
    [*itertools.takewhile(lambda word: word != ">", words[1:])]
    for words in _shell_lines()
    if words[0] == "sacvit-deploy"
]


@pytest.mark.parametrize("arguments", _COMMANDS, ids=" ".join)
def test_commands_parse(arguments) -> None:
    verb, *rest = arguments
    assert verb in VERBS
    # As under the group: without a parent, click would remember other names of --help for the verb.
    parent = main.make_context("sacvit-deploy", ["demo"])
    _command(verb).make_context(verb, rest, parent=parent)  # UsageError where it does not fit


def test_the_readme_shows_every_verb() -> None:
    shown = {words[1] for words in _shell_lines("README.md") if words[0] == "sacvit-deploy"}
    assert shown == set(VERBS)


def test_the_readme_shows_what_the_demo_prints(tmp_path) -> None:
    ran = CliRunner().invoke(main, ["demo", "-o", str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    block = _blocks("README.md", "console")[0]
    assert block.startswith("$ sacvit-deploy demo\n")
    count = len(sample_pictures())
    assert ran.stdout.splitlines()[:count] == block.splitlines()[1 : count + 1]


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (_ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    named = [words[1] for words in _shell_lines() if words[0] == "make"]
    assert named[:2] == ["demo", "test"]
    assert set(named) <= set(targets)


def test_extras_named_exist() -> None:
    project = (_ROOT / "pyproject.toml").read_text("utf-8")
    table = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^([a-z-]+) = \[", table, re.MULTILINE))
    installed = re.findall(r"'\.\[([a-z,-]+)\]'", "".join(_MARKDOWN.values()))
    listed = re.search(r"Further extras are ([^.]+)\.", _TEXTS["README.md"])
    assert listed
    named = {extra for names in installed for extra in names.split(",")}
    assert named | set(re.findall(r"`([a-z-]+)`", listed[1])) <= extras


@pytest.mark.parametrize("document", _TEXTS)
def test_options_named_in_the_text_exist(document) -> None:
    prose = _FENCE.sub("", _TEXTS[document])
    named = set(re.findall(r"`(--[a-z][a-z0-9-]*)", prose))
    known = set.union(*map(_flags, VERBS)) | {"--help", "--version"}
    assert named <= known


def test_export_options_are_all_documented() -> None:
    section = _TEXTS["docs/export.md"].partition("## Options")[2].partition("\n## ")[0]
    first_cells = [row.split("|")[1] for row in section.splitlines() if row.startswith("|")]
    documented = re.findall(r"`(--?[a-z][a-z-]*)`", " ".join(first_cells))
    assert set(documented) == _flags("export")


def test_presets_are_all_documented() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (\d+)x(\d+) \| (\d*) ?\| (\d*) ?\|", _TEXTS["docs/export.md"], re.MULTILINE
    )
    written = {name: (int(h), int(w), n, m) for name, h, w, n, m in rows}
    assert written == {
        name: (
            *config.image_size,
            str(config.num_coarse_tokens) if config.two_stage else "",
            str(config.num_targets) if config.two_stage else "",
        )
        for name, config in PRESETS.items()
    }


def test_the_example_of_bundle_json_is_one() -> None:
    (text,) = _blocks("docs/bundle-format.md", "json")
    manifest = Manifest.from_json(text)
    assert manifest.config.num_targets == 8
    assert manifest.selection == "graph"


@pytest.mark.parametrize("document", [name for name in _TEXTS if _blocks(name, "python")])
def test_python_snippets_run(
    document, sac_host, backbone_bundle, sac_checkpoint, tmp_path, monkeypatch
) -> None:
    (tmp_path / "bundle").symlink_to(sac_host.path)
    (tmp_path / "backbone").symlink_to(backbone_bundle.path)
    shutil.copy(sac_checkpoint, tmp_path / "model.safetensors")
    shutil.copytree(sample_pictures()[0].parent, tmp_path / "pictures")
    for name, picture in zip(("cat.jpg", "dog.jpg"), sample_pictures(), strict=False):
        shutil.copy(picture, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"__name__": "snippet"}
    for number, code in enumerate(_blocks(document, "python")):
        exec(compile(code, f"{document}, snippet {number}", "exec"), scope)


@pytest.mark.parametrize("document", _MARKDOWN)
def test_links_lead_somewhere(document) -> None:
    links = re.findall(r"\]\(([^)]+)\)", _MARKDOWN[document])
    local = [link.partition("#") for link in links if "://" not in link]
    folder = (_ROOT / document).parent
    assert [name for name, _, _ in local if name and not (folder / name).exists()] == []
    for name, _, anchor in local:
        if anchor:
            target = (folder / name if name else _ROOT / document).resolve()
            assert anchor in _anchors(_MARKDOWN[target.relative_to(_ROOT).as_posix()])


def _anchors(text: str) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("document", _MARKDOWN)
def test_files_and_modules_named_exist(document) -> None:
    files = re.findall(r"[\w.]+/[\w./]+\.py\b", _MARKDOWN[document])
    places = (_ROOT, _ROOT / "sacvit_deploy")
    assert [f for f in files if not any((place / f).exists() for place in places)] == []
    for name in re.findall(
        r"\b(?:sacvit_deploy|benchmarks)(?:\.[a-zA-Z_]\w*)+", _MARKDOWN[document]
    ):
        pkgutil.resolve_name(name)  # ImportError or AttributeError where there is none


def test_the_stories_name_functions_and_classes_of_today() -> None:
    page = _TEXTS["docs/architecture.md"].partition("## One picture")[2]
    steps = re.findall(r"^\d+\. .+$", page.partition("## The two graphs")[0], re.MULTILINE)
    assert len(steps) == 30
    named = re.findall(r"`(?:[A-Z]\w+\.)?([A-Za-z_]+)`", " ".join(steps))
    source = "".join(file.read_text("utf-8") for file in _ROOT.glob("sacvit_deploy/**/*.py"))
    defined = set(re.findall(r"^ *(?:def|class) (\w+)", source, re.MULTILINE))
    assert [name for name in named if name not in defined] == []
