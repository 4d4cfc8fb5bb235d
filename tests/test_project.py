"""The house rules that a machine can check: which room imports which, and what docs say."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lamina
import lamina.store

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "src/lamina"

# Imports point down only; a room may import itself and those after it. The two that are
# not a room's own (errors, types, progress) may be imported by all.
ROOMS = ("cli", "serve", "sandbox", "store", "oci", "drivers", "archive", "kernel")
SHARED = ("errors", "progress", "types", "__version__")
MODULES = sorted(PACKAGE.rglob("*.py"))
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def imports(path: Path) -> Iterator[str]:
    """The dotted names that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_is_below_it(room: str) -> None:
    above = ROOMS[: ROOMS.index(room)]
    wrong = [
        f"{name_of(path)} imports {name}"
        for path in MODULES
        if path.is_relative_to(PACKAGE / room)
        for name in imports(path)
        if name.startswith(tuple(f"lamina.{other}." for other in above))
    ]
    assert wrong == []


@pytest.mark.parametrize(("module", "room"), [("ctypes", "kernel"), ("sqlite3", "store")])
def test_only_one_room_uses(module: str, room: str) -> None:
    users = {p for p in MODULES if any(n.split(".")[0] == module for n in imports(p))}
    assert {name_of(p) for p in users if not p.is_relative_to(PACKAGE / room)} == set()


def test_no_module_is_near_800_lines() -> None:
    long = {name_of(p): n for p in MODULES if (n := len(p.read_bytes().splitlines())) > 600}
    assert long == {}


def test_importing_the_package_loads_no_room() -> None:
    source = "import lamina, sys; print(*sorted(m for m in sys.modules if 'lamina' in m))"
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            f"import sys; sys.path.insert(0, '{PACKAGE.parent}'); {source}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["lamina", "lamina.lazy"]


def test_every_public_name_is_there() -> None:
    assert [name for name in lamina.__all__ if not hasattr(lamina, name)] == []


def test_the_picture_is_what_its_script_draws(tmp_path: Path) -> None:
    drawn = tmp_path / "layers.svg"
    subprocess.run([sys.executable, REPOSITORY / "scripts/picture", drawn], check=True)
    assert drawn.read_bytes() == (REPOSITORY / "docs/layers.svg").read_bytes()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_to_files_of_the_repository_lead_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in t]
    broken = []
    for target in targets:
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def anchors(document: Path) -> set[str]:
    """The anchors that a renderer gives to the headings of a document."""
    titles = re.findall(r"^#+ +(.+?) *$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_reference_names_every_error() -> None:
    text = (REPOSITORY / "docs/reference.md").read_text()
    tree = ast.parse((PACKAGE / "errors.py").read_bytes())
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert [name for name in classes if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", ["Store", "Image", "Container"])
def test_the_reference_names_every_member(name: str) -> None:
    text = (REPOSITORY / "docs/reference.md").read_text()
    members = [member for member in vars(getattr(lamina.store, name)) if member[0] != "_"]
    assert [m for m in members if not re.search(rf"`{m}[`(]", text)] == []


def test_the_commands_are_what_the_script_writes(tmp_path: Path) -> None:
    written = tmp_path / "commands.md"
    subprocess.run([sys.executable, REPOSITORY / "scripts/reference", written], check=True)
    shown = (REPOSITORY / "docs/commands.md").read_text()
    assert written.read_text() == shown, "run scripts/reference"
