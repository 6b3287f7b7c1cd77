"""Loads and launches mutants of PTX, in a process that may end any way.

    python -m tests.emulator.fuzz.worker FOLDER FIRST COUNT SECONDS

COUNT mutants at most, for SECONDS or until 100 are done.

Before each mutant, FOLDER/seed and FOLDER/mutant.ptx say which it is: who finds the process dead
knows of what. At the end FOLDER/result.json says what became of them; a mutant that breaks a rule
ends the run there with "broken" in it.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

from abyssal import emulator
from abyssal.errors import InputError
from tests.emulator.fuzz.mutations import mutate
from tests.emulator.fuzz.subjects import Subject, launch_any, subjects

IS_SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")
# Of this process's time, for one text; the sanitizers take their share.
LONGEST_SECONDS = 20.0 if IS_SANITIZED else 2.0
LONGEST_LAUNCH = 0.25  # then it is interrupted, as Ctrl-C would
MOST_MEMORY = 512 << 20
LONGEST_MESSAGE = 1000
LEAST = 100  # mutants, however slow the machine is


class Broken(Exception):
    """A mutant did what none may."""


class Interrupted(Exception):
    """A launch takes long: an endless loop, most likely."""


def mutant_of(seed: int) -> tuple[Subject, str]:
    chance = random.Random(seed)
    all_subjects = subjects()
    subject = chance.choice(all_subjects)
    others = [other.text for other in chance.sample(all_subjects, 2)]
    return subject, mutate(subject.text, chance, others)


def check_sentence(message: str) -> None:
    has_control = any(ord(letter) < 32 or letter == "\x7f" for letter in message)
    is_short = len(message) <= LONGEST_MESSAGE and not has_control
    begins = message.startswith(("PTX line ", "there is no memory for the "))
    if not begins or not is_short:
        raise Broken(f"no readable sentence: {message[:2000]!r}")


def load(text: str) -> tuple[emulator.Module | None, str]:
    """The module, or none and the error."""
    begin = time.process_time()
    try:
        module = emulator.Device().load_ptx(text)
        message = ""
    except emulator.EmulatorError as error:
        module, message = None, str(error)
        check_sentence(message)
    except BaseException as error:
        raise Broken(f"loading raised {type(error).__name__}: {error}") from error
    seconds = time.process_time() - begin
    if seconds > LONGEST_SECONDS:
        raise Broken(f"loading took {seconds:.1f} s")
    return module, message


def launch(subject: Subject, module: emulator.Module, device: emulator.Device) -> str:
    """What became of it: "ran", "interrupted", or the error's kind."""
    module.device = device
    begin = time.process_time()
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, LONGEST_LAUNCH)
            subject.launch(device, module)
            outcome = "ran"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except emulator.EmulatorError as error:
        outcome = str(error.kind)
        if outcome == "unsupported":
            check_sentence(str(error))
    except InputError:
        outcome = "input"
    except Interrupted:
        outcome = "interrupted"
    except BaseException as error:
        raise Broken(f"a launch raised {type(error).__name__}: {error}") from error
    seconds = time.process_time() - begin
    if seconds > LONGEST_SECONDS:
        raise Broken(f"a launch took {seconds:.1f} s ({outcome})")
    return outcome


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def try_mutant(seed: int, subject: Subject, text: str) -> list[str]:
    """What became of the text, and of its launches."""
    before = peak_memory()
    module, _ = load(text)
    if module is None:
        return ["refused"]
    policy = ("late", "early", "random")[seed % 3]
    device = emulator.Device(policy=policy, seed=seed, strict=seed % 5 != 0)
    outcomes = ["loaded", launch(subject, module, device)]
    if subject.launch is not launch_any:
        names_fit = outcomes[-1] != "input"
        if not names_fit:
            any_subject = Subject(subject.name, subject.text, launch_any)
            outcomes.append(launch(any_subject, module, device))
    module.counters and str(module.counters)
    grown = peak_memory() - before
    if grown > MOST_MEMORY and not IS_SANITIZED:
        raise Broken(f"{grown >> 20} MiB of memory were taken")
    return outcomes


def interrupt(number: int, frame: object) -> None:
    raise Interrupted


def main() -> int:
    folder = Path(sys.argv[1])
    first, count, seconds = int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    signal.signal(signal.SIGALRM, interrupt)
    if not IS_SANITIZED:
        # Whoever asks for more than this fails, and not the machine.
        most = 32 << 30
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    begin = time.monotonic()
    result: dict[str, object] = {"mutants": 0}
    counts: dict[str, int] = {}
    subjects()
    for seed in range(first, first + count):
        if seed - first >= min(count, LEAST) and time.monotonic() - begin > seconds:
            break
        subject, text = mutant_of(seed)
        (folder / "seed").write_text(str(seed))
        (folder / "mutant.ptx").write_text(text, encoding="utf-8")
        try:
            for outcome in try_mutant(seed, subject, text):
                counts[outcome] = counts.get(outcome, 0) + 1
        except Broken as broken:
            result["broken"] = f"{subject.name}: {broken}"
            break
        result["mutants"] = seed + 1 - first
    result["outcomes"] = counts
    (folder / "result.json").write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
