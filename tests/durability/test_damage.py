"""Whatever becomes of a run's files, the same command ends with what an undisturbed run has."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from classifier_lens.runner.optimization import checkpoint
from classifier_lens.runner.optimization.loop import OptimizationState
from tests.cli import Cli
from tests.durability import damage
from tests.durability.test_kill import leavings

WORDS = ("limit=2", "batch=1", "optimizer.steps=2", "checkpoint.every=1", "lease.duration=2.0")
BATCH = "problems-00000-00001"


@dataclass(frozen=True)
class Half:
    """A run whose second problem is done and whose first is not: its state is kept, and a claim of an ended process is
    left. whole: what an undisturbed run leaves."""

    cli: Cli
    whole: Mapping[str, bytes]

    def copy(self, place: Path) -> Cli:
        shutil.copytree(self.cli.outputs, place)
        return replace(self.cli, outputs=place)


@pytest.fixture(scope="module")
def half(tiny_folder: Path, tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Half]:
    place = tmp_path_factory.mktemp("half")
    cli = Cli.at(place, tiny_folder, tiny_student)
    save = checkpoint.save

    def saved(path: Path, state: OptimizationState, owner: Mapping[str, str]) -> None:
        save(path, state, owner)
        if state.step == 1 and path.stem == BATCH:
            shutil.copyfile(path, place / "state")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", saved)
        assert cli.code(*cli.arguments(*WORDS)) == 0
    whole = leavings(cli.folder)
    names = (cli.folder / "problems.txt").read_text().splitlines()
    shutil.rmtree(cli.folder / "images" / names[0])
    (cli.folder / "state").mkdir(exist_ok=True)
    shutil.copyfile(place / "state", cli.folder / "state" / f"{BATCH}.safetensors")
    (cli.folder / "leases").mkdir(exist_ok=True)
    (cli.folder / "leases" / f"{BATCH}.1").write_text('{"host": "gone", "pid": 1, "job": null}')
    yield Half(cli, whole)


def files(cli: Cli) -> list[Path]:
    """Of a run and its cache, by their paths within the folder of outputs."""
    return sorted(path.relative_to(cli.outputs) for path in cli.outputs.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("harm", [*damage.OF_TENSORS, damage.beyond])
def test_a_run_with_every_file_damaged_ends_as_it_should(
    half: Half, harm: Callable[[Path], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cli = half.copy(tmp_path / "outputs")
    for path in files(cli):
        if path.suffix == ".safetensors" or harm in damage.ANY:
            harm(cli.outputs / path)
    outcome = cli.here(capfd, *WORDS)
    assert outcome.code == 0, outcome
    assert leavings(cli.folder) == half.whole
