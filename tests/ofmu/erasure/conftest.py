from __future__ import annotations

import pytest

from ofmu.erasure import evidence_files


@pytest.fixture
def without_pdf(monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser takes seconds. test_pdf.py prints with it."""
    monkeypatch.setattr(evidence_files, "print_to_pdf", lambda page, target: False)
