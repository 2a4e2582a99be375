"""Writes `__init__.py` of the generated package: every message and enum under one name. Run by clients/generate."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

MODULES = ("error_pb2", "event_pb2", "integration_pb2")


def names(stub: str) -> list[str]:
    """Returns the public names of a stub: classes, and the values of enums."""
    found = []
    for node in ast.parse(stub).body:
        if isinstance(node, ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.append(node.target.id)
    return sorted(name for name in found if name != "DESCRIPTOR" and not name.startswith(("_", "global___")))


def main() -> None:
    """Reads the stubs beside which it writes."""
    directory = Path(sys.argv[1])
    by_module = {module: names((directory / f"{module}.pyi").read_text()) for module in MODULES}
    lines = ['"""Messages and enums of the API, generated from `proto/siem/v1` by clients/generate."""', ""]
    for module, found in by_module.items():
        lines += [f"from siem_client.v1.{module} import (", *(f"    {name}," for name in found), ")"]
    every = sorted(name for found in by_module.values() for name in found)
    lines += ["", "__all__ = [", *(f'    "{name}",' for name in every), "]"]
    (directory / "__init__.py").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
