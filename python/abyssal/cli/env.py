"""`abyssal env`: what this installation and machine can do, and why not what they cannot.

It is where one looks when something is missing, so it needs nothing but Python: argparse instead of
the other commands' tyro, and versions from the packages' metadata.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from typing import Any, NoReturn

import abyssal
from abyssal import runtime
from abyssal.errors import InputError

LIBRARIES = ("torch", "numpy", "safetensors", "tokenizers", "tyro", "rich", "matplotlib")
OPTIONAL_LIBRARIES = ("tensorboard", "transformers", "triton")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; `abyssal env --help` explains the options")


def main(argv: list[str]) -> int:
    """Print the report. Returns 0 whatever is missing."""
    parser = _Parser(prog="abyssal env", description="What this installation and machine can do.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    options = parser.parse_args(argv)
    report = collect()
    print(json.dumps(report, indent=2) if options.json else as_text(report))
    return 0


def collect() -> dict[str, Any]:
    """Everything that is printed.

    abyssal, python, platform   versions
    cpu                         {"cores", "threads": of torch}
    libraries                   {name: version, or None if it is not installed}
    torch_error                 why torch cannot be imported, or None
    extension, kernels, driver, devices, backends    see `abyssal.runtime.report`
    """
    report: dict[str, Any] = {
        "abyssal": abyssal.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {"cores": os.cpu_count(), "threads": None},
        "libraries": {name: _version(name) for name in LIBRARIES + OPTIONAL_LIBRARIES},
        "torch_error": runtime.why_not_torch(),
        **runtime.report(),
    }
    if report["torch_error"] is None:
        import torch

        report["cpu"]["threads"] = torch.get_num_threads()
    return report


def as_text(report: dict[str, Any]) -> str:
    """The report as lines of a name and what there is to say."""
    cpu = report["cpu"]
    libraries = report["libraries"]
    rows = [
        ("abyssal", report["abyssal"]),
        ("python", f"{report['python']}, {report['platform']}"),
        ("cpu", f"{cpu['cores']} cores, torch uses {cpu['threads'] or 'none'}"),
        *((name, libraries[name] or "NOT INSTALLED") for name in LIBRARIES),
        *((name, libraries[name] or "not installed (optional)") for name in OPTIONAL_LIBRARIES),
    ]
    if report["torch_error"]:
        rows.append(("torch", report["torch_error"]))
    extension, kernels, driver = report["extension"], report["kernels"], report["driver"]
    rows.append(("extension", extension["reason"] or "built"))
    if extension["built"]:
        rows.append(("kernels", kernels["reason"] or ", ".join(kernels["images"])))
        version = f"CUDA {driver['cuda']} (needed: {driver['needed']})"
        rows.append(("driver", version if driver["cuda"] else driver["reason"]))
    rows += [(f"gpu {device['index']}", _describe(device)) for device in report["devices"]]
    for name, reason in report["backends"].items():
        rows.append((f"backend {name}", f"no: {reason}" if reason else "yes"))
    return _table(rows)


def _describe(device: dict[str, Any]) -> str:
    verdict = "runs the kernels" if device["usable"] else "cannot run the kernels"
    return (
        f"{device['name']}, capability {device['capability']} ({verdict}), "
        f"{device['multiprocessors']} multiprocessors, {device['memory_bytes'] / 2**30:.0f} GiB"
    )


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
