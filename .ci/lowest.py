"""The lowest version of everything that pyproject.toml asks for, as pins: pip itself takes the newest."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


def floor(requirement: Requirement) -> str:
    """The version after ``>=``, the one comparison that a lower bound is written with."""
    (version,) = [bound.version for bound in requirement.specifier if bound.operator == ">="]
    return version


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    for requirement in map(Requirement, asked):
        if requirement.name != project["name"]:  # an extra that names another extra
            print(f"{requirement.name}=={floor(requirement)}")


if __name__ == "__main__":
    main()
