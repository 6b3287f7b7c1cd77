"""What a DeepSeek-V3 checkpoint holds: the tensors on disk and where each lives in the model.

Derived from the model itself, so that there is one list of parameters. Disk and memory differ in
three ways: the routed experts are fused in memory and one tensor each on disk; an MTP module has
its own copies of embedding and output head on disk, as in the release, and shares the main
model's in memory; with tied embeddings the output head is no tensor of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from torch import Tensor, nn

from abyssal.model.config import DeepseekV3Config

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
CORRECTION_BIAS_SUFFIX = ".e_score_correction_bias"


@dataclasses.dataclass(frozen=True)
class DiskTensor:
    """One tensor of a checkpoint.

    `name`, `shape`: on disk. `source`: the model's parameter or buffer that holds it, `expert` and
    `rows` the part of it (None: all). `is_copy`: the tensor repeats another one, must equal it,
    and may be missing; it is never read into the model. `written`: whether we write it.
    `released_in_fp8`: whether the released FP8 checkpoint stores it in FP8.
    """

    name: str
    shape: tuple[int, ...]
    source: str
    expert: int | None = None
    rows: slice | None = None
    is_copy: bool = False
    written: bool = True
    released_in_fp8: bool = False

    def part_of(self, tensors: dict[str, Tensor]) -> Tensor:
        """This tensor's view into the model's `state_dict`."""
        tensor = tensors[self.source]
        tensor = tensor if self.expert is None else tensor[self.expert]
        return tensor if self.rows is None else tensor[self.rows]


def disk_tensors(model: nn.Module) -> list[DiskTensor]:
    """All tensors of `model`'s checkpoint in the order of the layers; works on the meta device."""
    config: DeepseekV3Config = model.config  # type: ignore[assignment]
    tensors = model.state_dict()
    found = [item for source in tensors for item in _on_disk(source, tensors[source], config)]
    elements = sum(item.part_of(tensors).numel() for item in found if not item.is_copy)
    owned = sum(
        tensor.numel()
        for name, tensor in tensors.items()
        if not (name == HEAD and config.tie_word_embeddings)
    )
    assert elements == owned, "every parameter must be on disk exactly once"
    return found


def is_correction_bias(name: str) -> bool:
    """Whether this is a router's balancing bias, which stays FP32: BF16 swallows its steps."""
    return name.endswith(CORRECTION_BIAS_SUFFIX)


def layer_prefix(layer_idx: int) -> str:
    """How the names of a layer's tensors begin."""
    return f"model.layers.{layer_idx}."


def _on_disk(source: str, tensor: Tensor, config: DeepseekV3Config) -> Iterator[DiskTensor]:
    """The tensors on disk that stand for one parameter or buffer of the model."""
    prefix, _, leaf = source.rpartition(".")
    shape = tuple(tensor.shape)
    if leaf == "gate_up_proj":
        yield from _expert_tensors(prefix, config)
    elif prefix.endswith(".experts") and leaf == "down_proj":
        pass  # stands with gate_up_proj, expert by expert
    elif source == HEAD and config.tie_word_embeddings:
        yield DiskTensor(HEAD, shape, EMBEDDING, is_copy=True, written=False)
    else:
        yield DiskTensor(source, shape, source, released_in_fp8=_is_released_in_fp8(source, shape))
    if source.endswith(".shared_head.norm.weight"):
        layer = source.removesuffix("shared_head.norm.weight")
        head = EMBEDDING if config.tie_word_embeddings else HEAD
        vocabulary = (config.vocab_size, config.hidden_size)
        yield DiskTensor(f"{layer}embed_tokens.weight", vocabulary, EMBEDDING, is_copy=True)
        yield DiskTensor(f"{layer}shared_head.head.weight", vocabulary, head, is_copy=True)


def _expert_tensors(experts: str, config: DeepseekV3Config) -> Iterator[DiskTensor]:
    """gate_proj, up_proj and down_proj of each routed expert of one layer."""
    inner, hidden = config.moe_intermediate_size, config.hidden_size
    for expert in range(config.n_routed_experts):
        for name, parameter, rows, shape in (
            ("gate_proj", "gate_up_proj", slice(0, inner), (inner, hidden)),
            ("up_proj", "gate_up_proj", slice(inner, 2 * inner), (inner, hidden)),
            ("down_proj", "down_proj", None, (hidden, inner)),
        ):
            yield DiskTensor(
                f"{experts}.{expert}.{name}.weight",
                shape,
                f"{experts}.{parameter}",
                expert=expert,
                rows=rows,
                released_in_fp8=True,
            )


def _is_released_in_fp8(name: str, shape: tuple[int, ...]) -> bool:
    """The projections of attention, MLPs and experts; not norms, biases, router, eh_proj, head."""
    in_block = ".self_attn." in name or ".mlp." in name
    return in_block and len(shape) == 2 and not name.endswith(".mlp.gate.weight")
