"""The parts of a rank's memory, and the phases at whose peaks they are alive."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Component:
    """A part of a rank's memory."""

    name: str
    size: float
    """Bytes."""
    on_host: bool = False
    """Whether the part is in host memory although the device is a GPU."""


@dataclass(frozen=True)
class Phase:
    """The components that are alive at the peak of a phase."""

    name: str
    components: tuple[Component, ...]

    @property
    def device(self) -> float:
        """Bytes on the device."""
        return sum(part.size for part in self.components if not part.on_host)

    @property
    def host(self) -> float:
        """Bytes in host memory, if the device is a GPU."""
        return sum(part.size for part in self.components if part.on_host)

    @property
    def total(self) -> float:
        """Bytes on the device and in host memory: what a process without a GPU needs."""
        return self.device + self.host

    def needed(self, *, on_gpu: bool) -> float:
        """Bytes that must fit the device: a GPU, or the memory of the machine."""
        return self.device if on_gpu else self.total
