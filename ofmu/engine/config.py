"""The ``engine`` section of a config file."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ofmu.config.base import PositiveInt, Section
from ofmu.errors import ConfigError

DECIDED_BY_PLAN = ("zero_stage", "gradient_checkpointing", "offload")
"""The settings that :mod:`ofmu.plan.decision` decides where they are ``auto``."""


class EngineConfig(Section):
    """Where the parameters and the gradients of the model are stored, and how a pass runs."""

    added_later: ClassVar[frozenset[str]] = frozenset(("check_memory", "gradient_precision"))

    backend: Literal["auto", "deepspeed", "torch"] = "auto"
    """``deepspeed``: any number of ranks. ``torch``: one process without DeepSpeed. ``auto``: ``torch`` for one process
    without ``offload``, since PyTorch then needs less memory for the same numbers; else ``deepspeed``."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] | Literal["auto"] = 2
    """Stage of ZeRO. 0: every rank holds everything. 1: the fp32 masters are sharded. 2: the gradients too. 3: the
    weights too. ``auto``: 2 if a rank then fits its memory by ``ofmu plan``, else 3."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the weights in a pass. ``bf16``: the masters stay in fp32."""
    gradient_precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the vectors in which gradients are added up. ``bf16`` saves 2 bytes a parameter for each such
    vector. It needs ``precision: bf16`` in one process on PyTorch. Moments stay in fp32, and sums over
    these vectors are formed in fp32."""
    offload: Literal["none", "cpu", "auto"] = "none"
    """``cpu``: the fp32 masters and the gradient shards are stored in host memory (stages 1 to 3). ``auto``: ``cpu`` on
    GPUs if nothing else makes the run fit."""
    micro_batch_size: PositiveInt | None = None
    """Rows of one rank in one forward pass. None: all rows of the rank at once."""
    gradient_checkpointing: bool | Literal["auto"] = False
    """True: activations are computed again in the backward pass, which costs time and saves memory. ``auto``: if the
    run fits in no other way. Settings that are ``auto`` are decided before a run or a search starts, and the decision
    is stored in its config."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: a GPU if there is one, else the CPU."""
    threads: PositiveInt | None = None
    """Torch threads per process. None: torch's own choice."""
    check_memory: bool = True
    """True: a run or a search that needs more memory than the device has is refused before anything is loaded.
    ``ofmu plan`` shows the same numbers."""

    @property
    def stage(self) -> int:
        """The stage of ZeRO; 2 while it is not decided."""
        return 2 if self.zero_stage == "auto" else self.zero_stage

    @property
    def recomputes(self) -> bool:
        """Whether activations are computed again in the backward pass; False while this is not decided."""
        return self.gradient_checkpointing is True

    @property
    def undecided(self) -> tuple[str, ...]:
        """The settings that are ``auto``, and that a plan decides."""
        return tuple(name for name in DECIDED_BY_PLAN if getattr(self, name) == "auto")

    def backend_on(self, ranks: int) -> Literal["deepspeed", "torch"]:
        """Return the backend that runs on this number of ranks."""
        if self.backend != "auto":
            return self.backend
        return "torch" if ranks == 1 and self.offload != "cpu" else "deepspeed"

    def check_ranks(self, ranks: int) -> None:
        """Check the settings that work in one process only.

        Raises:
            ConfigError: a setting does not work on this number of ranks.
        """
        if self.backend == "torch" and ranks > 1:
            raise ConfigError(
                f"engine.backend 'torch' is for one process, and this run has {ranks} ranks: set engine.backend to "
                "'auto', or start one process"
            )
        if self.gradient_precision == "bf16" and self.backend_on(ranks) != "torch":
            raise ConfigError(
                f"engine.gradient_precision 'bf16' is for one process on PyTorch, and this run has {ranks} ranks on "
                "DeepSpeed: set engine.gradient_precision to 'fp32', or start one process"
            )
