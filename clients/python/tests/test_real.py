"""The built package with the built server: wheel, installation, types, examples and the scenario.

Environment: SIEM_RELAY_BIN, the server.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from fake import Fake
from relay import Relay
from stand_in import StandIn

HERE = ROOT / "clients/python"
EXTERNAL_ID = "external-id-of-the-examples"
pytestmark = pytest.mark.skipif("SIEM_RELAY_BIN" not in os.environ, reason="SIEM_RELAY_BIN names no server")


def clean() -> dict[str, str]:
    """Returns this environment without what this test run has added."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}


def run(*command: str | Path, cwd: str | Path = "/", **settings: str) -> str:
    """Runs a command outside of the checkout; returns its output."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**clean(), **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}"
    return done.stdout


class Environment:
    """A clean virtual environment."""

    def __init__(self, directory: Path, python: str = sys.executable) -> None:
        self.python = directory / "bin/python"
        if python == sys.executable:
            venv.create(directory, with_pip=True)
        else:
            run(python, "-m", "venv", directory)

    def install(self, *arguments: str | Path) -> None:
        run(self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds sdist and wheel from a copy of the files, so that nothing else of the checkout is needed."""
    directory = tmp_path_factory.mktemp("build")
    source = directory / "source"
    ignored = shutil.ignore_patterns(".venv", "dist", "__pycache__", "tests")
    shutil.copytree(HERE, source, ignore=ignored)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", directory / "dist", source)
    (wheel,) = (directory / "dist").glob("*.whl")
    assert list((directory / "dist").glob("*.tar.gz"))
    return wheel


