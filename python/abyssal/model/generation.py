"""Continuing prompts over the latent cache.

The prompt goes through the model once with expanded keys and values; then each token goes through
the absorbed form, which attends to the cached latents themselves (see `abyssal.model.attention`).
Nothing but the latent cache is kept of past tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from abyssal.errors import InputError
from abyssal.model.config import DeepseekV3Config
from abyssal.model.sampling import Sampler, SamplingOptions

if TYPE_CHECKING:
    from abyssal.model.deepseek_v3 import DeepseekV3ForCausalLM

FromConfig = Literal["config"]


def generate(
    model: DeepseekV3ForCausalLM,
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    attention_mask: Tensor | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    suppress_tokens: Sequence[int] = (),
    eos_token_id: int | Sequence[int] | FromConfig | None = "config",
    pad_token_id: int | FromConfig | None = "config",
) -> Tensor:
    """Continue each prompt until it ends or has `max_new_tokens` new tokens.

    input_ids: int64 [B, T]; prompts of unequal length are padded on the left and come with
    attention_mask [B, T] (int or bool; 1 for tokens, 0 for padding). Sampling options:
    `abyssal.model.sampling.SamplingOptions`; `suppress_tokens` are ids that are never chosen. A row
    ends with an `eos_token_id` (one, several, or None: never), which is part of the output; behind
    it stands `pad_token_id`, or the first eos_token_id where there is no padding token. "config"
    takes the id of the model's configuration.

    Returns int64 [B, T + N]: the prompts and N new tokens, where N <= max_new_tokens is the length
    of the longest continuation (generation stops when all rows have ended).

    Raises InputError for an empty prompt, ids outside the vocabulary, a mask that is not
    left-padded, more tokens than max_position_embeddings, options out of range, and when the model
    computes logits that are not finite.
    """
    new_tokens = list(
        stream(
            model,
            input_ids,
            max_new_tokens=max_new_tokens,
            attention_mask=attention_mask,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            suppress_tokens=suppress_tokens,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
        )
    )
    return torch.cat((input_ids.long(), torch.stack(new_tokens, dim=1)), dim=1)


def stream(
    model: DeepseekV3ForCausalLM,
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    attention_mask: Tensor | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    suppress_tokens: Sequence[int] = (),
    eos_token_id: int | Sequence[int] | FromConfig | None = "config",
    pad_token_id: int | FromConfig | None = "config",
) -> Iterator[Tensor]:
    """As `generate`, but an iterator over the new tokens, int64 [B], as they are produced.

    Arguments are checked in this call, before the first token is asked for.
    """
    config = model.config
    _check_prompt(input_ids, config.vocab_size)
    _check_mask(attention_mask, input_ids)
    _check_length(input_ids, attention_mask, max_new_tokens, config.max_position_embeddings)
    eos_ids = _eos_ids(eos_token_id, config)
    pad_id = _pad_id(pad_token_id, eos_ids, config)
    for token in suppress_tokens:
        _check_id("suppress_tokens", token, config.vocab_size)
    options = SamplingOptions(temperature, top_k, top_p, seed, tuple(suppress_tokens))
    sampler = Sampler(options, input_ids.shape[0])
    return _steps(model, input_ids.long(), attention_mask, max_new_tokens, sampler, eos_ids, pad_id)


def _steps(
    model: DeepseekV3ForCausalLM,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    max_new_tokens: int,
    sampler: Sampler,
    eos_ids: tuple[int, ...],
    pad_id: int,
) -> Iterator[Tensor]:
    """The loop: one forward pass, one choice per row, until all rows have ended."""
    batch, prompt = input_ids.shape
    # The last new token is never read again, so it needs no place in the cache.
    cache = model.new_cache(batch, prompt + max_new_tokens - 1)
    mask = _extended_mask(attention_mask, max_new_tokens)
    ends = torch.tensor(eos_ids, dtype=torch.int64, device=input_ids.device)
    ended = torch.zeros(batch, dtype=torch.bool, device=input_ids.device)
    tokens = input_ids
    for step in range(max_new_tokens):
        seen = None if mask is None else mask[:, : prompt + step]
        with torch.no_grad(), _evaluating(model):
            output = model(tokens, attention_mask=seen, cache=cache, logits_to_keep=1)
            chosen = sampler.choose(output.logits[:, -1])
        chosen = chosen.masked_fill(ended, pad_id)
        tokens = chosen[:, None]
        ended = ended | torch.isin(chosen, ends)
        # A copy: the caller may write into what it gets.
        yield chosen.clone()
        if ended.all():
            return


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; the modules that were training are training again afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _extended_mask(attention_mask: Tensor | None, max_new_tokens: int) -> Tensor | None:
    """bool [B, T + max_new_tokens], new tokens visible; None where nothing is padded."""
    if attention_mask is None or bool(attention_mask.all()):
        return None
    new = attention_mask.new_ones((attention_mask.shape[0], max_new_tokens), dtype=torch.bool)
    return torch.cat((attention_mask.bool(), new), dim=1)


def _check_prompt(input_ids: Tensor, vocab_size: int) -> None:
    if not isinstance(input_ids, Tensor) or input_ids.dtype not in (torch.int64, torch.int32):
        kind = getattr(input_ids, "dtype", type(input_ids).__name__)
        raise InputError(f"input_ids must be an int64 tensor [batch, tokens], not {kind}")
    if input_ids.dim() != 2 or input_ids.shape[0] == 0:
        raise InputError(f"input_ids must have shape [batch, tokens], not {list(input_ids.shape)}")
    if input_ids.shape[1] == 0:
        raise InputError("the prompt is empty; generation needs at least one token to continue")
    wrong = (input_ids < 0) | (input_ids >= vocab_size)
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise InputError(
            f"input_ids[{row}, {column}] is {input_ids[row, column].item()}, outside the "
            f"vocabulary of {vocab_size} tokens"
        )


def _check_mask(attention_mask: Tensor | None, input_ids: Tensor) -> None:
    """Accept [B, T] of 0 and 1 in which every row is zeros (maybe none) and then ones."""
    if attention_mask is None:
        return
    if not isinstance(attention_mask, Tensor) or attention_mask.shape != input_ids.shape:
        shape = list(getattr(attention_mask, "shape", ())) or type(attention_mask).__name__
        raise InputError(
            f"attention_mask must have the shape of input_ids {list(input_ids.shape)}, not {shape}"
        )
    if attention_mask.is_floating_point() or ((attention_mask != 0) & (attention_mask != 1)).any():
        raise InputError("attention_mask must hold bool or integer 0 (padding) and 1 (token)")
    mask = attention_mask.bool()
    for row, (is_token, falls) in enumerate(zip(mask, mask[:, :-1] & ~mask[:, 1:], strict=True)):
        if not is_token.any():
            raise InputError(f"the prompt in row {row} is empty: attention_mask is 0 everywhere")
        if not is_token[-1]:
            raise InputError(
                f"attention_mask pads row {row} on the right; generation continues at the end of "
                "a row, so pad prompts on the left"
            )
        if falls.any():
            raise InputError(
                f"attention_mask has a hole in row {row}; padding must be on the left only"
            )


def _check_length(
    input_ids: Tensor, attention_mask: Tensor | None, max_new_tokens: int, limit: int
) -> None:
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int):
        raise InputError(f"max_new_tokens must be an integer, not {max_new_tokens!r}")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    prompt = input_ids.shape[1]
    if attention_mask is not None:
        prompt = int(attention_mask.sum(dim=1, dtype=torch.int64).max())
    if prompt + max_new_tokens > limit:
        raise InputError(
            f"a prompt of length {prompt} plus max_new_tokens={max_new_tokens} exceeds "
            f"max_position_embeddings={limit}"
        )


def _eos_ids(
    eos_token_id: int | Sequence[int] | FromConfig | None, config: DeepseekV3Config
) -> tuple[int, ...]:
    if eos_token_id == "config":
        return config.eos_token_ids
    if eos_token_id is None:
        return ()
    ids = (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id)
    for token in ids:
        _check_id("eos_token_id", token, config.vocab_size)
    return ids


def _pad_id(
    pad_token_id: int | FromConfig | None, eos_ids: tuple[int, ...], config: DeepseekV3Config
) -> int:
    if pad_token_id == "config":
        pad_token_id = config.pad_token_id
        if pad_token_id == -1:
            pad_token_id = None
    if pad_token_id is None:
        # Without an end no row is ever filled, and the value does not matter.
        return eos_ids[0] if eos_ids else 0
    _check_id("pad_token_id", pad_token_id, config.vocab_size)
    return pad_token_id


def _check_id(name: str, token: object, vocab_size: int) -> None:
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
        raise InputError(f"{name} {token!r} is outside the vocabulary of {vocab_size} tokens")
