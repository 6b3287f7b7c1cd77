"""The DeepSeek-V3 configuration: the Hub's field names, checked when it is made.

Field names and meanings are those of the released `config.json`, so that a configuration travels
between the Hub, transformers and this package unchanged. The defaults are the 671B model of the
technical report (section 4.2), with one difference from the released file: `initializer_range` is
the 0.006 that the report trained with (the file says 0.02).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from abyssal.errors import InputError
from abyssal.model.activations import ACTIVATIONS

# The router scores a group by the sum of its two best experts, whatever top_k is; so do the
# released inference code and transformers.
EXPERTS_PER_GROUP_SCORE = 2

# Turns over the original context beyond which YaRN keeps a rotary pair as it is, and below which it
# interpolates it fully (Peng et al., section 3.2), where a configuration does not say.
BETA_FAST = 32
BETA_SLOW = 1

YARN_FIELDS = {
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "attention_factor",
    "truncate",
}

# Fields of config.json that do not change what the model computes. They are accepted and dropped.
METADATA_FIELDS = {
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "auto_map",
    "aux_loss_alpha",
    "chunk_size_feed_forward",
    "dtype",
    "ep_size",
    "head_dim",
    "id2label",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pretraining_tp",
    "problem_type",
    "qk_head_dim",
    "quantization_config",
    "return_dict",
    "seq_aux",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepseekV3Config:
    """What a DeepSeek-V3 model is made of.

    Raises InputError when fields contradict each other or name something unsupported; the message
    names the field, its value and what is accepted.

    `num_nextn_predict_layers` counts the multi-token-prediction modules (report, section 2.2);
    `q_lora_rank=None` replaces the compressed query by one projection; `rope_scaling` is None or
    a YaRN dictionary (report, section 4.3); `rope_interleave` says that rotary pairs are
    neighbours in the weights, (x0, x1), (x2, x3), ..., as in the released weights, and not halves.
    """

    vocab_size: int = 129280
    hidden_size: int = 7168
    intermediate_size: int = 18432
    moe_intermediate_size: int = 2048
    num_hidden_layers: int = 61
    num_nextn_predict_layers: int = 1

    num_attention_heads: int = 128
    num_key_value_heads: int | None = None
    q_lora_rank: int | None = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    attention_bias: bool = False
    attention_dropout: float = 0.0

    n_routed_experts: int = 256
    n_shared_experts: int = 1
    num_experts_per_tok: int = 8
    n_group: int = 8
    topk_group: int = 4
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    first_k_dense_replace: int = 3
    moe_layer_freq: int = 1
    scoring_func: str = "sigmoid"
    topk_method: str = "noaux_tc"

    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.006
    max_position_embeddings: int = 4096
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    rope_interleave: bool = True
    tie_word_embeddings: bool = False

    pad_token_id: int | None = None
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1

    def __post_init__(self) -> None:
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        _check_types(self)
        for field in dataclasses.fields(self):
            # JSON writes 1.0 as 1 as well; transformers refuses an int where it wants a float.
            if field.type == "float":
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        _check_ranges(self)
        _check_experts(self)
        _check_supported(self)
        object.__setattr__(self, "rope_scaling", _check_rope_scaling(self.rope_scaling))
        if self.rope_scaling is not None and self.rope_theta <= 1:
            raise InputError(f"rope_theta must exceed 1 with YaRN, not {self.rope_theta}")

    @property
    def qk_head_dim(self) -> int:
        """Width of one query or key: the part without position and the rotated part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def num_layers_with_mtp(self) -> int:
        """Entries of `model.layers`: the main layers, then the MTP modules."""
        return self.num_hidden_layers + self.num_nextn_predict_layers

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The end-of-text ids as a tuple, empty when there is none (None, or -1)."""
        if self.eos_token_id is None:
            return ()
        ids = self.eos_token_id
        return tuple(token for token in ([ids] if isinstance(ids, int) else ids) if token >= 0)

    def is_moe_layer(self, layer_idx: int) -> bool:
        """Whether `model.layers[layer_idx]` has experts (MTP modules included)."""
        return layer_idx >= self.first_k_dense_replace

    def replace(self, **changes: Any) -> DeepseekV3Config:
        """A checked copy with some fields changed. Unknown names raise InputError."""
        unknown = sorted(set(changes) - _field_names())
        if unknown:
            raise InputError(f"DeepseekV3Config has no field {', '.join(map(repr, unknown))}")
        # A config that never named num_key_value_heads should not be held to the old head count.
        if "num_attention_heads" in changes and "num_key_value_heads" not in changes:
            changes["num_key_value_heads"] = None
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as the released config.json names them; transformers reads it too."""
        return {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            **dataclasses.asdict(self),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DeepseekV3Config:
        """Read the fields of a config.json, of the Hub's form or of transformers'.

        Metadata that does not change the mathematics is dropped; any other unknown field raises
        InputError, because a field that is not understood may change what the model computes.
        """
        fields = dict(values)
        model_type = fields.pop("model_type", "deepseek_v3")
        if model_type != "deepseek_v3":
            raise InputError(f"model_type is {model_type!r}; only 'deepseek_v3' can be read")
        _rename(fields, "num_mtp_layers", "num_nextn_predict_layers")
        _rename(fields, "num_local_experts", "n_routed_experts")
        if fields.get("rope_parameters") is not None:
            _unfold_rope_parameters(fields)
        fields.pop("rope_parameters", None)
        for name in METADATA_FIELDS:
            fields.pop(name, None)
        unknown = sorted(set(fields) - _field_names())
        if unknown:
            raise InputError(
                f"the configuration has unknown field(s) {', '.join(map(repr, unknown))}"
            )
        return cls(**fields)

    @classmethod
    def from_file(cls, path: str | Path) -> DeepseekV3Config:
        """Read a config.json, given its path or the directory that holds it."""
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"no configuration at {path}")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise InputError(f"{path} must hold a JSON object, not a {type(values).__name__}")
        try:
            return cls.from_dict(values)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def _field_names() -> set[str]:
    return {field.name for field in dataclasses.fields(DeepseekV3Config)}


