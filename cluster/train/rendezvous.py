"""How the ranks of a worker group find each other on a machine whose Ray listens on loopback only."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend


class _FileBackend(_TorchBackend):  # type: ignore[misc]  # Ray ships no types
    """Lets the ranks meet in a file. torch's own store for ranks listens on all interfaces, whatever its address."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Join all ranks to one process group."""
        self._folder = Path(tempfile.mkdtemp(prefix="ofmu_ranks_"))
        worker_group.execute(_set_torch_distributed_env_vars)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank,
                    _setup_torch_process_group,
                    backend=backend_config.backend,
                    world_rank=rank,
                    world_size=len(worker_group),
                    init_method=(self._folder / "store").as_uri(),
                    timeout_s=backend_config.timeout_s,
                )
                for rank in range(len(worker_group))
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Leave the process group, and delete the file."""
        super().on_shutdown(worker_group, backend_config)
        shutil.rmtree(self._folder, ignore_errors=True)


class FileTorchConfig(TorchConfig):  # type: ignore[misc]  # Ray ships no types
    """Ray Train's settings of a process group whose ranks are on one machine."""

    @property
    def backend_cls(self) -> type[_FileBackend]:
        """The backend that starts the process group."""
        return _FileBackend
