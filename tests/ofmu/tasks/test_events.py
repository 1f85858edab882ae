from __future__ import annotations

import json

import pytest

from ofmu.tasks.events import (
    PartReady,
    PreparationEvent,
    PreparationStarted,
    TrainingContinued,
    TrainingEpoch,
    event_from_json,
    event_to_json,
)


@pytest.mark.parametrize(
    "event",
    [
        PreparationStarted(),
        PartReady(part="target", created=True, seconds=1.5),
        TrainingEpoch(part="retrain", epoch=2, epochs=3, loss=0.25),
        TrainingContinued(part="target", epoch=2, epochs=3),
    ],
)
def test_an_event_survives_the_way_to_another_process(event: PreparationEvent) -> None:
    assert event_from_json(json.loads(json.dumps(event_to_json(event)))) == event
