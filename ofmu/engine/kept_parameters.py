"""Keep the parameters of one moment on the disk, and put them back for a while: no second model is in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ofmu.io.files import storage_errors
from ofmu.vectors.base import VectorSpace


class KeptParameters:
    """The parameters of an engine at the construction of this object, in a file without a name.

    Each rank keeps its own part. Nothing is left on the disk when the process ends, however it ends.

    Args:
        space: the engine's parameter space.
        directory: a directory on the disk that takes the file. It is made if it is missing.

    Raises:
        StorageError: the disk refuses the write.
    """

    def __init__(self, space: VectorSpace, directory: Path) -> None:
        self._space = space
        with storage_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115  # it lives as long as this object
            for place in space.parameter_pieces():
                part = space.read_parameters(*place)
                self._file.write(part.cpu().contiguous().view(torch.uint8).numpy().tobytes())
            self._file.flush()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the engine's parameters be the kept ones inside the block. Restore them afterwards, bit for bit.

        This takes the memory of one copy of this rank's parameters.
        """
        space = self._space
        types = [flat.dtype for flat in space.layout()]
        with space.preserving_parameters():
            self._file.seek(0)
            for index, piece in space.parameter_pieces():
                content = bytearray(self._file.read((piece.stop - piece.start) * types[index].itemsize))
                space.write_parameters(index, piece, torch.frombuffer(content, dtype=types[index]))
            space.sync_model()
            yield
