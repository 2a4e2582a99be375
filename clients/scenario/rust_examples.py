"""Runs each example of the Rust client against a server: rust_examples.py DIRECTORY, with the built examples."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import Failure, Report, clean_environment, run
from runner import EXTERNAL_ID, World

SOURCES = Path(__file__).resolve().parent.parent / "rust/examples"


class Examples:
    """The built examples, which run in a directory of their own."""

    def __init__(self, built: Path, directory: Path, report: Report) -> None:
        self._built = built
        self._directory = directory
        self._report = report
        self.ran: set[str] = set()

    def start(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        """Starts an example."""
        self.ran.add(name)
        command = [str(self._built / name), *arguments]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=clean_environment(), cwd=self._directory
        )

    def check(self, expected: str, name: str, *arguments: str) -> str:
        """Runs an example to its end; its output must contain a text."""
        process = self.start(name, *arguments)
        output, _ = process.communicate(timeout=60)
        if process.returncode != 0 or expected not in output:
            raise Failure(f"{name} ended with {process.returncode}, and its output lacks {expected!r}:\n{output}")
        self._report.check(True, name)
        return output


def main() -> int:
    """Reads the argument and runs."""
    built = Path(sys.argv[1]).resolve()

    def follow(examples: Examples, address: str) -> None:
        watch = examples.start("watch_status", address)
        try:
            assert watch.stdout is not None
            if watch.stdout.readline() != "1 integrations\n":
                raise Failure("watch_status does not begin with the snapshot")
            examples.check("discarded", "delete", address, "acme")
            for line in watch.stdout:
                if line == "acme deleted\n":
                    return
            raise Failure("watch_status does not print the deletion")
        finally:
            watch.kill()
            watch.wait()

    def test(report: Report) -> None:
        with tempfile.TemporaryDirectory() as name:
            world = World(Path(name))
            try:
                report.section("examples of the Rust client")
                world.start_server()
                address, stream, role = (world.values[key] for key in ("server", "stream", "role"))
                examples = Examples(built, Path(name), report)
                issued = examples.check("\n", "generate_external_id", address, "acme")
                if len(issued.strip()) != 64:
                    raise Failure(f"the issued external ID is {issued!r}")
                examples.check(" etag ", "configure", address, "acme", stream, role, EXTERNAL_ID)
                examples.check("CHECK_RESULT_PASSED", "send_test", address, "acme")
                examples.check("1 accepted", "publish", address, "acme")
                examples.check("250 accepted", "publisher", address, "acme", "250")
                examples.check("500 events in ", "bench", address, "500")
                world.expect_delivered([0, 499])
                examples.check("of 751 events delivered", "get", address, "acme")
                examples.check("acme STATUS_ACTIVE", "list", address)
                follow(examples, address)
                examples.check("AUDIT_ACTION_DELETE", "list_audit_entries", address, "acme")
                world.start_fake()
                document = {"file_name": "a.tf", "title": "Terraform", "text": "role"}
                world.plan("GetOnboarding", [{"message": {"documents": [document]}}])
                fake = world.values["fake"]
                examples.check("a.tf: Terraform", "get_onboarding", fake, stream, "siem-relay", EXTERNAL_ID)
                if (Path(name) / "a.tf").read_text() != "role":
                    raise Failure("get_onboarding wrote another text")
                missing = {path.stem for path in SOURCES.glob("*.rs")} - examples.ran
                report.check(not missing, f"each example was run, without exception: {sorted(missing)}")
            finally:
                world.close()

    return run(test)


if __name__ == "__main__":
    os.environ.pop("http_proxy", None)
    sys.exit(main())
