"""Presets: sizes that the report states, and the look-up by name or path."""

import json
import math

import pytest

from abyssal.errors import InputError
from abyssal.model.presets import NOTES, PRESETS, get_preset
from abyssal.model.statistics import count_parameters


def cut_to_one_decimal(parameters: int) -> float:
    return math.floor(parameters / 1e8) / 10


@pytest.mark.parametrize(("name", "total", "active"), [("16b", 15.7, 2.4), ("230b", 228.7, 20.9)])
def test_baselines_have_the_sizes_of_the_report(name, total, active):
    # Tables 4 and 5 print one decimal. The tolerance is that digit, cut: 15.706 and 2.451,
    # 228.748 and 20.987.
    counts = count_parameters(PRESETS[name])
    assert cut_to_one_decimal(counts.main) == total
    assert cut_to_one_decimal(counts.active_one_embedding) == active


def test_cpu_presets_stay_small():
    assert 2e5 <= count_parameters(PRESETS["tiny"]).total <= 4e6
    assert 2e7 <= count_parameters(PRESETS["small"]).total <= 5e7


def test_every_preset_says_where_it_comes_from():
    assert set(NOTES) == set(PRESETS)
    assert all(("inferred" in NOTES[name]) or ("own shape" in NOTES[name]) for name in PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_its_config_file(name, tmp_path):
    config = get_preset(name)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.to_dict()))
    assert get_preset(file) == get_preset(tmp_path) == get_preset(str(tmp_path)) == config


def test_unknown_names_list_the_presets(tmp_path):
    with pytest.raises(InputError, match="'tiney' is neither a preset .*tiny, small, 16b"):
        get_preset("tiney")
    with pytest.raises(FileNotFoundError, match="config.json"):
        get_preset(tmp_path)