@pytest.fixture(scope="session")
def newest(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Environment with the wheel and today's versions of its dependencies."""
    environment = Environment(tmp_path_factory.mktemp("newest") / "venv")
    environment.install(built, "-r", HERE / "requirements.txt")
    return environment


@pytest.fixture(scope="session")
def oldest(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Environment with the wheel and the oldest versions of its dependencies, by the oldest Python there is."""
    candidates = [str(path) for path in sorted(Path.home().glob(".pyenv/versions/3.9.*/bin/python"))]
    candidates += [path for minor in (9, 10, 11) if (path := shutil.which(f"python3.{minor}"))]
    working = [path for path in candidates if subprocess.run([path, "-c", ""], capture_output=True).returncode == 0]
    environment = Environment(tmp_path_factory.mktemp("oldest") / "venv", (working or [sys.executable])[0])
    environment.install(built, "-r", HERE / "requirements-oldest.txt")
    return environment


def test_the_wheel_has_the_types_and_the_licence(built: Path) -> None:
    with zipfile.ZipFile(built) as wheel:
        names = wheel.namelist()
        metadata = wheel.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert "siem_client/py.typed" in names and "siem_client/v1/event_pb2.pyi" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"siem_client"}
    assert "\nVersion: 0.1.0\n" in metadata and "\nLicense-Expression: Apache-2.0\n" in metadata


USE = """
import siem_client, siem_client.aio, google.protobuf, grpc
from siem_client import v1
event = v1.Event(organization_id="acme", ids_detection=v1.IdsDetection(vlan=[1], metadata={"a": v1.MetadataValues(values=["b"])}))
assert v1.Event.FromString(event.SerializeToString()) == event
print(google.protobuf.__version__, grpc.__version__)
"""


@pytest.mark.parametrize("implementation", ["upb", "python"])
def test_generated_code_runs_with_both_ends(oldest: Environment, newest: Environment, implementation: str) -> None:
    settings = {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation}
    assert run(oldest.python, "-W", "error", "-c", USE, **settings).split() == ["4.25.0", "1.62.0"]
    assert run(newest.python, "-W", "error", "-c", USE, **settings).split() == ["7.36.2", "1.85.1"]


def test_a_program_may_have_its_own_siem_v1(newest: Environment, tmp_path: Path) -> None:
    """Code that the program has generated by today's generator, beside the package's."""
    packages = run(sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    run(
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"--proto_path={ROOT / 'proto'}",
        f"--proto_path={packages}",
        f"--python_out={tmp_path}",
        "siem/v1/error.proto",
        "siem/v1/event.proto",
        "siem/v1/integration.proto",
    )
    own = "from siem.v1 import event_pb2, integration_pb2"
    package = "import siem_client; from google.rpc import status_pb2"
    for program in (f"{own}; {package}", f"{package}; {own}"):
        run(newest.python, "-c", program, PYTHONPATH=str(tmp_path))


def test_types_of_a_user(built: Path, tmp_path: Path) -> None:
    """mypy --strict and pyright with default settings, with and without the types of the dependencies."""
    environment = Environment(tmp_path / "venv")
    environment.install(built, "-r", HERE / "requirements.txt", "mypy==2.4.1", "pyright==1.1.414")
    examples = tmp_path / "examples"
    shutil.copytree(HERE / "examples", examples)
    wrong = tmp_path / "wrong.py"
    wrong.write_text('import siem_client\nsiem_client.connect(1).get("acme")\n')
    bin_directory = environment.python.parent
    for extra in ([], ["types-protobuf==7.35.1.20260906", "types-grpcio==1.85.0.20261028"]):
        if extra:
            environment.install(*extra)
        cache = f"--cache-dir={tmp_path / 'cache'}"
        run(bin_directory / "mypy", "--strict", cache, *sorted(examples.glob("*.py")))
        found = subprocess.run([bin_directory / "mypy", "--strict", cache, wrong], capture_output=True, text=True)
        assert found.stdout.count("arg-type") == 2, found.stdout
    run(bin_directory / "pyright", "--pythonpath", environment.python, examples)


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
@pytest.mark.parametrize("end", ["oldest", "newest"])
def test_scenario(request: pytest.FixtureRequest, tmp_path: Path, end: str, kind: str) -> None:
    environment: Environment = request.getfixturevalue(end)
    driver = tmp_path / "driver.py"
    shutil.copy(HERE / "scenario_driver.py", driver)
    flags = ["--async"] if kind == "asyncio" else []
    print(run(ROOT / "clients/scenario/run", environment.python, driver, *flags))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, str, str]]:
    """Starts the server; returns its address, and a stream and a role."""
    with StandIn(tmp_path) as stand_in:
        stream, role = stand_in.customer("examples", EXTERNAL_ID)
        with Relay(tmp_path, stand_in.vendor()) as relay:
            yield f"http://{relay.address}", stream, role


def test_examples(newest: Environment, tmp_path: Path, server: tuple[str, str, str], fake: Fake) -> None:
    address, stream, role = server
    examples = tmp_path / "examples"
    shutil.copytree(HERE / "examples", examples)
    ran = set()

    def example(name: str, *arguments: str) -> str:
        ran.add(name)
        return run(newest.python, examples / f"{name}.py", address, *arguments, cwd=tmp_path)

    assert len(example("generate_external_id", "acme").strip()) == 64
    assert " etag " in example("configure", "acme", stream, role, EXTERNAL_ID)
    assert "CHECK_RESULT_PASSED" in example("send_test", "acme")
    assert "1 accepted" in example("publish", "acme")
    assert "250 accepted" in example("publisher", "acme", "250")
    assert example("asyncio_client", "acme", "250").split("\n")[:2] == ["250 accepted", "1 integrations"]
    assert "of 501 events delivered" in example("get", "acme")
    assert "acme STATUS_ACTIVE" in example("list")
    watch = subprocess.Popen(
        [newest.python, examples / "watch_status.py", address], stdout=subprocess.PIPE, text=True, env=clean(), cwd="/"
    )
    ran.add("watch_status")
    assert watch.stdout is not None
    assert watch.stdout.readline() == "1 integrations\n" and watch.stdout.readline().startswith("resume token ")
    assert "discarded" in example("delete", "acme")
    assert watch.stdout.readline() == "acme deleted\n"
    assert "AUDIT_ACTION_DELETE" in example("list_audit_entries", "acme").splitlines()[0]
    watch.kill()
    watch.wait()
    fake.plan("GetOnboarding", [{"message": {"documents": [{"file_name": "a.tf", "title": "Terraform", "text": "role"}]}}])
    address = f"http://127.0.0.1:{fake.port}"
    assert example("get_onboarding", stream, "siem-relay", EXTERNAL_ID) == "a.tf: Terraform\n"
    assert (tmp_path / "a.tf").read_text() == "role"
    assert ran == {path.stem for path in examples.glob("*.py")}, "each example runs here"


def test_the_lines_of_the_readme(newest: Environment, tmp_path: Path, server: tuple[str, str, str]) -> None:
    address, stream, role = server
    program = (HERE / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert len([line for line in program.splitlines() if line.strip() and not line.startswith(("import", "from"))]) <= 5
    program = program.replace("http://127.0.0.1:50051", address)
    run(newest.python, HERE / "examples/configure.py", address, "acme", stream, role, EXTERNAL_ID)
    assert "STATUS_" in run(newest.python, "-c", program)
