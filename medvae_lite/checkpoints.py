"""Checkpoints: everything that a killed training run goes on from, in one file that is whole, of this run, or refused.

The first line of the file names its format and the SHA-256 of the rest, which `torch.save` wrote: a zip file whose own check sums
`torch.load` does not compare, so that without ours a flipped bit would become a weight.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import torch

from medvae_lite import runs

__all__ = ["FILE", "held", "read", "write"]

FILE = "checkpoint.pt"
FORMAT = 2
_START = b"medvae_lite checkpoint "
_ANEW = "or remove it to train from the start"


def write(folder: Path, content: dict, identity: str) -> None:
    """Replaces the folder's checkpoint, at once.

    Raises:
        OSError: If it cannot be written; the one before is still there.
    """
    buffer = io.BytesIO()
    torch.save({"identity": identity, **content}, buffer)
    runs.write_atomically(folder / FILE, _first_line(buffer.getbuffer()) + b"\n" + buffer.getbuffer())


def _first_line(rest: bytes | memoryview) -> bytes:
    return _START + f"{FORMAT} sha256 {hashlib.sha256(rest).hexdigest()}".encode()


def read(folder: Path, identity: str) -> dict | None:
    """The folder's checkpoint, on the CPU and without executing anything in it; None where there is none.

    Raises:
        ValueError: If it is damaged, of another version of this package, or of another run.
        OSError: If it may not be read.
    """
    path = folder / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be read ({error.strerror}): mend its permissions, {_ANEW}") from None
    first, _, rest = data.partition(b"\n")
    if first != _first_line(rest):
        # The first version's checkpoints were bare zip files.
        if data.startswith(b"PK") or (first.startswith(_START) and first.split()[2:3] not in ([], [b"%d" % FORMAT])):
            raise ValueError(f"{path} was written by another version of medvae_lite: finish the run with that one, {_ANEW}")
        raise ValueError(f"{path} is damaged, its check sum is another than when it was written: put back a copy, {_ANEW}")
    try:
        content = torch.load(io.BytesIO(rest), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(f"{path} holds something else than numbers and text: it was not written by medvae_lite; remove it") from None
    if content.pop("identity") != identity:
        raise ValueError(f"{folder} holds a checkpoint of another configuration; remove it or choose another folder")
    return content


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps a folder for one training run, and clears away what a killed one had half written.

    Raises:
        ValueError: If another process is training in it.
        OSError: If nothing can be written there.
    """
    lock = filelock.SoftFileLock(folder / ".training.lock")  # taken over if its process on this machine has died
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ValueError(
            f"{folder} is being trained in by another process: wait for it, or choose another folder; if it died on another "
            f"machine, remove {lock.lock_file}"
        ) from None
    except OSError as error:
        raise runs.not_written(folder, error) from None
    try:
        for partial in folder.glob(".*.partial"):
            partial.unlink(missing_ok=True)
        yield
    finally:
        lock.release()
