"""Checks what Cargo.lock brings into the product and its tests, on this platform.

Every crate comes from the default registry, under a licence of ALLOWED; there is one
TLS stack; what must be one thing in one process has one version. Fails with every
problem named.
"""

import collections
import json
import re
import subprocess
import sys

ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "BlueOak-1.0.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
}

# TLS is rustls over aws-lc. With a second provider rustls panics at start, and a
# second stack is a second set of trust roots and advisories.
BANNED = {"boring", "boring-sys", "native-tls", "openssl", "openssl-sys", "ring", "schannel", "security-framework"}

# Types of these cross crate borders, or their state is one for each process.
SINGLE = {
    "aws-lc-rs",
    "aws-lc-sys",
    "h2",
    "http",
    "hyper",
    "libsqlite3-sys",
    "opentelemetry",
    "prost",
    "rustls",
    "tokio",
    "tonic",
    "tracing-core",
}


def allowed(expression: str) -> bool:
    """Whether an SPDX expression can be met with ALLOWED; a slash is the old way to write OR."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    position = 0

    def peek() -> str:
        return tokens[position] if position < len(tokens) else ""

    def take() -> str:
        nonlocal position
        position += 1
        return tokens[position - 1]

    def any_of() -> bool:
        met = all_of()
        while peek() == "OR":
            take()
            met = all_of() or met
        return met

    def all_of() -> bool:
        met = one()
        while peek() == "AND":
            take()
            met = one() and met
        return met

    def one() -> bool:
        if peek() == "(":
            take()
            met = any_of()
            take()
            return met
        licence = take()
        if peek() == "WITH":
            take()
            licence = f"{licence} WITH {take()}"
        return licence in ALLOWED

    return any_of() and position == len(tokens)


def cargo(*arguments: str) -> str:
    """What cargo prints."""
    return subprocess.run(["cargo", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> int:
    """Prints the problems, or how many crates there are."""
    metadata = json.loads(cargo("metadata", "--locked", "--format-version", "1"))
    packages = {(p["name"], p["version"]): p for p in metadata["packages"]}
    # Cargo.lock and metadata also hold what no feature of ours turns on; the tree does not.
    tree = cargo("tree", "--locked", "--edges", "normal,build,dev", "--prefix", "none", "--format", "{p}")
    used = set()
    for line in tree.splitlines():
        name, version, *_ = line.split()
        used.add((name, version.removeprefix("v")))

    problems = []
    versions = collections.defaultdict(set)
    for name, version in sorted(used):
        package = packages[name, version]
        versions[name].add(version)
        if package["source"] is None and package["id"] not in metadata["workspace_members"]:
            problems.append(f"{name} {version} comes from a path outside the workspace")
        elif package["source"] is not None and not package["source"].startswith("registry+"):
            problems.append(f"{name} {version} comes from {package['source']}")
        if not allowed(package["license"] or ""):
            problems.append(f"{name} {version} has the licence {package['license']}, which is not in the list")
        if name in BANNED:
            problems.append(f"{name} {version} is banned: TLS is rustls over aws-lc only (see cargo tree --invert {name})")
    for name in sorted(SINGLE):
        if len(versions[name]) > 1:
            problems.append(f"{name} has more than one version: {', '.join(sorted(versions[name]))}")
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        return 1
    print(f"{len(used)} crates: licences, sources and the one TLS stack are as they should be")
    return 0


if __name__ == "__main__":
    sys.exit(main())