def _rename(fields: dict[str, Any], old: str, new: str) -> None:
    if old not in fields:
        return
    value = fields.pop(old)
    if fields.setdefault(new, value) != value:
        raise InputError(f"{old}={value!r} contradicts {new}={fields[new]!r}")


def _unfold_rope_parameters(fields: dict[str, Any]) -> None:
    """transformers 5 folds rope_theta and rope_scaling into one dictionary; take it apart."""
    parameters = fields["rope_parameters"]
    if not isinstance(parameters, Mapping):
        raise InputError(f"rope_parameters must be a dictionary, not {parameters!r}")
    parameters = dict(parameters)
    theta = parameters.pop("rope_theta", fields.get("rope_theta", 10000.0))
    if not {"type", "rope_type"} & set(parameters):
        parameters["rope_type"] = "default"
    scaling = _check_rope_scaling(parameters, "rope_parameters")
    if fields.get("rope_theta", theta) != theta:
        raise InputError(f"rope_parameters contradicts rope_theta={fields['rope_theta']!r}")
    also = fields.get("rope_scaling")
    if also is not None and _check_rope_scaling(also) != scaling:
        raise InputError(f"rope_parameters contradicts rope_scaling={also!r}")
    fields["rope_theta"], fields["rope_scaling"] = theta, scaling


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "None": (type(None),),
    "list[int]": (list,),
    "dict[str, Any]": (dict,),
}


def _check_types(config: DeepseekV3Config) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        kinds = [kind.strip() for kind in str(field.type).split("|")]
        accepted = tuple(kind for name in kinds for kind in _KINDS[name])
        wrong = not isinstance(value, accepted)
        # bool is an int in Python; a configuration that says `hidden_size: true` is a mistake.
        wrong |= isinstance(value, bool) and bool not in accepted
        if isinstance(value, list):
            wrong |= any(type(item) is not int for item in value)
        if wrong:
            raise InputError(f"{field.name} must be {field.type}, not {value!r}")


def _check_ranges(config: DeepseekV3Config) -> None:
    at_least_one = (
        "vocab_size hidden_size intermediate_size moe_intermediate_size num_hidden_layers "
        "num_attention_heads kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim "
        "n_routed_experts num_experts_per_tok n_group topk_group max_position_embeddings"
    )
    for name in at_least_one.split():
        if getattr(config, name) < 1:
            raise InputError(f"{name} must be at least 1, not {getattr(config, name)}")
    for name in ("num_nextn_predict_layers", "n_shared_experts", "first_k_dense_replace"):
        if getattr(config, name) < 0:
            raise InputError(f"{name} must not be negative, not {getattr(config, name)}")
    for name in ("initializer_range", "rms_norm_eps", "rope_theta", "routed_scaling_factor"):
        if not 0 < getattr(config, name) < float("inf"):
            raise InputError(f"{name} must be positive and finite, not {getattr(config, name)}")
    if config.q_lora_rank is not None and config.q_lora_rank < 1:
        raise InputError(f"q_lora_rank must be None or at least 1, not {config.q_lora_rank}")
    if config.qk_rope_head_dim % 2:
        raise InputError(f"qk_rope_head_dim must be even, not {config.qk_rope_head_dim}")
    ids = [("pad_token_id", config.pad_token_id), ("bos_token_id", config.bos_token_id)]
    ends = config.eos_token_id
    ids += [("eos_token_id", token) for token in (ends if isinstance(ends, list) else [ends])]
    for name, token in ids:
        # -1 is how some published configurations write "none".
        if token is not None and not -1 <= token < config.vocab_size:
            raise InputError(f"{name} {token} is outside vocab_size={config.vocab_size}")


