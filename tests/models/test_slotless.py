"""What a configuration alone says of a model's slots is what the engine finds when the model is loaded."""

from __future__ import annotations

import pytest

from lynx_exp.engine.slots import has_slots
from lynx_exp.models.families import families
from lynx_exp.models.slotless import why_no_slots
from lynx_exp.models.tiny import tiny_config
from tests.models.verdicts import verdict


@pytest.mark.parametrize("family", families(), ids=str)
def test_a_configuration_tells_whether_there_are_slots(family):
    found = verdict(family)
    if found.routers:
        for model_type in family.model_types:
            has = has_slots(found.model.config.get_text_config())
            assert has == (why_no_slots(tiny_config(model_type).to_dict()) is None), model_type
