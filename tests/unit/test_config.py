"""`config.json`: what is read, what is written, and what is refused rather than computed differently."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.errors import UserError
from cutaway.model.config import ModelConfig
from model_helpers import ROPE_SCALINGS, tiny_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def refused(config: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        ModelConfig.from_dict(config, where="some/config.json")
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("scaling", ROPE_SCALINGS.values(), ids=ROPE_SCALINGS)
@given(
    qk_norm=st.booleans(),
    tied=st.booleans(),
    heads=st.sampled_from([(4, 1), (4, 2), (4, 4)]),
    head_dim=st.sampled_from([2, 8, 64]),
    eos=st.sampled_from([None, 0, 5, [1, 2]]),
)
def test_round_trip(
    scaling: dict[str, Any], qk_norm: bool, tied: bool, heads: tuple[int, int], head_dim: int, eos: Any
) -> None:
    config = tiny_config(
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=head_dim,
        rope_theta=12345.0,
        rope_scaling=scaling,
        qk_norm=qk_norm,
        tie_word_embeddings=tied,
        eos_token_id=eos,
        pad_token_id=0,
    )
    table = json.loads(json.dumps(config.to_dict()))
    assert ModelConfig.from_dict(table) == config
    # Either version of transformers finds everything where it looks.
    assert table["rope_theta"] == table["rope_parameters"]["rope_theta"] == 12345.0
    assert (table["rope_scaling"] or {}) | {"rope_theta": 12345.0} == {
        key: value for key, value in table["rope_parameters"].items() if scaling or key != "rope_type"
    }
    assert table["architectures"] == (["Qwen3ForCausalLM"] if qk_norm else ["LlamaForCausalLM"])
    assert table["torch_dtype"] == "float32"


def test_what_we_write_is_read_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="cutaway"):
        for qk_norm in (False, True):
            ModelConfig.from_dict(tiny_config(qk_norm=qk_norm).to_dict())
    assert not caplog.records


def test_both_spellings_of_rope_mean_the_same() -> None:
    four = {**LLAMA, "rope_scaling": LLAMA3}
    old = {**LLAMA, "rope_scaling": {("type" if key == "rope_type" else key): value for key, value in LLAMA3.items()}}
    five = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
    five["rope_parameters"] = {**LLAMA3, "rope_theta": 500000.0}
    read = [ModelConfig.from_dict(config) for config in (four, old, five)]
    assert read[0] == read[1] == read[2]
    assert (read[0].rope_theta, read[0].rope_scaling) == (500000.0, LLAMA3)


def test_plain_rope_in_every_spelling() -> None:
    bare = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
    default = {"rope_type": "default"}
    for config, theta in (
        (bare, 10000.0),
        (LLAMA, 500000.0),
        ({**LLAMA, "rope_scaling": None}, 500000.0),
        ({**LLAMA, "rope_scaling": default}, 500000.0),
        ({**LLAMA, "rope_parameters": default}, 500000.0),
        ({**LLAMA, "rope_parameters": {**default, "rope_theta": 7e4}}, 7e4),
        ({**bare, "rope_parameters": {"rope_theta": 7e4}}, 7e4),
        ({**bare, "rope_theta": 1000000}, 1e6),
    ):
        read = ModelConfig.from_dict(config)
        assert (read.rope_theta, read.rope_scaling) == (theta, {})


def test_scaling_added_by_hand_decides_over_the_table_already_there() -> None:
    bare = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
    bare["rope_parameters"] = {"rope_type": "default", "rope_theta": 7e4}
    read = ModelConfig.from_dict({**bare, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}})
    assert (read.rope_theta, read.rope_scaling) == (7e4, {"rope_type": "yarn", "factor": 4.0})


def test_defaults_are_those_of_the_two_architectures() -> None:
    least = {key: LLAMA[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    least["num_attention_heads"] = 4
    llama = ModelConfig.from_dict({**least, "model_type": "llama"})
    assert (llama.head_dim, llama.num_key_value_heads, llama.rope_theta) == (8, 4, 10000.0)
    assert (llama.tie_word_embeddings, llama.rms_norm_eps, llama.qk_norm) == (False, 1e-6, False)
    qwen = ModelConfig.from_dict({**least, "model_type": "qwen3"})
    assert (qwen.head_dim, qwen.qk_norm) == (128, True)
    nulls = dict.fromkeys(("head_dim", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta"))
    assert ModelConfig.from_dict({**least, "model_type": "llama", **nulls, "tie_word_embeddings": None}) == llama


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": None}, "model_type"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"rope_type": ["yarn"], "factor": 2.0}}, "rope_type"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": None}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "4"}}, "factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}}, "full_attention"),
        ({"rope_parameters": {"rope_theta": "1e4"}}, "rope_theta"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_theta": 1.0}, "rope_theta"),
        ({"rope_theta": -5}, "rope_theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"sliding_window": 4096, "use_sliding_window": True}, "sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"layer_types": 3}, "layer_types"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": -4}, "num_attention_heads"),
        ({"num_key_value_heads": -2}, "num_key_value_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"head_dim": -8}, "head_dim"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"vocab_size": None}, "vocab_size"),
        ({"vocab_size": "61"}, "vocab_size"),
        ({"hidden_size": 32.0}, "hidden_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_hidden_layers": [2]}, "num_hidden_layers"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
    ],
)
def test_refuses_and_names(changes: dict[str, Any], named: str) -> None:
    assert named in refused({**LLAMA, **changes})


def test_accepts_keys_that_ask_for_nothing() -> None:
    plain = ModelConfig.from_dict(LLAMA)
    for changes in (
        {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "attention_dropout": 0.0},
        {"sliding_window": None},
        {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 2},
        {"layer_types": ["full_attention"] * 2, "quantization_config": None, "partial_rotary_factor": 1.0},
    ):
        assert ModelConfig.from_dict({**LLAMA, **changes}) == plain


def test_missing_keys_are_all_named() -> None:
    message = refused({"model_type": "llama", "hidden_size": 32})
    for key in ("vocab_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        assert key in message
    assert "some/config.json" in message


def test_unknown_keys_are_named_in_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="cutaway"):
        read = ModelConfig.from_dict({**LLAMA, "zebra": 1, "attention_sinks": 4}, where="here.json")
    assert read == ModelConfig.from_dict(LLAMA)
    assert len(caplog.records) == 1 and caplog.records[0].levelname == "WARNING"
    message = caplog.records[0].getMessage()
    assert "attention_sinks, zebra" in message and "here.json" in message and "\n" not in message


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1, 2]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"vocab_size": ' + b"9" * 5000 + b"}", b"\x80{}"],
)
def test_a_corrupt_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json") as caught:
        ModelConfig.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_or_unreadable_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        ModelConfig.load(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match="could not be read"):
        ModelConfig.load(tmp_path)
