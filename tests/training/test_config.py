"""TrainConfig: what is accepted, what is refused and how, and the way through TOML."""

import dataclasses
import math
import typing
from pathlib import Path

import pytest

from abyssal.errors import InputError
from abyssal.training.config import FREE_ON_RESUME, TrainConfig, read_toml


@pytest.fixture
def good(tmp_path):
    (tmp_path / "text").mkdir()
    return TrainConfig(data=tmp_path / "text", total_tokens=10**6, run_dir=tmp_path / "run")


def test_the_defaults_are_the_reports_constants(good):
    assert (good.adam_beta1, good.adam_beta2, good.weight_decay) == (0.9, 0.95, 0.1)
    assert good.max_grad_norm == 1.0
    assert (good.mtp_weight, good.mtp_weight_final) == (0.3, 0.1)
    assert (good.bias_update_speed, good.balance_weight, good.fim_rate) == (0.001, 1e-4, 0.1)
    assert math.isclose(good.decay_start, 10 / 14.8, abs_tol=5e-4)
    assert math.isclose(good.decay_end, 14.3 / 14.8, abs_tol=5e-4)
    assert good.decay_lr_ratio == pytest.approx(2.2e-5 / 2.2e-4)
    assert good.final_lr_ratio == pytest.approx(7.3e-6 / 2.2e-4, rel=1e-3)
    good.check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_tokens": None}, "no end: give total_tokens"),
        ({"max_minutes": 5.0}, "total_tokens=1000000 and max_minutes=5.0 contradict"),
        ({"total_tokens": 100}, "less than one step"),
        ({"total_tokens": None, "max_minutes": 5.0, "decay_start": 0.0}, "at least 0.05"),
        ({"batch_size": 10, "micro_batch_size": 4}, "batch_size=10 must be a multiple of micro"),
        (
            {"decay_start": 0.9, "decay_end": 0.8},
            "decay_start=0.9, decay_end=0.8 and final_start=0.9887 must not decrease",
        ),
        ({"sequence_length": 4096}, "sequence_length=4096 exceeds the model's max_position"),
        ({"sequence_length": 1}, "must exceed the model's num_nextn_predict_layers=1"),
        ({"model": "gigantic"}, "'gigantic' is neither a preset (tiny, small"),
        ({"model_set": ("hidden=3",)}, "no field 'hidden'"),
        ({"model_set": ("hidden_size",)}, "name=value, not 'hidden_size'"),
        ({"model_set": ("n_group=3",)}, "must be a multiple of n_group=3"),
        ({"tokenizer": "words"}, "'words' is none of them"),
        ({"learning_rate": 0.0}, "learning_rate must be more than 0"),
        ({"learning_rate": math.nan}, "learning_rate must be more than 0"),
        ({"fim_rate": 1.5}, "fim_rate must be at most 1, not 1.5"),
        ({"validation_fraction": 1.0}, "validation_fraction must be less than 1"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"seed": 2**65}, "seed must be less than 2**61"),
        ({"threads": 10**11}, "threads must be at most 4096"),
        ({"sample_prompt": "\udcff"}, "sample_prompt is not text"),
        ({"cache_dir": Path(__file__)}, "is a file, not a directory"),
        *(
            ({"model_set": (f"{name}=7",)}, f"{name}=7 cannot be chosen, the tokenizer decides")
            for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
        ),
    ],
)
def test_a_run_that_cannot_be_meant_is_refused_in_one_sentence(good, changes, message):
    with pytest.raises(InputError) as caught:
        dataclasses.replace(good, **changes).check()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_data_directory_is_named(good):
    with pytest.raises(FileNotFoundError, match="no directory or file at .*nowhere"):
        dataclasses.replace(good, data=good.data / "nowhere").check()


def test_toml_round_trip_keeps_every_field(good, tmp_path):
    changed = dataclasses.replace(
        good,
        model_set=("hidden_size=64", 'rope_scaling={"type": "yarn"}'),
        sample_prompt='def "quoted"\n\\ \t\x7f\x01 \u00e9 \U0001f600:',
        micro_batch_size=4,
        learning_rate=3e-5,
        resume=True,
        precision="bf16",
    )
    file = tmp_path / "run.toml"
    file.write_text(changed.to_toml(), encoding="utf-8")
    assert TrainConfig.from_toml(file) == changed
    file.write_text(good.to_toml(), encoding="utf-8")
    assert TrainConfig.from_toml(file) == good


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat = 1e-3", "unknown setting 'learning_rat'"),
        ("batch_size = 1.5", "batch_size must be a whole number, not 1.5"),
        ("batch_size = true", "batch_size must be a whole number, not True"),
        ("tensorboard = 1", "tensorboard must be a bool, not 1"),
        ('learning_rate = "fast"', "learning_rate must be a number, not 'fast'"),
        ('precision = "fp4"', "precision must be 'float32' or 'bf16', not 'fp4'"),
        ("model_set = [1]", "model_set must be a list of texts"),
        ("data = 3", "data must be a path, not 3"),
        ("a = = 1", "is not valid TOML"),
        ("[data]\nx = 1", "data must be a path"),
    ],
)
def test_wrong_toml_is_refused_with_file_and_key(tmp_path, text, message):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_toml(file)
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


def test_a_file_without_data_is_refused(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("batch_size = 4")
    with pytest.raises(InputError, match="run.toml: data is missing"):
        TrainConfig.from_toml(file)


def test_whole_numbers_serve_as_numbers_in_toml(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('data = "x"\nmax_minutes = 3\nmicro_batch_size = 2\nmodel_set = ["n_group=1"]')
    assert read_toml(file) == {
        "data": Path("x"),
        "max_minutes": 3.0,
        "micro_batch_size": 2,
        "model_set": ("n_group=1",),
    }
    assert type(read_toml(file)["max_minutes"]) is float


def test_model_set_takes_numbers_bools_null_and_text(good):
    config = dataclasses.replace(
        good, model_set=("q_lora_rank=null", "tie_word_embeddings=true", "hidden_act=gelu")
    ).model_config()
    assert config.q_lora_rank is None
    assert config.tie_word_embeddings is True
    assert config.hidden_act == "gelu"


def test_every_field_is_explained():
    import inspect
    import re

    source = inspect.getsource(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        assert re.search(rf'\n    {field.name}: [^\n]*\n    """.*"""', source), field.name
    assert {field.name for field in dataclasses.fields(TrainConfig)} >= FREE_ON_RESUME
    assert set(typing.get_type_hints(TrainConfig)) >= FREE_ON_RESUME


def test_the_schedule_depends_on_the_length_from_its_first_landmark_on(good):
    replace = dataclasses.replace
    assert good.plan_fraction == good.decay_start
    assert replace(good, mtp_drop=0.2).plan_fraction == 0.2
    assert replace(good, mtp_drop=0.2, mtp_weight_final=0.3).plan_fraction == good.decay_start
    assert replace(good, bias_freeze=0.1).plan_fraction == 0.1
    flat = replace(
        good, decay_lr_ratio=1.0, final_lr_ratio=1.0, mtp_weight_final=0.3, bias_update_speed=0.0
    )
    assert flat.plan_fraction == 1.0