def _check_experts(config: DeepseekV3Config) -> None:
    experts, groups = config.n_routed_experts, config.n_group
    if experts % groups:
        raise InputError(f"n_routed_experts={experts} must be a multiple of n_group={groups}")
    per_group = experts // groups
    if per_group < EXPERTS_PER_GROUP_SCORE:
        raise InputError(
            f"n_routed_experts={experts} over n_group={groups} leaves {per_group} expert(s) a "
            f"group; a group is scored by its best {EXPERTS_PER_GROUP_SCORE}, so it needs as many"
        )
    if config.topk_group > groups:
        raise InputError(f"topk_group={config.topk_group} exceeds n_group={groups}")
    if config.num_experts_per_tok > config.topk_group * per_group:
        raise InputError(
            f"num_experts_per_tok={config.num_experts_per_tok} exceeds the "
            f"{config.topk_group * per_group} experts in topk_group={config.topk_group} groups"
        )


def _check_supported(config: DeepseekV3Config) -> None:
    if config.num_key_value_heads != config.num_attention_heads:
        raise InputError(
            f"num_key_value_heads={config.num_key_value_heads} must equal num_attention_heads="
            f"{config.num_attention_heads}: latent attention has one key and value per head"
        )
    only = {
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
        "attention_dropout": 0.0,
    }
    for name, accepted in only.items():
        if getattr(config, name) != accepted:
            raise InputError(f"{name} must be {accepted!r}, not {getattr(config, name)!r}")
    if config.hidden_act not in ACTIVATIONS:
        raise InputError(
            f"hidden_act must be one of {', '.join(ACTIVATIONS)}; not {config.hidden_act!r}"
        )


def _check_rope_scaling(
    scaling: Mapping[str, Any] | None, source: str = "rope_scaling"
) -> dict[str, Any] | None:
    """Check and normalise a YaRN dictionary; both `type` and `rope_type` name the kind."""
    if scaling is None:
        return None
    if not isinstance(scaling, Mapping):
        raise InputError(f"{source} must be a dictionary or None, not {scaling!r}")
    fields = dict(scaling)
    kinds = [fields.pop(name) for name in ("type", "rope_type") if name in fields]
    if fields.pop("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(f"{source} partial_rotary_factor must be 1.0")
    if not kinds or any(kind != kinds[0] for kind in kinds) or kinds[0] not in ("yarn", "default"):
        given = " and ".join(map(repr, kinds)) or "absent"
        raise InputError(f"{source} type must be 'yarn', not {given}")
    known = YARN_FIELDS if kinds[0] == "yarn" else set()
    unknown = sorted(set(fields) - known)
    if unknown:
        raise InputError(
            f"{source} of type {kinds[0]!r} has unknown field(s) {', '.join(map(repr, unknown))}"
        )
    if kinds[0] == "default":
        return None
    _check_yarn_values(fields, source)
    return {"type": "yarn", **fields}


def _check_yarn_values(fields: dict[str, Any], source: str) -> None:
    value: Any
    for name in ("factor", "original_max_position_embeddings"):
        value = fields.get(name)
        if not _is_number(value) or value < 1:
            raise InputError(f"{source} {name} must be a number of at least 1, not {value!r}")
    for name in ("mscale", "mscale_all_dim", "attention_factor", "beta_fast", "beta_slow"):
        value = fields.get(name)
        if value is not None and (not _is_number(value) or value < 0):
            raise InputError(f"{source} {name} must be a number of at least 0, not {value!r}")
    # A beta that is 0 or absent means its default, as in transformers.
    fast, slow = fields.get("beta_fast") or BETA_FAST, fields.get("beta_slow") or BETA_SLOW
    if fast <= slow:
        raise InputError(f"{source} beta_fast={fast} must exceed beta_slow={slow}")
    if not isinstance(fields.get("truncate", True), bool):
        raise InputError(f"{source} truncate must be a bool, not {fields['truncate']!r}")


def _is_number(value: Any) -> bool:
    """A finite int or float; True and False are neither."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
