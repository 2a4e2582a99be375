"""Prints the licences of all crates in the released binary: name, version, expression, and the texts that each has.

Usage: cargo metadata … | licences.py
"""

import hashlib
import json
import re
import sys
from pathlib import Path

NAMES = re.compile(r"(licen[cs]e|copying|notice|unlicense|copyright)", re.IGNORECASE)
metadata = json.load(sys.stdin)
packages = {package["id"]: package for package in metadata["packages"]}
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
# Linked packages: normal dependencies, not those of build scripts and tests.
linked: set[str] = set()
waiting = [metadata["resolve"]["root"]]
while waiting:
    node = waiting.pop()
    if node in linked:
        continue
    linked.add(node)
    for dependency in nodes[node]["deps"]:
        if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
            waiting.append(dependency["pkg"])

texts: dict[str, tuple[str, list[str]]] = {}
lines = []
for package in sorted((packages[id] for id in linked), key=lambda package: (package["name"], package["version"])):
    if package["source"] is None:
        continue
    title = f"{package['name']} {package['version']}"
    folder = Path(package["manifest_path"]).parent
    files = sorted(path for path in folder.iterdir() if path.is_file() and NAMES.match(path.name))
    if package["license_file"]:
        files.append(folder / package["license_file"])
    if not package["license"] and not files:
        sys.exit(f"{title} names no licence")
    lines.append(f"{title}: {package['license'] or 'see its text'}" + ("" if files else " (the crate has no text)"))
    for file in dict.fromkeys(path.resolve() for path in files):
        text = file.read_text(errors="replace").strip()
        key = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()
        texts.setdefault(key, (text, []))[1].append(f"{title} ({file.name})")
print("Crates in siem-relay that others wrote, and their licences.\n")
print("\n".join(lines))
for text, users in texts.values():
    print(f"\n{'=' * 80}\n" + "\n".join(dict.fromkeys(users)) + f"\n{'-' * 80}\n{text}")
