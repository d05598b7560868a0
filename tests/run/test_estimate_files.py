"""What the heads of a model's files say of its size is what the model says."""

from __future__ import annotations

from lynx_exp.models import BUNDLED
from lynx_exp.run.cost_estimate import _kept_by_config, _parameters_of_files, weightless


def test_sizes_from_files_are_the_models(tmp_path):
    folder = BUNDLED["lynx_tiny"]
    model = weightless("bundled", "lynx_tiny", None, False, "{}")
    text = model.config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    expected = 2 * text.num_hidden_layers * text.num_key_value_heads * width
    assert _parameters_of_files(folder) == sum(p.numel() for p in model.parameters())
    assert _kept_by_config(folder) == expected


def test_files_that_do_not_tell(tmp_path):
    assert _parameters_of_files(tmp_path) is None and _kept_by_config(tmp_path) is None
    (tmp_path / "config.json").write_text('{"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}')
    assert _parameters_of_files(tmp_path) is None and _kept_by_config(tmp_path) == 16
    for content in (b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"\x02" + b"\0" * 7 + b"{", b"\xff" * 64):
        (tmp_path / "model.safetensors").write_bytes(content)
        assert _parameters_of_files(tmp_path) is None
