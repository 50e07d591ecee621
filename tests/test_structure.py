"""The house: imports point one way, the shipped files stand alone, the README's commands are those that run."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vit_hf"
SHIPPED = ("configuration_vit_hf", "modeling_vit_hf", "masked_vit_hf", "image_processing_vit_hf", "files_vit_hf",
           "inference_vit_hf")  # fmt: skip
FLOORS = {  # a room may import from lower floors and from itself, never from another room of its floor
    **dict.fromkeys(SHIPPED, 0),
    "variants": 1,
    "checkpoints": 2,
    "data": 2,
    "inspection": 2,
    "evaluation": 3,
    "training": 4,
    "sharing": 5,
    "cli": 6,
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a module imports from, inside functions too."""
    depth = len(path.relative_to(PACKAGE).parts) - 1
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            rooms |= {room(path)} if node.level <= depth else set(names)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(str(module).split(".")[0] == "vit_hf" for module in modules), f"{path}: import relatively"
    return {name for name in rooms if name in FLOORS}


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    here = room(path)
    assert here in FLOORS, f"{path} is in no room of the house"
    for there in imported_rooms(path) - {here}:
        shipped = here in SHIPPED and there in SHIPPED
        assert shipped or FLOORS[there] < FLOORS[here], f"{path} imports {there}, which does not lie below {here}"


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_files_import_nothing_that_the_hub_does_not_bring(name):
    """Also in docstrings: transformers finds imports by a regular expression that does not know text from code."""
    source = (PACKAGE / f"{name}.py").read_text()
    allowed = {"torch", "torchvision", "transformers", "huggingface_hub", "safetensors", "numpy", "PIL"}
    allowed |= set(sys.stdlib_module_names)
    found = re.findall(r"^\s*(?:import|from)\s+(\S+)", source, flags=re.MULTILINE)
    for module in found:
        assert module.split(".")[0] in allowed or module in {f".{other}" for other in SHIPPED}, module


def test_the_readme_has_the_two_commands_that_ci_and_users_run():
    readme = (ROOT / "README.md").read_text()
    blocks = {name: re.search(rf"<!-- {name} -->\n```bash\n(.+)\n```", readme) for name in ("train", "test")}
    assert all(blocks.values())
    assert "vit-hf train digits" in blocks["train"].group(1)
    assert all(word in blocks["test"].group(1) for word in ('".[test]"', "ruff check", "ruff format", "mypy", "pytest"))


def test_every_recipe_stands_in_the_readme():
    from vit_hf.training.recipes import RECIPES

    readme = (ROOT / "README.md").read_text()
    assert all(f"| `{name}` |" in readme for name in RECIPES)


def test_public_names_are_importable_and_unknown_ones_are_not():
    import vit_hf

    for name in vit_hf.__all__:
        assert getattr(vit_hf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        vit_hf.trian  # noqa: B018
