"""`abyssal generate CHECKPOINT`: continue prompts, or fill a hole, and print text as it comes."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from abyssal.cli.common import find_checkpoint, parse
from abyssal.errors import InputError

if TYPE_CHECKING:
    from abyssal.model.deepseek_v3 import DeepseekV3ForCausalLM
    from abyssal.training.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
GREEN, PLAIN = "\x1b[32m", "\x1b[0m"


@dataclasses.dataclass
class GenerateOptions:
    """Options of `abyssal generate`. Give --prompt (once or more), --prompt-file or --fim."""

    checkpoint: Path
    """A checkpoint directory, or a training run's directory (its latest checkpoint)."""
    prompt: list[str] = dataclasses.field(default_factory=list)
    """A text to continue. Several --prompt are continued together and printed one by one."""
    prompt_file: Path | None = None
    """A UTF-8 file whose whole text is continued."""
    fim: tuple[str, str] | None = None
    """PREFIX SUFFIX: fill the hole between two texts; one of them may be empty."""
    max_new_tokens: int = 256
    """Stop after so many new tokens."""
    temperature: float = 0.0
    """0: the most probable token each time; 1: sample what the model says."""
    top_k: int | None = None
    """Sample from the k most probable tokens."""
    top_p: float | None = None
    """Sample from the fewest most probable tokens that together reach this probability."""
    seed: int | None = None
    """Makes samples repeatable: prompt number b (from 0) draws with seed + b."""
    device: str | None = None
    """Where to run, for instance cpu or cuda:0. Default: the GPU if there is one."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One text to generate: printed as `before`, what the model says, `after`."""

    tokens: list[int]
    before: str
    after: str = ""


def main(argv: list[str]) -> int:
    """Print the continuations on standard output."""
    options = parse(
        GenerateOptions, "generate", "Continue a prompt, or fill a hole, with a checkpoint.", argv
    )
    texts = _texts(options)
    directory = find_checkpoint(options.checkpoint)

    from abyssal.model.deepseek_v3 import DeepseekV3ForCausalLM
    from abyssal.training.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(directory)
    requests = _requests(options, texts, tokenizer)
    model = DeepseekV3ForCausalLM.from_pretrained(directory, device=_device(options.device))
    if tokenizer.vocab_size > model.config.vocab_size:
        raise InputError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} tokens, the model only "
            f"{model.config.vocab_size}"
        )
    run(model, tokenizer, requests, options, sys.stdout)
    return 0


def run(
    model: DeepseekV3ForCausalLM,
    tokenizer: Tokenizer,
    requests: list[Request],
    options: GenerateOptions,
    out: TextIO,
) -> None:
    """Generate all requests as one batch; a single one is written while it is generated."""
    import torch

    ends = set(model.config.eos_token_ids) or {tokenizer.eos_id}
    width = max(len(request.tokens) for request in requests)
    filler = min(ends)
    rows = [[filler] * (width - len(request.tokens)) + request.tokens for request in requests]
    masks = [
        [0] * (width - len(request.tokens)) + [1] * len(request.tokens) for request in requests
    ]
    steps = model.stream(
        torch.tensor(rows, device=model.device),
        attention_mask=torch.tensor(masks, device=model.device),
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        # What is printed is text: other control tokens, such as those of holes, are not.
        suppress_tokens=sorted(tokenizer.control_ids - ends),
        eos_token_id=sorted(ends),
        pad_token_id=filler,
    )
    if len(requests) == 1:
        _write(requests[0], tokenizer, until_end((int(step[0]) for step in steps), ends), out)
        return
    columns = torch.stack(list(steps), dim=1).tolist()
    for number, (request, tokens) in enumerate(zip(requests, columns, strict=True), start=1):
        out.write(f"--- {number} of {len(requests)} ---\n")
        _write(request, tokenizer, until_end(iter(tokens), ends), out)


def until_end(tokens: Iterator[int], ends: set[int]) -> Iterator[int]:
    """The tokens before the first end."""
    for token in tokens:
        if token in ends:
            return
        yield token


def joined_text(tokens: Iterator[int], tokenizer: Tokenizer) -> Iterator[str]:
    """The text of tokens as it becomes certain; joined, it is the decoding of all of them.

    A character may be spread over several tokens. Decoding an unfinished one gives exactly one
    replacement character, and only at the end; so a last replacement character is held back. Relies
    on the tokenizer being byte-level: behind a finished character, decoding starts afresh.
    """
    pending: list[int] = []
    written = 0
    for token in tokens:
        pending.append(token)
        text = tokenizer.decode(pending)
        certain = text.removesuffix(REPLACEMENT)
        yield certain[written:]
        written = len(certain)
        if certain == text:
            pending, written = [], 0
    yield tokenizer.decode(pending)[written:]


def _write(request: Request, tokenizer: Tokenizer, tokens: Iterator[int], out: TextIO) -> None:
    """Write one text, what the model adds in green on a terminal."""
    start, stop = (GREEN, PLAIN) if out.isatty() else ("", "")
    out.write(request.before + start)
    out.flush()
    try:
        for text in joined_text(tokens, tokenizer):
            out.write(text)
            out.flush()
    finally:
        # An interrupt must not leave the terminal green.
        out.write(stop)
    out.write(f"{request.after}\n")
    out.flush()


def _texts(options: GenerateOptions) -> list[str]:
    """The prompts, or the hole's two sides. Raises InputError when there is not one kind."""
    given = [bool(options.prompt), options.prompt_file is not None, options.fim is not None]
    if sum(given) != 1:
        raise InputError("give one of --prompt TEXT, --prompt-file FILE, --fim PREFIX SUFFIX")
    if options.prompt_file is not None:
        return [_read_prompt(options.prompt_file)]
    texts = list(options.fim or options.prompt)
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(f"{text!r} is not valid UTF-8") from None
    if options.fim is not None and not any(texts):
        raise InputError("--fim needs a prefix or a suffix; both are empty")
    if options.prompt and not all(texts):
        raise InputError("--prompt is empty; generation needs some text to continue")
    return texts


def _read_prompt(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"no prompt file at {path}")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not valid UTF-8 (byte {error.start})") from None
    if not text:
        raise InputError(f"{path} is empty; generation needs some text to continue")
    return text


def _requests(options: GenerateOptions, texts: list[str], tokenizer: Tokenizer) -> list[Request]:
    if options.fim is None:
        return [Request(tokenizer.encode(text), before=text) for text in texts]
    prefix, suffix = texts
    begin, hole, end = tokenizer.fim_begin_id, tokenizer.fim_hole_id, tokenizer.fim_end_id
    if begin is None or hole is None or end is None:
        raise InputError("--fim: the model's tokenizer has no tokens for holes")
    # The order of training (report, section 4.1): prefix, suffix, then the middle is written.
    tokens = [begin, *tokenizer.encode(prefix), hole, *tokenizer.encode(suffix), end]
    return [Request(tokens, before=prefix, after=suffix)]


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # Making a tensor is the only check that also covers an index that does not exist.
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name!r} cannot be used: {reason}") from None
    if torch.device(name).type == "meta":
        raise InputError("--device 'meta' cannot be used: it holds no values")
    return name
