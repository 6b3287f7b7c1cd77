"""Checkpoints are whole or not there, whatever happens while they are written."""

import os
import shutil

import pytest
import torch

import abyssal.training.checkpoint as checkpoint_module
from abyssal.errors import InputError
from abyssal.training.checkpoint import (
    STATE_FILE,
    latest_checkpoint,
    list_checkpoints,
    load_state,
    save_checkpoint,
)


class Crash(Exception):
    """Stands for a kill: nothing catches it."""


def write_model(directory):
    (directory / "model.safetensors").write_bytes(os.urandom(1000))
    (directory / "config.json").write_text("{}")


def save(run, step, keep=10, write=write_model):
    return save_checkpoint(run, step, {"step": step, "moments": torch.rand(5)}, write, keep)


def content(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_what_is_saved_is_found_and_read_back(tmp_path):
    moments = torch.randn(7)
    saved = save_checkpoint(
        tmp_path, 1000, {"moments": moments, "nested": {"text": ["a", 1.5, None]}}, write_model, 3
    )
    assert saved == tmp_path / "checkpoints" / "step-00001000"
    assert sorted(content(saved)) == ["config.json", "model.safetensors", STATE_FILE]
    state = load_state(latest_checkpoint(tmp_path))
    assert torch.equal(state["moments"], moments)
    assert state["nested"] == {"text": ["a", 1.5, None]}


def test_the_newest_are_kept_in_order_of_steps(tmp_path):
    for step in (9, 10, 99_999_999, 100_000_000):
        save(tmp_path, step, keep=2)
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["step-99999999", "step-100000000"]
    assert latest_checkpoint(tmp_path).name == "step-100000000"
    assert sorted(os.listdir(tmp_path / "checkpoints")) == sorted(names)


def test_a_published_step_is_left_alone(tmp_path):
    before = content(save(tmp_path, 5))
    assert content(save(tmp_path, 5)) == before


def crash(*_args, **_options):
    raise Crash


@pytest.mark.parametrize("moment", ["in the model", "in the state", "in flushing", "in publishing"])
def test_a_crash_before_publishing_leaves_the_previous_checkpoint(tmp_path, monkeypatch, moment):
    before = content(save(tmp_path, 1))

    def half_a_model(directory):
        (directory / "model.safetensors").write_bytes(b"half")
        raise Crash

    with monkeypatch.context() as patch:
        if moment == "in the state":
            patch.setattr(checkpoint_module.torch, "save", crash)
        elif moment == "in flushing":
            patch.setattr(os, "fsync", crash)
        elif moment == "in publishing":
            patch.setattr(checkpoint_module.Path, "rename", crash)
        with pytest.raises(Crash):
            save(tmp_path, 2, write=half_a_model if moment == "in the model" else write_model)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001"]
    assert content(latest_checkpoint(tmp_path)) == before
    # The next save clears the remains away and succeeds.
    save(tmp_path, 2)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-00000001", "step-00000002"]


def test_everything_is_flushed_before_it_is_published(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, checkpoint_module.Path.rename

    def spy_fsync(descriptor):
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def spy_rename(path, target):
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(checkpoint_module.Path, "rename", spy_rename)
    save(tmp_path, 1)
    published = events.index("rename")
    files = {"model.safetensors", "config.json", STATE_FILE, ".partial-step-00000001"}
    assert set(events[:published]) == files
    assert events[published + 1] == "checkpoints"


def test_a_crash_while_old_ones_are_removed_shows_no_half_checkpoint(tmp_path, monkeypatch):
    for step in (1, 2):
        save(tmp_path, step)

    def half_removed(path):
        (path / "model.safetensors").unlink()
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module.shutil, "rmtree", half_removed)
        with pytest.raises(Crash):
            save(tmp_path, 3, keep=2)
    for path in list_checkpoints(tmp_path):
        assert (path / "model.safetensors").exists()
    assert latest_checkpoint(tmp_path).name == "step-00000003"
    save(tmp_path, 4, keep=2)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-00000003", "step-00000004"]


def test_without_a_checkpoint_the_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in .*checkpoints"):
        latest_checkpoint(tmp_path)
    shutil.os.makedirs(tmp_path / "checkpoints" / ".partial-step-00000001")
    with pytest.raises(FileNotFoundError):
        latest_checkpoint(tmp_path)


def test_every_truncation_of_the_state_is_refused_in_one_sentence(tmp_path):
    path = save(tmp_path, 1) / STATE_FILE
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError) as caught:
            load_state(path.parent)
        assert str(path) in str(caught.value)
        assert "truncated, damaged" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_foreign_files_are_refused(tmp_path):
    saved = save(tmp_path, 1)
    torch.save({"weights": torch.ones(2)}, saved / STATE_FILE)
    with pytest.raises(InputError, match="trainer state of format None; this version reads 1"):
        load_state(saved)
    torch.save([1, 2], saved / STATE_FILE)
    with pytest.raises(InputError, match="format None"):
        load_state(saved)
    torch.save(Crash, saved / STATE_FILE)  # would need to run foreign code
    with pytest.raises(InputError, match="truncated, damaged"):
        load_state(saved)
    (saved / STATE_FILE).unlink()
    with pytest.raises(
        InputError, match=f"not a checkpoint of `abyssal train`: it has no {STATE_FILE}"
    ):
        load_state(saved)
