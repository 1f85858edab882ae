"""OFMU (Asif & Amiri, arXiv 2509.22483): the bilevel method, its derivatives, its loss and its settings."""

from ofmu.methods.ofmu.config import OFMU, OfmuConfig

__all__ = ["OFMU", "OfmuConfig"]
