"""The DeepSeek-V3 model: decoder layers, multi-token prediction, losses.

In memory, parameters carry the names that transformers gives them; on disk, the Hub's (one tensor
per expert). MTP module k is `model.layers[num_hidden_layers + k]`, as in the released weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abyssal.errors import InputError
from abyssal.model.attention import MultiHeadLatentAttention
from abyssal.model.cache import LatentCache
from abyssal.model.config import DeepseekV3Config
from abyssal.model.layers import MLP, Linear, RMSNorm
from abyssal.model.moe import Experts, Gate, MoE, Routing
from abyssal.model.precision import get_precision
from abyssal.model.rope import cos_sin_factor, inverse_frequencies, rotation

IGNORE_INDEX = -100


@dataclasses.dataclass
class CausalLMOutput:
    """What a forward pass returns.

    logits: [B, T, vocab_size], or the last `logits_to_keep` positions. With labels: `loss`, the sum
    that is minimised, and its parts: `main_loss`, one of `mtp_losses` per MTP module,
    `balance_loss` (mean over the gates; None unless its weight is not 0). `expert_counts`: int64
    [number of gates that ran, n_routed_experts], in the order of `model.gates()`: the tokens that
    each expert got, padding included; None where no layer has experts.
    """

    logits: Tensor
    loss: Tensor | None = None
    main_loss: Tensor | None = None
    mtp_losses: tuple[Tensor, ...] = ()
    balance_loss: Tensor | None = None
    expert_counts: Tensor | None = None


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each on a normed input, each added to the stream."""

    def __init__(self, config: DeepseekV3Config, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MultiHeadLatentAttention(config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: MoE | MLP
        if config.is_moe_layer(layer_idx):
            self.mlp = MoE(config)
        else:
            self.mlp = MLP(config, config.intermediate_size)

    def forward(
        self,
        hidden: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        cache: LatentCache | None = None,
        *,
        with_balance_loss: bool = False,
    ) -> tuple[Tensor, Routing | None]:
        """hidden [B, T, H] -> ([B, T, H], the routing where the layer has experts)."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rotation, mask, cache)
        normed = self.post_attention_layernorm(hidden)
        if isinstance(self.mlp, MoE):
            output, routing = self.mlp(normed, with_balance_loss=with_balance_loss)
            return hidden + output, routing
        return hidden + self.mlp(normed), None


class SharedHead(nn.Module):
    """The norm before the output head of an MTP module; the head itself is the main model's."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class MTPLayer(DecoderLayer):
    """A multi-token-prediction module (report, section 2.2, equations 21 to 23).

    Embedding and output head are the main model's. `eh_proj` reads [embedding; hidden], the order
    of the released weights (equation 21 writes the other one).
    """

    def __init__(self, config: DeepseekV3Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.shared_head = SharedHead(config)

    def combine(self, embedding: Tensor, hidden: Tensor) -> Tensor:
        """The module's input [B, T, H] from the next token's embedding and the state before it."""
        joined = self.eh_proj(torch.cat((self.enorm(embedding), self.hnorm(hidden)), dim=-1))
        # The residual stream of a module is as wide as that of the main model.
        return joined.to(torch.promote_types(joined.dtype, hidden.dtype))


class DeepseekV3Model(nn.Module):
    """Embedding, main layers, MTP modules and the final norm."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        self.config = config
        # As in transformers, the padding token's embedding gets no gradient; -1 stands for none.
        padding = None if config.pad_token_id == -1 else config.pad_token_id
        self.embed_tokens = _Embedding(config.vocab_size, config.hidden_size, padding)
        kinds = [DecoderLayer] * config.num_hidden_layers
        kinds += [MTPLayer] * config.num_nextn_predict_layers
        self.layers = nn.ModuleList([kind(config, idx) for idx, kind in enumerate(kinds)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self._frequencies = inverse_frequencies(config)
        self._cos_sin_factor = cos_sin_factor(config)

    @property
    def main_layers(self) -> nn.ModuleList:
        """The layers of the main model."""
        return self.layers[: self.config.num_hidden_layers]

    @property
    def mtp_layers(self) -> nn.ModuleList:
        """The multi-token-prediction modules."""
        return self.layers[self.config.num_hidden_layers :]

    def rotation(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) of positions [B, T]; see `abyssal.model.rope.rotation`."""
        return rotation(position_ids, self._frequencies, self._cos_sin_factor)

    def forward(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        cache: LatentCache | None = None,
        with_balance_loss: bool = False,
    ) -> tuple[Tensor, list[Routing]]:
        """input_ids [B, T] -> (hidden states after the final norm [B, T, H], routing per gate)."""
        past = cache.length if cache is not None else 0
        tokens = input_ids.shape[1]
        position_ids = _position_ids(attention_mask, past, tokens, input_ids.device)
        mask = _visible(attention_mask, past, tokens, input_ids.device)
        angles = self.rotation(position_ids)
        hidden = self.embed_tokens(input_ids)
        routings = []
        for layer in self.main_layers:
            hidden, routing = layer(
                hidden, angles, mask, cache, with_balance_loss=with_balance_loss
            )
            routings += [routing] if routing is not None else []
        if cache is not None:
            cache.advance(tokens)
        return self.norm(hidden), routings


class DeepseekV3ForCausalLM(nn.Module):
    """DeepSeek-V3 with its output head.

    The constructor draws new weights, except on the meta device. `from_pretrained` reads a
    checkpoint of the Hub's or transformers' layout, `save_pretrained` writes one, `generate`
    continues a prompt.
    """

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        self.config = config
        self.model = DeepseekV3Model(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        if self.device.type != "meta":
            self.init_weights()

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        """Move or convert as any module, but keep tied embeddings tied: `to_empty` parts them."""
        super()._apply(fn, recurse)
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        return self

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the parameters are stored in."""
        return self.model.embed_tokens.weight.dtype

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Normal weights of std `initializer_range`, norms 1, biases 0 (report, section 4.2)."""
        for module in self.modules():
            if isinstance(module, RMSNorm):
                module.weight.fill_(1.0)
                continue
            for name, parameter in module.named_parameters(recurse=False):
                if name == "bias":
                    parameter.zero_()
                elif module is not self.lm_head or not self.config.tie_word_embeddings:
                    parameter.normal_(0.0, self.config.initializer_range, generator=generator)
            if isinstance(module, Gate):
                module.e_score_correction_bias.zero_()

    def set_precision(self, name: str) -> None:
        """Choose the type of the matrix products: "stored", "float32" or "bf16"."""
        precision = get_precision(name)
        for module in self.modules():
            if isinstance(module, (Linear, Experts)):
                module.precision = precision

    def gates(self) -> list[Gate]:
        """All routers, those of the main layers first, then those of the MTP modules."""
        return [layer.mlp.gate for layer in self.model.layers if isinstance(layer.mlp, MoE)]

    def new_cache(self, batch_size: int, max_length: int) -> LatentCache:
        """An empty latent cache for `max_length` tokens in each of `batch_size` rows.

        It has the dtype that latents are computed in, so choose the precision before.
        """
        layer = self.model.layers[0]
        assert isinstance(layer, DecoderLayer)
        projection = layer.self_attn.kv_a_proj_with_mqa
        dtype = projection.precision.compute_dtype or projection.weight.dtype
        return LatentCache(self.config, batch_size, max_length, dtype=dtype, device=self.device)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        *,
        shift_labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: LatentCache | None = None,
        logits_to_keep: int = 0,
        mtp_loss_weight: float = 0.0,
        balance_loss_weight: float = 0.0,
    ) -> CausalLMOutput:
        """Logits, and with labels the training loss.

        input_ids: int64 [B, T]. labels: int64 [B, T], where labels[:, t] is the token at t itself
        (they are shifted inside, -100 is ignored), as in transformers; shift_labels: the same
        already shifted, so that shift_labels[:, t] follows input_ids[:, t]. attention_mask: bool
        or integer [B, S] over the cached and the new tokens, 1 for tokens and 0 for padding on the
        left. cache: what `new_cache` made; the new tokens are appended, and no gradient is kept.
        logits_to_keep: only the last so many positions get logits (0: all). The loss is
        main + mtp_loss_weight * mean(MTP losses) + balance_loss_weight * balance loss (report,
        equations 17 and 25); MTP modules run only when their weight is not 0. A term for which the
        model has no module (no MTP module, no experts) is absent.

        Raises InputError for wrong shapes or dtypes, ids outside the vocabulary, more tokens than
        max_position_embeddings or than the cache holds, and contradictory arguments. Values on a
        GPU are not looked at (that would stop the host).
        """
        _check_ids("input_ids", input_ids, self.config.vocab_size)
        shift_labels = _shifted(input_ids, labels, shift_labels, self.config.vocab_size)
        past = cache.length if cache is not None else 0
        _check_mask(attention_mask, input_ids, cache)
        _check_positions(attention_mask, input_ids, past, self.config.max_position_embeddings)
        if not 0 <= logits_to_keep <= input_ids.shape[1]:
            raise InputError(
                f"logits_to_keep must be 0 (all) to {input_ids.shape[1]} (the new tokens), "
                f"not {logits_to_keep}"
            )
        if shift_labels is not None and (cache is not None or logits_to_keep):
            raise InputError("labels need all logits and no cache")
        if mtp_loss_weight or balance_loss_weight:
            _check_loss_weights(shift_labels, attention_mask)
        # With a cache, autograd would hang the whole past on each new token.
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            hidden, routings = self.model(
                input_ids,
                attention_mask=attention_mask,
                cache=cache,
                with_balance_loss=balance_loss_weight != 0,
            )
            logits = self.lm_head(hidden[:, -logits_to_keep:])
        output = CausalLMOutput(logits)
        if shift_labels is not None:
            output.loss = output.main_loss = _token_loss(logits, shift_labels)
            if mtp_loss_weight and self.config.num_nextn_predict_layers:
                output.mtp_losses, mtp_routings = self._mtp_losses(
                    input_ids, hidden, shift_labels, balance_loss_weight != 0
                )
                routings += mtp_routings
                output.loss = output.loss + mtp_loss_weight * torch.stack(output.mtp_losses).mean()
            if balance_loss_weight and routings:
                losses = [routing.balance_loss for routing in routings]
                output.balance_loss = torch.stack(losses).mean()
                output.loss = output.loss + balance_loss_weight * output.balance_loss
        if routings:
            output.expert_counts = torch.stack([routing.counts for routing in routings])
        return output

    def _mtp_losses(
        self,
        input_ids: Tensor,
        hidden: Tensor,
        shift_labels: Tensor,
        with_balance_loss: bool,
    ) -> tuple[tuple[Tensor, ...], list[Routing]]:
        """Each module's loss (equation 24) and the routing of its gate.

        Module k sees, at position i, the state of module k - 1 at i and token i + k, and predicts
        token i + k + 1. Its sum is divided by the count of main targets (T in the report), not by
        the k fewer that it predicts.
        """
        depths = self.config.num_nextn_predict_layers
        if input_ids.shape[1] <= depths:
            raise InputError(
                f"the loss of {depths} MTP module(s) needs more than {depths} tokens a row, "
                f"not {input_ids.shape[1]}"
            )
        total = (shift_labels != IGNORE_INDEX).sum()
        losses, routings = [], []
        for depth, layer in enumerate(self.model.mtp_layers, start=1):
            assert isinstance(layer, MTPLayer)
            tokens = input_ids.shape[1] - depth
            embedding = self.model.embed_tokens(input_ids[:, depth:])
            position_ids = torch.arange(tokens, device=input_ids.device)[None]
            hidden, routing = layer(
                layer.combine(embedding, hidden[:, :tokens]),
                self.model.rotation(position_ids),
                with_balance_loss=with_balance_loss,
            )
            hidden = layer.shared_head.norm(hidden)
            routings += [routing] if routing is not None else []
            logits = self.lm_head(hidden)
            losses.append(_token_loss(logits, shift_labels[:, depth:], total))
        return tuple(losses), routings

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        progress: bool = True,
    ) -> DeepseekV3ForCausalLM:
        """Read a checkpoint directory; see `abyssal.model.checkpoint.load_pretrained`."""
        from abyssal.model.checkpoint import load_pretrained

        return load_pretrained(cls, path, device=device, dtype=dtype, progress=progress)

    def save_pretrained(self, path: str | Path, **options: Any) -> None:
        """Write a checkpoint directory; see `abyssal.model.checkpoint.save_pretrained`."""
        from abyssal.model.checkpoint import save_pretrained

        save_pretrained(self, path, **options)

    def generate(self, input_ids: Tensor, **options: Any) -> Tensor:
        """Continue prompts; see `abyssal.model.generation.generate`."""
        from abyssal.model.generation import generate

        return generate(self, input_ids, **options)

    def stream(self, input_ids: Tensor, **options: Any) -> Iterator[Tensor]:
        """Continue prompts token by token; see `abyssal.model.generation.stream`."""
        from abyssal.model.generation import stream

        return stream(self, input_ids, **options)


class _Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        """Nothing: `DeepseekV3ForCausalLM.init_weights` fills all parameters in one place."""


def _token_loss(logits: Tensor, targets: Tensor, total: Tensor | None = None) -> Tensor:
    """Cross entropy in FP32 (FP64 stays), summed and divided by `total` (None: valid targets)."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    if total is None:
        total = (targets != IGNORE_INDEX).sum()
    loss = F.cross_entropy(
        wide.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return loss / total


def _position_ids(
    attention_mask: Tensor | None, past: int, tokens: int, device: torch.device
) -> Tensor:
    """Positions of the new tokens [B or 1, T]; padding on the left does not count."""
    if attention_mask is None:
        return torch.arange(past, past + tokens, device=device)[None]
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, past:]


def _visible(
    attention_mask: Tensor | None, past: int, tokens: int, device: torch.device
) -> Tensor | None:
    """bool [B or 1, 1, T, past + T]: where a query may look; None for plain causal attention."""
    if attention_mask is None and (past == 0 or tokens == 1):
        return None
    rows = torch.arange(past, past + tokens, device=device)[:, None]
    columns = torch.arange(past + tokens, device=device)[None, :]
    visible = (columns <= rows)[None, None]
    if attention_mask is not None:
        visible = visible & attention_mask.bool()[:, None, None, :]
        # A padding query would see nothing, and its softmax be NaN; it sees itself instead, and
        # no real token looks at it.
        visible = visible | (columns == rows)[None, None]
    return visible


def _check_ids(name: str, ids: Tensor, vocab_size: int, ignored: int | None = None) -> None:
    if not isinstance(ids, Tensor):
        raise InputError(f"{name} must be an int64 tensor, not a {type(ids).__name__}")
    if ids.dim() != 2 or ids.dtype != torch.int64 or ids.numel() == 0:
        raise InputError(
            f"{name} must be int64 [batch, tokens] and not empty, not {ids.dtype} {list(ids.shape)}"
        )
    # Reading a GPU tensor here would stop the host; out-of-range ids trap in the kernel there.
    if ids.device.type != "cpu":
        return
    wrong = (ids < 0) | (ids >= vocab_size)
    if ignored is not None:
        wrong &= ids != ignored
    if wrong.any():
        value = ids[wrong][0].item()
        raise InputError(f"{name} holds {value}, outside the vocabulary of {vocab_size} tokens")


def _shifted(
    input_ids: Tensor, labels: Tensor | None, shift_labels: Tensor | None, vocab_size: int
) -> Tensor | None:
    """The targets of each position, from whichever of the two forms was given."""
    if labels is not None and shift_labels is not None:
        raise InputError("give labels or shift_labels, not both")
    given = labels if labels is not None else shift_labels
    if given is None:
        return None
    name = "labels" if labels is not None else "shift_labels"
    _check_ids(name, given, vocab_size, ignored=IGNORE_INDEX)
    if given.shape != input_ids.shape:
        raise InputError(
            f"{name} must have the shape of input_ids {list(input_ids.shape)}, "
            f"not {list(given.shape)}"
        )
    targets = given if labels is None else F.pad(given[:, 1:], (0, 1), value=IGNORE_INDEX)
    if targets.device.type == "cpu" and bool((targets == IGNORE_INDEX).all()):
        raise InputError(f"{name} holds no target to predict, so the loss would be 0 / 0")
    return targets


def _check_mask(
    attention_mask: Tensor | None, input_ids: Tensor, cache: LatentCache | None
) -> None:
    if attention_mask is None:
        return
    past = cache.length if cache is not None else 0
    expected = [input_ids.shape[0], past + input_ids.shape[1]]
    if not isinstance(attention_mask, Tensor) or list(attention_mask.shape) != expected:
        given = getattr(attention_mask, "shape", None)
        raise InputError(
            f"attention_mask must have shape {expected} (cached and new tokens), "
            f"not {type(attention_mask).__name__ if given is None else list(given)}"
        )
    if attention_mask.is_floating_point() or attention_mask.is_complex():
        raise InputError(f"attention_mask must be bool or integer, not {attention_mask.dtype}")
    if attention_mask.device.type != "cpu":
        return
    if ((attention_mask != 0) & (attention_mask != 1)).any():
        raise InputError("attention_mask must hold 0 (padding) and 1 (token) only")
    # Where a cache is filled in chunks, a row may begin in a later one.
    if cache is None and not attention_mask.any(-1).all():
        row = int(attention_mask.any(-1).logical_not().nonzero()[0])
        raise InputError(f"attention_mask is 0 everywhere in row {row}, which leaves no token")


def _check_positions(
    attention_mask: Tensor | None, input_ids: Tensor, past: int, limit: int
) -> None:
    length = past + input_ids.shape[1]
    if attention_mask is not None:
        if attention_mask.device.type != "cpu":
            return
        length = int(attention_mask.sum(-1).max())
    if length > limit:
        raise InputError(f"a row of {length} tokens exceeds max_position_embeddings={limit}")


def _check_loss_weights(shift_labels: Tensor | None, attention_mask: Tensor | None) -> None:
    if shift_labels is None:
        raise InputError("mtp_loss_weight and balance_loss_weight need labels or shift_labels")
    if attention_mask is not None:
        raise InputError(
            "the MTP and balance losses take packed sequences; with mtp_loss_weight or "
            "balance_loss_weight, attention_mask must be None"
        )
