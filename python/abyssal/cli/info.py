"""`abyssal info MODEL`: parameters, FLOPs, cache and training memory, from the configuration."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abyssal.cli.common import find_checkpoint, parse
from abyssal.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from abyssal.model.config import DeepseekV3Config


@dataclasses.dataclass
class InfoOptions:
    """Options of `abyssal info`."""

    model: str
    """A preset (tiny, small, 16b, 230b, 671b), a config.json, a checkpoint or a run directory."""
    sequence_length: int | None = None
    """Tokens a sequence, for attention FLOPs and memory. Default: 4096, or what the model takes."""
    json: bool = False
    """Print JSON instead of a table: parameters, FLOPs and bytes as plain numbers."""


def main(argv: list[str]) -> int:
    """Print the figures of one model."""
    options = parse(InfoOptions, "info", "Parameters, FLOPs, cache and memory of a model.", argv)
    config, note = _configuration(options.model)
    length = options.sequence_length
    if length is None:
        length = min(4096, config.max_position_embeddings)
    if length < 1:
        raise InputError(f"--sequence-length must be at least 1, not {length}")
    figures = collect(config, length)
    if options.json:
        print(json.dumps({"model": options.model, "source": note, **figures}, indent=2))
    else:
        _print_report(options.model, note, figures)
    return 0


def collect(config: DeepseekV3Config, sequence_length: int) -> dict[str, Any]:
    """All figures as one dictionary of plain numbers: parameters, FLOPs and bytes."""
    from abyssal.model import statistics

    counts = statistics.count_parameters(config)
    flops = {
        f"{causality}{modules}": statistics.flops_per_token(
            config, sequence_length, causal=causality == "causal", mtp=bool(modules)
        )
        for modules in ("", "_with_mtp")
        for causality in ("causal", "non_causal")
    }
    memory = {
        name: statistics.training_memory(
            config, sequence_length, compute_bytes=width, moment_bytes=width
        )
        for name, width in (("bf16", 2), ("float32", 4))
    }
    cache = statistics.cache_bytes_per_token(config)
    return {
        "config": config.to_dict(),
        "sequence_length": sequence_length,
        "parameters": {**dataclasses.asdict(counts), "total": counts.total},
        "training_flops_per_token": flops,
        "forward_flops_per_token": statistics.forward_flops_per_token(config, sequence_length),
        "cache_bytes_per_token": cache,
        "cache_bytes_per_sequence": cache * sequence_length,
        "training_memory_bytes": {
            name: {**dataclasses.asdict(parts), "total": parts.total}
            for name, parts in memory.items()
        },
    }


def _configuration(model: str) -> tuple[DeepseekV3Config, str]:
    """The configuration and where it comes from; a run directory means its latest checkpoint."""
    from abyssal.model.presets import NOTES, PRESETS, get_preset

    if model in PRESETS:
        return get_preset(model), NOTES[model]
    path = find_checkpoint(Path(model)) if Path(model).is_dir() else model
    return get_preset(path), f"read from {path}; nothing is inferred"


def _print_report(model: str, note: str, figures: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    console.print(f"{model}: {note}", soft_wrap=True)
    length = figures["sequence_length"]
    console.print(_parameter_table(figures))
    console.print(_flops_table(figures, length))
    console.print(_memory_table(figures, length))
    console.print(
        "Parameters, FLOPs, cache and memory are counted from the configuration; activations are "
        "modelled. Training FLOPs are 3 times forward; the embedding look-up is left out, the "
        "output head counts. The balancing bias of the routers is not a parameter.",
        soft_wrap=True,
    )


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", header_style="")
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _parameter_table(figures: dict[str, Any]) -> Table:
    config, counts = figures["config"], figures["parameters"]
    dense = min(config["first_k_dense_replace"], config["num_hidden_layers"])
    moe = config["num_hidden_layers"] - dense
    tied = counts["head"] == 0
    table = _table("Parameters", "part", "copies", "each")
    rows = [
        ("embedding", 1, "embedding"),
        ("output head" + (" (is the embedding)" if tied else ""), 1, "head"),
        ("attention (MLA)", dense + moe, "attention"),
        ("dense FFN", dense, "dense_ffn"),
        (f"MoE layer of {config['n_routed_experts']} experts", moe, "moe_layer"),
        ("  one expert", moe * config["n_routed_experts"], "expert"),
    ]
    for label, copies, name in rows:
        table.add_row(label, f"{copies}", _count(counts[name]))
    table.add_section()
    totals = [
        ("total", "main"),
        (f"MTP modules ({config['num_nextn_predict_layers']}), in addition", "mtp"),
        ("active per token, embedding and head", "active"),
        ("active per token, one of the two", "active_one_embedding"),
    ]
    for label, name in totals:
        table.add_row(label, "", _count(counts[name]))
    return table


def _flops_table(figures: dict[str, Any], length: int) -> Table:
    flops = figures["training_flops_per_token"]
    table = _table(f"Per token, sequences of {length}", "quantity", "causal", "non-causal")
    for label, suffix in (("training FLOPs", ""), ("training FLOPs with MTP", "_with_mtp")):
        values = (flops[f"{causality}{suffix}"] for causality in ("causal", "non_causal"))
        table.add_row(label, *(_count(value, "FLOP") for value in values))
    table.add_row("latent cache, BF16", f"{figures['cache_bytes_per_token']} B", "")
    table.add_row("latent cache of a sequence", _bytes(figures["cache_bytes_per_sequence"]), "")
    return table


def _memory_table(figures: dict[str, Any], length: int) -> Table:
    memory = figures["training_memory_bytes"]
    title = f"Training memory with MTP, one process, {length} tokens"
    table = _table(title, "part", "BF16 compute and moments", "FP32")
    labels = {
        "weights": "FP32 master weights",
        "compute_copy": "copy in the compute type",
        "gradients": "FP32 gradients",
        "moments": "AdamW moments",
        "activations": "activations (modelled)",
        "total": "total",
    }
    for name, label in labels.items():
        table.add_row(label, *(_bytes(memory[kind][name]) for kind in ("bf16", "float32")))
    return table


def _count(value: float, unit: str = "") -> str:
    """Five digits with a decimal prefix: 671.03 B parameters, 250.45 GFLOP."""
    prefixes = ("", "K", "M", "G" if unit else "B", "T")
    return _scaled(value, 1000, prefixes, unit)


def _bytes(value: float) -> str:
    return _scaled(value, 1024, ("", "Ki", "Mi", "Gi", "Ti"), "B")


def _scaled(value: float, base: int, prefixes: tuple[str, ...], unit: str) -> str:
    power = 0
    while value >= base and power < len(prefixes) - 1:
        value, power = value / base, power + 1
    number = f"{value:.0f}" if power == 0 else f"{value:.2f}"
    return f"{number} {prefixes[power]}{unit}".rstrip()
