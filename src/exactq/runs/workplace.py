"""Where a run works until it is whole: a hidden folder beside its own, whose finished stages the same command finds again.

A stage is a folder named after a hash of all that it depends on, and it gets that name when it is finished: killed at any
moment, a run leaves finished stages and nothing that looks like one. What a stage made is always read back from its files, so
a run that was killed and one that was not go the same way.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

from exactq.datasets.splits import Dataset
from exactq.errors import ModelError, UsageError
from exactq.graphs import store
from exactq.runs.folder import check_replaceable
from exactq.talk import SILENT, Talk

UNFINISHED, REPLACED = "unfinished", "replaced"
LOCK, MAKING, REMARKS = "lock", "making", "remarks.json"
KEPT = "what was finished is kept, and the same command goes on from there"

T = TypeVar("T")


@dataclass(frozen=True)
class Workplace:
    """The hidden folder `folder`, in which the run that is to be at `place` is made."""

    place: Path
    folder: Path
    talk: Talk = SILENT
    resumed: list[str] = field(default_factory=list)
    """What earlier processes said of the data that they read for stages which this one took over."""

    def stage(self, name: str, key: str, dataset: Dataset, make: Callable[[Path], None], read: Callable[[Path], T]) -> T:
        """What `read` finds in the stage's folder, which `make` fills first where no earlier run with that key has finished it.

        A stage that was damaged since is made again; the same stage of another key makes way. `dataset` is what it reads.
        """
        finished = self.folder / f"{name}.{key}"
        if finished.is_dir():
            with suppress(ModelError):
                found, remarks = read(finished), _remarks(finished)
                self.talk.say(f"resumed    {name}: finished by an earlier run, taken over")
                self.resumed.extend(remarks)
                return found
        with self._making(name) as partial:
            make(partial)
            store.write(partial / REMARKS, json.dumps(dataset.remarks()).encode())
        for old in self.folder.glob(f"{name}.*"):
            if old.name != f"{name}.{MAKING}":
                shutil.rmtree(old)
        os.rename(self.folder / f"{name}.{MAKING}", finished)
        return read(finished)

    def file(self, name: str, key: str, end: str) -> Path:
        """The place of a file from which a stage that was not finished goes on; that of another key is gone."""
        path = self.folder / f"{name}.{key}{end}"
        for old in self.folder.glob(f"{name}.*{end}"):
            if old != path:
                old.unlink()
        return path

    def publish(self, make: Callable[[Path], None]) -> None:
        """Nothing; the run that `make` writes into a folder is at its place, whole, and an earlier one is gone."""
        with self._making("run") as partial:
            make(partial)
        old = _beside(self.place, REPLACED)
        if self.place.exists():
            os.rename(self.place, old)
        try:
            os.rename(self.folder / f"run.{MAKING}", self.place)
        except BaseException:
            _restore(self.place)
            raise
        shutil.rmtree(old, ignore_errors=True)

    def remarks(self, dataset: Dataset) -> list[str]:
        """What is to be said of the data: as this process read it, and as those did whose stages it took over."""
        return list(dict.fromkeys([*self.resumed, *dataset.remarks()]))

    @property
    def kept(self) -> bool:
        """Whether there is anything that a later run could go on from."""
        return any(path.name != LOCK and not path.name.endswith(MAKING) for path in self.folder.iterdir())

    @contextmanager
    def _making(self, name: str) -> Iterator[Path]:
        partial = self.folder / f"{name}.{MAKING}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def working(out: Path, talk: Talk = SILENT) -> Iterator[Workplace]:
    """The workplace of the run that is to be at `out`; it is gone when the block ends.

    Where the block raises, finished stages are kept and the exception's notes say so; without any, all is as before. An
    earlier run at `out` stands until the new one is whole. Raises `UsageError` for a place that cannot be written, for one
    that holds anything but a run, and while another process works for the same place.
    """
    place = Path(os.path.abspath(out))
    folder = _beside(place, UNFINISHED)
    fresh, made = not folder.exists(), [parent for parent in (place.parent, *place.parent.parents) if not parent.exists()]
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder} is in the way: unfinished runs are kept there; remove it")
    try:
        _restore(place)
        check_replaceable(out)
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        if fresh:
            _remove(folder, made)
        raise UsageError(f"cannot write to {out.parent}: {error.strerror}; choose another folder with --out") from error
    with lock:
        _alone(lock, out)
        work = Workplace(place, folder, talk)
        try:
            yield work
        except BaseException as error:
            if work.kept:
                error.add_note(KEPT)
            else:
                _remove(folder, made)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _remarks(stage: Path) -> list[str]:
    """The remarks that are kept with a stage. Raises `ModelError` where they are damaged."""
    try:
        return [str(text) for text in json.loads((stage / REMARKS).read_bytes())]
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{stage} is damaged: {error}") from error


def _beside(place: Path, what: str) -> Path:
    return place.with_name(f".{place.name}.{what}")


def _remove(folder: Path, made: list[Path]) -> None:
    """Nothing; the folder is gone, and so are the parents that were made for it."""
    shutil.rmtree(folder, ignore_errors=True)
    for parent in made:
        with suppress(OSError):
            parent.rmdir()


def _restore(place: Path) -> None:
    """Nothing; a run that was killed between two renames has its earlier run back at its place."""
    old = _beside(place, REPLACED)
    if old.is_dir() and not old.is_symlink():
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, place)


def _alone(lock: IO[str], out: Path) -> None:
    """Nothing; no other process works for `out` as long as this one has the file open. Raises `UsageError`."""
    try:
        import fcntl
    except ImportError:
        return  # a system without it: two runs for one place are not told apart there
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(f"another run for {out} is at work: wait for its end, or choose another folder with --out") from error
    except OSError:
        return  # a file system without locks
