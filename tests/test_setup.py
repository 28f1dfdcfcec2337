"""The set-up script: installs once, recovers, and says every failure in one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ("sh", "awk", "cat", "cksum", "cp", "df", "dirname", "grep", "mkdir", "rm", "tail")

# Makes a .venv whose python is this script again, and answers `-m pip install --no-input
# --disable-pip-version-check ...` by writing down the rest.
FAKE_PYTHON = f"""#!/bin/sh
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip") shift 5; echo "$*" >>pip-calls
        [ -z "${{PIP_ERROR:-}}" ] || {{ echo "$PIP_ERROR"; exit 1; }} ;;
    *) exec {sys.executable} "$@" ;;
esac
"""


class Project:
    """A copy of what the set-up reads, and a PATH with nothing but the tools it may use."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder / "project", folder / "bin"
        (self.folder / "scripts").mkdir(parents=True)
        for name in ("scripts/setup.sh", "requirements.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, self.folder / name)
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))

    def command(self, name: str, script: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(script)
        path.chmod(0o755)

    def setup(self, **env: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": str(self.bin), "HOME": str(self.folder), **env}
        script = ["sh", self.folder / "scripts/setup.sh"]
        return subprocess.run(script, env=env, capture_output=True, text=True, timeout=60)

    def pip_calls(self) -> list[str]:
        """The pip installs since the last look."""
        calls = self.folder / "pip-calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return lines


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def faked(project: Project) -> Project:
    project.command("python3", FAKE_PYTHON)
    return project


def assert_one_line(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode != 0
    assert result.stderr.startswith("setup: expected ")
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith("\n")
    for part in parts:
        assert part in result.stderr


LOCK = "--requirement requirements.lock"
PACKAGE = "--no-deps --no-build-isolation --editable ."


def installs(project: Project, **env: str) -> list[str]:
    result = project.setup(**env)
    assert (result.returncode, result.stderr) == (0, "")
    return project.pip_calls()


def test_installs_the_lock_then_the_package_and_only_once(faked: Project) -> None:
    assert installs(faked) == [LOCK, PACKAGE]
    assert installs(faked) == []


def test_cpu_takes_the_locked_torch_from_the_public_cpu_wheels(faked: Project) -> None:
    torch = "--no-deps --index-url https://download.pytorch.org/whl/cpu torch==2.13.0"
    assert installs(faked, CPU="1") == [torch, LOCK, PACKAGE]
    assert installs(faked) == []


def test_changed_lock_updates_in_place(faked: Project) -> None:
    installs(faked)
    (faked.folder / ".venv/kept").touch()
    with (faked.folder / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    assert installs(faked) == [LOCK, PACKAGE]
    assert (faked.folder / ".venv/kept").exists()


def test_interrupted_setup_is_made_anew(faked: Project) -> None:
    installs(faked)
    (faked.folder / ".venv/uae-setup").write_text("unfinished\n")
    (faked.folder / ".venv/leftover").touch()
    assert installs(faked) == [LOCK, PACKAGE]
    assert not (faked.folder / ".venv/leftover").exists()


def test_moved_folder_is_made_anew(faked: Project) -> None:
    installs(faked)
    faked.folder = faked.folder.rename(faked.folder.with_name("moved"))
    assert installs(faked) == [LOCK, PACKAGE]


def test_finds_a_newer_python_beside_an_old_python3(faked: Project) -> None:
    (faked.bin / "python3").rename(faked.bin / "python3.12")
    faked.command("python3", "#!/bin/sh\nexit 1\n")
    assert installs(faked) == [LOCK, PACKAGE]


def test_no_python(project: Project) -> None:
    assert_one_line(project.setup(), "Python 3.11 or newer", "found none", "install one")
    assert not (project.folder / ".venv").exists()


def test_old_python(project: Project) -> None:
    pretend = "import sys; sys.version_info = (3, 9, 18); exec(sys.argv[1])"
    project.command("python3", f'#!/bin/sh\nexec {sys.executable} -c "{pretend}" "$2"\n')
    assert_one_line(project.setup(), "Python 3.11 or newer", "found Python 3.9.18", "install one")


def test_full_disk_before_the_start(faked: Project) -> None:
    faked.command(
        "df",
        "#!/bin/sh\necho Filesystem 1024-blocks Used Available\necho disk 9999999 9000000 307200\n",
    )
    assert_one_line(faked.setup(), "2000 MB of free disk", "found 300 MB", "free some")
    assert faked.pip_calls() == []


def test_python_without_venv(project: Project) -> None:
    script = '#!/bin/sh\n[ "$2" != venv ] || { echo "ensurepip is not available."; exit 1; }\n'
    project.command("python3", script)
    assert_one_line(project.setup(), "virtual environments", "apt install python3-venv")


@pytest.mark.parametrize(
    ("pip_error", "parts"),
    [
        (
            "ERROR: Could not install packages: [Errno 28] No space left on device",
            ("free disk", "free some"),
        ),
        (
            "WARNING: Retrying: 'ReadTimeoutError(read timed out)'",
            ("package index", "check the network"),
        ),
        (
            "ERROR: No matching distribution found for torch==2.13.0",
            ("No matching distribution found for torch",),
        ),
    ],
)
def test_pip_failure(faked: Project, pip_error: str, parts: tuple[str, ...]) -> None:
    assert_one_line(faked.setup(PIP_ERROR=pip_error), *parts, ".venv/setup.log")
    assert pip_error in (faked.folder / ".venv/setup.log").read_text()
    faked.pip_calls()
    assert installs(faked) == [LOCK, PACKAGE]  # and the next run recovers


def test_no_network(project: Project) -> None:
    """The real thing: a real venv, and a real pip that has nowhere to go."""
    project.command("python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    nowhere = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "1",
    }
    assert_one_line(
        project.setup(**nowhere), "package index", "check the network", ".venv/setup.log"
    )


def test_foreign_venv_is_left_alone(faked: Project) -> None:
    (faked.folder / ".venv/bin").mkdir(parents=True)
    assert_one_line(faked.setup(), "made by this script", "move it away")
    assert (faked.folder / ".venv/bin").exists()


def test_lock_pins_all_dependencies_exactly() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert all("==" in line and "+" not in line for line in lines)
    versions = dict(line.lower().split("==") for line in lines)
    assert versions["torch"] == "2.13.0"
    assert int(versions["pillow"].split(".")[0]) < 13
    assert "torchvision" not in versions
