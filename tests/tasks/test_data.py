"""The committed files are what the generators say; the prompts are those that the bundled model is trained on."""

from __future__ import annotations

from itertools import islice

import pytest

from lynx_exp.tasks import mini_tasks
from lynx_exp.tasks.mini import GENERATORS, held_out, training_items
from lynx_exp.tasks.mini.dataset import read_rows, rows_file, write_data


def test_files_are_what_the_generators_write(tmp_path):
    for path in write_data(tmp_path):
        assert path.read_bytes() == rows_file(path.stem).read_bytes()
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(GENERATORS)


@pytest.mark.parametrize("name", mini_tasks())
def test_rendered_prompts_are_the_items_prompts(name, task, items):
    prompts = list(dict.fromkeys((request.doc_id, request.prompt) for request in task(name, None).requests))
    assert prompts == list(enumerate(item.prompt for item in items(name)))


@pytest.mark.parametrize("rows", GENERATORS)
def test_no_training_item_asks_a_held_out_question(rows):
    prompts = {item.prompt for item in held_out(rows)}
    assert len(prompts) == 400
    assert not any(item.prompt in prompts for item in islice(training_items(rows, seed=0), 3000))


def test_rows_are_read_whole_and_only_by_known_names():
    assert read_rows("mini_wmt16", version=1.0)["test"][7]["doc_id"] == 7
    with pytest.raises(ValueError, match=r"rows: unknown 'mini_nothing'.*mini_gsm8k"):
        read_rows("mini_nothing")
