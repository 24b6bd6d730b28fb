"""Read `config.json` of a Hugging Face folder as settings of our model, or refuse it with the reason.

Both styles of rotary settings are read: `rope_theta` with `rope_scaling` (transformers 4), and `rope_parameters` (5).
The type and range of each number are checked before it is used.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from transformerlm.checkpoint.integrity import MANIFEST
from transformerlm.hparams import ModelHparams
from transformerlm.utils.errors import InteropError
from transformerlm.utils.json_file import read_json_object

CONFIG_FILE = "config.json"
MAX_BYTES = 1 << 22
_MAX_INTEGER = 1 << 31  # keeps products of sizes small; `ModelHparams` has the limit of each size
_SHOWN = 80


class Family(NamedTuple):
    """The properties of an architecture, and the defaults of its `config.json`."""

    model_type: str
    qkv_bias: bool = False
    qk_norm: bool = False
    kv_heads: int | None = None
    """Key-value heads; None means the number of heads."""
    head_dim: int | None = None
    """Head size; None means hidden_size / heads."""
    window: int | None = None
    """Sliding window; None if the architecture has none."""
    window_is_optional: bool = False
    """Whether the window applies only with `use_sliding_window`, and possibly not in all layers."""
    biases: tuple[str, ...] = ()
    """Settings that add biases our model lacks; other architectures ignore them."""


FAMILIES = {
    "LlamaForCausalLM": Family("llama", biases=("attention_bias", "mlp_bias")),
    "MistralForCausalLM": Family("mistral", kv_heads=8, window=4096),
    "Qwen2ForCausalLM": Family("qwen2", qkv_bias=True, kv_heads=32, window=4096, window_is_optional=True),
    "Qwen3ForCausalLM": Family(
        "qwen3",
        qk_norm=True,
        kv_heads=32,
        head_dim=128,
        window=4096,
        window_is_optional=True,
        biases=("attention_bias",),
    ),
}
"""The supported architectures, with the defaults of their configuration classes in transformers."""


@dataclass(frozen=True)
class _Values:
    """A JSON object, read value by value."""

    where: str
    content: Mapping[str, Any]

    def error(self, key: str, problem: str) -> InteropError:
        got = f" (got {_shown(self.content[key])})" if key in self.content else ""
        return InteropError(f"{self.where}: {key}: {problem}{got}")

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._given(key, default)
        if type(value) is not int or not 1 <= value <= _MAX_INTEGER:
            raise self.error(key, f"must be a whole number from 1 to {_MAX_INTEGER:,}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._given(key, default)
        if type(value) not in (int, float) or not 0 < value < 1e30:
            raise self.error(key, "must be a positive number")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self._given(key, default=False)
        if type(value) is not bool:
            raise self.error(key, "must be true or false")
        return value

    def table(self, key: str) -> "_Values | None":
        value = self.content.get(key)
        if value is not None and type(value) is not dict:
            raise self.error(key, "must be an object or null")
        return None if value is None else _Values(f"{self.where}: {key}", value)

    def _given(self, key: str, default: Any) -> Any:
        value = self.content.get(key)
        if value is None and default is None:
            raise self.error(key, "is missing")
        return default if value is None else value


def read_model_config(folder: Path, *, context_length: int | None = None) -> tuple[str, ModelHparams]:
    """Return the architecture named by `config.json` in `folder`, and the settings of our model.

    `context_length` shortens the context. Raises `InteropError` for a damaged file and for an unsupported model, with
    the reason.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        if (folder / MANIFEST).exists() or (folder / "checkpoints").is_dir():
            raise InteropError(f"{folder}: is already a checkpoint of this project; use it without importing")
        raise InteropError(f"{path}: is missing; give the folder of a model as saved by transformers")
    config = _Values(str(path), read_json_object(path, max_bytes=MAX_BYTES, error=InteropError))
    architecture = _architecture(config)
    family = FAMILIES[architecture]
    _refuse_what_is_not_expressible(config, family)
    longest = config.integer("max_position_embeddings")
    if context_length is not None and context_length > longest:
        raise InteropError(
            f"{path}: max_position_embeddings is {longest:,}, less than the context of {context_length:,} asked for; "
            "ask for a shorter one"
        )
    context_length = longest if context_length is None else context_length
    _require_whole_attention(config, family, context_length)
    values = _shape(config, family) | _rotary(config)
    try:
        hparams = ModelHparams(context_length=context_length, **values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InteropError(f"{path}: {'.'.join(map(str, first['loc']))} of our model {first['msg'].lower()}") from None
    for problem in hparams.problems():
        raise InteropError(f"{path}: {problem.key} of our model {problem.message} (got {problem.got!r})")
    return architecture, hparams


def _architecture(config: _Values) -> str:
    listed = config.content.get("architectures")
    model_type = config.content.get("model_type")
    if listed is None:
        listed = [name for name, family in FAMILIES.items() if family.model_type == model_type]
    known = f"known are {', '.join(FAMILIES)}"
    if type(listed) is not list or len(listed) != 1 or not isinstance(listed[0], str):
        raise config.error("architectures", f"must name one; {known}")
    name = listed[0]
    if name not in FAMILIES:
        raise config.error("architectures", f"is not supported; {known}")
    if model_type is not None and model_type != FAMILIES[name].model_type:
        raise config.error("model_type", f"does not belong to {name}")
    return name


def _refuse_what_is_not_expressible(config: _Values, family: Family) -> None:
    if config.content.get("quantization_config") is not None or config.content.get("compression_config") is not None:
        raise InteropError(
            f"{config.where}: quantization_config: quantised weights cannot be imported; take the model they were "
            "made from"
        )
    if config.content.get("hidden_act", "silu") != "silu":
        raise config.error("hidden_act", "ours is silu")
    for key in family.biases:
        if config.flag(key):
            raise config.error(key, "adds biases that this model lacks: after the attention (o_proj), or in the mlp")
    if config.content.get("partial_rotary_factor") not in (None, 1):
        raise config.error("partial_rotary_factor", "ours rotates whole heads")


def _require_whole_attention(config: _Values, family: Family, context_length: int) -> None:
    """Raise unless every token attends to the whole context, as in our model: the window must not be shorter."""
    if family.window is None or (family.window_is_optional and not _has_windows(config)):
        return
    if "sliding_window" in config.content and config.content["sliding_window"] is None:
        return
    window = config.integer("sliding_window", family.window)
    if window < context_length:
        raise InteropError(
            f"{config.where}: sliding_window: tokens attend to {window:,} positions of a context of "
            f"{context_length:,}, in this project to all; --context-length {window} imports the model with a context "
            "in which both are the same"
        )


def _has_windows(config: _Values) -> bool:
    """Return whether any layer has a sliding window, in an architecture with optional windows."""
    if not config.flag("use_sliding_window"):
        return False
    kinds = config.content.get("layer_types")
    if kinds is None:
        first = config.content.get("max_window_layers", 28)
        return type(first) is not int or first < config.integer("num_hidden_layers")
    return type(kinds) is not list or any(kind != "full_attention" for kind in kinds)


def _shape(config: _Values, family: Family) -> dict[str, Any]:
    width, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    head_size = None
    if config.content.get("head_dim") is not None or family.head_dim is not None:
        head_size = config.integer("head_dim", family.head_dim)
        if head_size * heads == width:
            head_size = None
    return {
        "vocab_size": config.integer("vocab_size"),
        "d_model": width,
        "num_layers": config.integer("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": config.integer("num_key_value_heads", family.kv_heads or heads),
        "d_ff": config.integer("intermediate_size"),
        "norm_eps": config.number("rms_norm_eps"),
        "tie_embeddings": config.flag("tie_word_embeddings"),
        "qk_norm": family.qk_norm,
        "qkv_bias": family.qkv_bias,
        "head_size": head_size,
    }


def _rotary(config: _Values) -> dict[str, Any]:
    """Return our settings of the rotary positions; if both styles are present, they must agree."""
    styles = [_scaling(config, style) for key in ("rope_scaling", "rope_parameters") if (style := config.table(key))]
    if not styles:
        return {"rope_theta": config.number("rope_theta", 10_000.0)}
    if styles[0] != styles[-1]:
        raise InteropError(f"{config.where}: rope_scaling and rope_parameters contradict each other; remove one")
    return styles[0]


def _scaling(config: _Values, style: _Values) -> dict[str, Any]:
    theta = style.number("rope_theta", config.number("rope_theta", 10_000.0))
    if style.content.get("partial_rotary_factor") not in (None, 1):
        raise style.error("partial_rotary_factor", "ours rotates whole heads")
    key = "rope_type" if style.content.get("rope_type") is not None else "type"
    kind = style.content.get(key, "default")
    if kind == "default":
        return {"rope_theta": theta}
    if kind not in ("linear", "llama3"):
        raise style.error(key, "ours has the scalings linear and llama3")
    values = {"rope_theta": theta, "rope_scaling": kind, "rope_factor": style.number("factor")}
    if kind == "llama3":
        values["rope_low_freq_factor"] = style.number("low_freq_factor")
        values["rope_high_freq_factor"] = style.number("high_freq_factor")
        values["rope_original_context"] = style.integer("original_max_position_embeddings")
    return values


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):  # possibly too deeply nested for repr
        return f"a JSON {'object' if isinstance(value, dict) else 'array'} of {len(value)}"
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
