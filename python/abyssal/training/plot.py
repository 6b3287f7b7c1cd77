"""The curves of a run, as a picture: loss, validation bits per byte, learning rate, expert load."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def plot_curves(records: list[dict[str, Any]], path: Path) -> None:
    """Draw the records of metrics.jsonl into a PNG. Needs matplotlib (ImportError without it).

    The file is replaced at once, so that a viewer never sees half a picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [record for record in records if record["kind"] == "train"]
    checks = [record for record in records if record["kind"] == "validation"]
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    (loss, bits), (rate, load) = figure.subplots(2, 2)

    tokens = [record["tokens"] for record in steps]
    loss.plot(tokens, [record["loss"] for record in steps], linewidth=0.8, label="training")
    if any(record["mtp_loss"] is not None for record in steps):
        values = [record["mtp_loss"] for record in steps]
        loss.plot(tokens, values, linewidth=0.8, alpha=0.6, label="second next token (MTP)")
    validated = [record["tokens"] for record in checks]
    loss.plot(validated, [record["loss"] for record in checks], "o-", label="validation")
    loss.set(title="loss", ylabel="nats per token")
    loss.legend()

    bits.plot(validated, [record["bits_per_byte"] for record in checks], "o-")
    bits.set(title="validation", ylabel="bits per byte")

    rate.plot(tokens, [record["learning_rate"] for record in steps])
    rate.set(title="learning rate")

    for gate in range(len(steps[0]["expert_load"]) if steps else 0):
        # A gate of an MTP module may stop running when its loss gets weight 0.
        rows = [record for record in steps if gate < len(record["expert_load"])]
        load.plot(
            [record["tokens"] for record in rows],
            [record["expert_load"][gate] for record in rows],
            linewidth=0.8,
            label=f"gate {gate}",
        )
    load.axhline(1.0, color="grey", linewidth=0.5)
    load.set(title="load of the fullest expert", ylabel="tokens / mean tokens")
    if load.get_legend_handles_labels()[0] and steps and len(steps[0]["expert_load"]) <= 8:
        load.legend()

    for axes in (loss, bits, rate, load):
        axes.set(xlabel="tokens")
        axes.grid(alpha=0.3)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png", dpi=110)
    os.replace(partial, path)
