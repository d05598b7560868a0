"""The files around the code say what is so: contributing, changelog, hooks, types."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

import yaml

import lynx_exp

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()


def test_contributing_names_targets_and_files_that_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"`?make ([a-z-]+)", text))
    assert {"install", "check", "test", "test-slow", "fuzz", "test-vllm", "test-oldest", "reference"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target
    paths = re.findall(r"`((?:tests|benchmarks|lynx_exp|conf|docs)/[^`*]*)`", text)
    assert len(paths) > 8
    for path in paths:
        assert (ROOT / path).exists(), path


def test_the_changelog_knows_the_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version == lynx_exp.__version__
    assert re.search(rf"^## \[{re.escape(version)}\] - ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_hooks_run_what_make_check_runs_and_download_nothing():
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    hooks = repositories[0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    check = MAKEFILE.partition("\ncheck:")[2].partition("\n\n")[0]
    run = [words.split(" .")[0] for words in re.findall(r"\$\(BIN\)/(.*)", check)]
    assert [hook["entry"].removesuffix(" --force-exclude") for hook in hooks] == run


def test_both_packages_are_typed():
    assert all((ROOT / package / "py.typed").is_file() for package in ("lynx_exp", "analysis"))


def test_the_citation_is_of_this_version_and_invents_nobody():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == lynx_exp.__version__ and citation["license"] == project["license"]
    assert citation["authors"] == [{"name": "lynx_exp contributors"}]
    assert citation.keys() >= {"cff-version", "message", "title"} and "url" not in citation
    assert citation.keys() <= {
        *("cff-version", "message", "title", "abstract", "type", "authors", "version", "license", "keywords"),
        *("date-released", "doi", "references", "preferred-citation", "repository-code", "identifiers"),
    }, "what the format's schema knows, of what could be here"
    assert citation["cff-version"] == "1.2.0" and citation["type"] in ("software", "dataset")
    assert all(isinstance(word, str) for word in citation["keywords"]) and isinstance(citation["version"], str)


def test_the_container_copies_what_is_there_and_installs_extras_that_are_declared():
    text = (ROOT / "Dockerfile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for words in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        assert all((ROOT / word).exists() for word in words.split()), words
    for group in re.findall(r"'\.\[(.*?)\]'", text):
        assert set(group.split(",")) <= set(extras)
    assert re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE) == ["base", "cpu", "artifact", "cuda"]
    assert text.count("-c constraints.txt") == 3
    (version,) = re.findall(r"^FROM python:(\d+\.\d+)-slim AS base$", text, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["requires-python"] == f">={version}", "the version that constraints.txt was tested with"
    base = text.partition(" AS cpu")[0]
    copied = {name for words in re.findall(r"^COPY (.*) \S+$", base, re.MULTILINE) for name in words.split()}
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    about = project["project"]
    needed = {*wheel["packages"], *wheel["force-include"], about["readme"], *about["license-files"]}
    assert needed <= copied, "what the wheel is built of"
    instructions = [line.split(" ", 1) for line in text.splitlines() if re.match(r"[A-Z]", line)]
    assert {word for word, _ in instructions} == {"FROM", "ENV", "WORKDIR", "COPY", "ARG", "RUN", "ENTRYPOINT"}
    for word, rest in instructions:
        if word == "ENTRYPOINT":
            command = json.loads(rest)
            if command[0] == "python":
                assert command[1] == "-m" and (ROOT / command[2].replace(".", "/") / "__main__.py").is_file()
            else:
                assert command[0] in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
        if word == "RUN":
            assert subprocess.run(["bash", "-n"], input=rest, text=True).returncode == 0, rest
    stages = [re.match(r"FROM (\S+)", line)[1] for line in text.splitlines() if line.startswith("FROM")]
    assert [stage for stage in stages if ":" not in stage] == ["base", "cpu", "base"], "the others come from a registry"
