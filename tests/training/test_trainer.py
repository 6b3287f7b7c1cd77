"""The training loop: it learns, it repeats and resumes bit for bit, it reports what it did."""

import dataclasses
import json
import math
import os
import random
import signal
from collections import Counter

import pytest
import torch

from abyssal.errors import InputError
from abyssal.model.deepseek_v3 import DeepseekV3ForCausalLM
from abyssal.training.checkpoint import latest_checkpoint, list_checkpoints, load_state
from abyssal.training.config import TrainConfig
from abyssal.training.trainer import Trainer, TrainingDiverged

SHAPE = (
    "hidden_size=32",
    "intermediate_size=64",
    "moe_intermediate_size=32",
    "num_hidden_layers=2",
    "num_attention_heads=2",
    "q_lora_rank=null",
    "kv_lora_rank=16",
    "qk_nope_head_dim=8",
    "qk_rope_head_dim=8",
    "v_head_dim=8",
    "initializer_range=0.1",
)
LETTERS = "abcdefgh"


def second_order_text(rng, length, choices):
    """Text in which a letter depends on the two before it, and on nothing else."""
    text = rng.choices(LETTERS, k=2)
    while len(text) < length:
        letters, weights = choices[text[-2] + text[-1]]
        text += rng.choices(letters, weights)
    return "".join(text)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A directory of such text, and the nats per letter that remain given two and one letters."""
    rng = random.Random(5)
    choices = {a + b: (rng.sample(LETTERS, 2), (3, 1)) for a in LETTERS for b in LETTERS}
    folder = tmp_path_factory.mktemp("corpus")
    texts = [second_order_text(rng, 2000, choices) for _ in range(40)]
    for number, text in enumerate(texts):
        (folder / f"{number:02}.txt").write_text(text)
    whole = "".join(texts)
    return folder, conditional_entropy(whole, 2), conditional_entropy(whole, 1)


def conditional_entropy(text, order):
    """Nats per letter, given the `order` letters before it."""
    longer = Counter(text[i : i + order + 1] for i in range(len(text) - order))
    shorter = Counter()
    for letters, count in longer.items():
        shorter[letters[:order]] += count
    total = sum(longer.values())
    return sum(n / total * math.log(shorter[g[:order]] / n) for g, n in longer.items())


@pytest.fixture
def make(corpus, tmp_path):
    """Makes trainers on that text; silent, small, each in its own directory by default."""

    def build(name="run", log=lambda line: None, **changes):
        settings = {
            "total_tokens": 8 * 4 * 16,
            "sequence_length": 16,
            "batch_size": 4,
            "validation_fraction": 0.1,
            "validation_tokens": 512,
            "cache_dir": tmp_path / "cache",
            "model_set": SHAPE,
            "threads": 1,
            "log_every": 1,
            "validate_every": 3,
            "sample_every": 4,
            "sample_tokens": 4,
            "checkpoint_every": 0,
            "plot": False,
            "device": "cpu",
        }
        config = TrainConfig(data=corpus[0], run_dir=tmp_path / name, **(settings | changes))
        return Trainer(config, log=log)

    return build


def read_metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_speed(records):
    return [{k: v for k, v in record.items() if k != "tokens_per_second"} for record in records]


def test_it_learns_what_the_text_holds(make, corpus):
    """The text's entropy given two letters is the floor; given one letter, what bigrams reach."""
    _, entropy, bigram_entropy = corpus
    trainer = make(
        total_tokens=500 * 16 * 32,
        sequence_length=32,
        batch_size=16,
        learning_rate=1e-2,
        validate_every=0,
        sample_every=0,
        fim_rate=0.0,
        validation_tokens=4096,
    )
    untrained = trainer.validate()
    assert untrained.bits_per_byte == pytest.approx(math.log2(trainer.tokenizer.vocab_size), abs=1)
    trained = trainer.run()
    assert bigram_entropy > entropy + 0.8
    assert trained.loss < entropy + 0.1
    assert trained.loss > entropy - 0.05  # less would be a leak of the targets
    # The MTP module sees the same two letters before its target.
    last = [record for record in trainer.metrics.records if record["kind"] == "train"][-50:]
    assert sum(record["mtp_loss"] for record in last) / 50 < entropy + 0.15


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_stopped_and_resumed_run_equals_an_undisturbed_one(make, tmp_path, precision):
    options = {"precision": precision, "micro_batch_size": 2}
    whole = make("whole", **options)
    whole.run()

    stopped = make("parts", **options)

    def stop_after_step_5(line):
        if "step      5" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped.log = stop_after_step_5
    assert stopped.run() is None
    assert (stopped.stopped_by, stopped.step) == ("SIGTERM", 5)
    assert latest_checkpoint(tmp_path / "parts").name == "step-00000005"
    torch.manual_seed(12345)  # resuming must not depend on what ran before it

    resumed = make("parts", resume=True, **options)
    assert (resumed.step, resumed.tokens) == (5, 5 * 4 * 16)
    resumed.run()
    assert resumed.step == whole.step == 8
    first, second = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "parts")
    assert without_speed(first) == without_speed(second)
    for (name, ours), theirs in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_resuming_drops_the_records_after_the_checkpoint(make, tmp_path):
    make("whole").run()
    trainer = make("crashed", checkpoint_every=4)
    trainer.train_step, original = None, trainer.train_step

    def crash_in_step_7():
        if trainer.step == 6:
            raise KeyError("power")
        return original()

    trainer.train_step = crash_in_step_7
    with pytest.raises(KeyError):
        trainer.run()
    with (tmp_path / "crashed" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # cut off in the middle
    assert [path.name for path in list_checkpoints(tmp_path / "crashed")] == ["step-00000004"]
    make("crashed", resume=True).run()
    assert without_speed(read_metrics(tmp_path / "crashed")) == without_speed(
        read_metrics(tmp_path / "whole")
    )


def test_micro_batches_give_the_gradient_of_the_whole_batch(make):
    gradients = []
    for size in (4, 1):
        trainer = make(f"micro{size}", micro_batch_size=size, balance_weight=0.1)
        batch = trainer._accumulate_gradients(0.3)
        named = trainer.model.named_parameters()
        gradients.append(({name: parameter.grad for name, parameter in named}, batch))
    (whole, batch), (parts, in_parts) = gradients
    for name in ("loss", "mtp_loss", "balance_loss"):
        assert getattr(batch, name) == pytest.approx(getattr(in_parts, name), rel=1e-5)
    assert torch.equal(batch.expert_counts, in_parts.expert_counts)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_lambda_scales_the_gradients_of_the_mtp_module(make):
    norms = {}
    for weight in (0.0, 0.3, 0.6):
        trainer = make(f"lambda{weight}", balance_weight=0.0)
        batch = trainer._accumulate_gradients(weight)
        mtp = trainer.model.model.layers[-1]
        gradients = [p.grad for p in mtp.parameters() if p.grad is not None]
        norms[weight] = [gradient.norm().item() for gradient in gradients]
        assert (batch.mtp_loss is None) == (weight == 0.0)
        assert len(batch.expert_counts) == len(trainer.model.gates()) - (weight == 0.0)
    assert norms[0.0] == []
    assert len(norms[0.3]) == len(list(mtp.parameters()))
    assert all(norm > 0 for norm in norms[0.3])
    assert norms[0.6] == pytest.approx([2 * norm for norm in norms[0.3]], rel=1e-4)


def test_router_biases_move_by_gamma_each_step_until_they_freeze(make):
    trainer = make(bias_freeze=0.5, bias_update_speed=0.01)
    gates = trainer.model.gates()
    for step in range(1, 9):
        before = [gate.e_score_correction_bias.clone() for gate in gates]
        trainer.train_step()
        for gate, old in zip(gates, before, strict=True):
            moved = (gate.e_score_correction_bias - old).abs()
            if step <= 4:
                assert moved.max() == pytest.approx(0.01, abs=1e-6)
                assert ((moved < 1e-7) | (moved > 0.0099)).all()
            else:
                assert moved.max() == 0


def test_reports_are_complete_and_readable(make, tmp_path):
    lines = []
    trainer = make(log=lines.append, plot=True, tensorboard=True, checkpoint_every=3)
    result = trainer.run()
    run = tmp_path / "run"

    records = read_metrics(run)
    steps = [record for record in records if record["kind"] == "train"]
    assert [record["step"] for record in steps] == list(range(1, 9))
    assert [record["tokens"] for record in steps] == [64 * step for step in range(1, 9)]
    for record in steps:
        assert len(record["expert_load"]) == len(trainer.model.gates())
        assert all(load >= 1 for load in record["expert_load"])
        assert all(math.isfinite(record[name]) for name in ("loss", "mtp_loss", "grad_norm"))
    checks = [record for record in records if record["kind"] == "validation"]
    assert [record["step"] for record in checks] == [0, 3, 6, 8]
    assert checks[-1]["bits_per_byte"] == result.bits_per_byte
    assert [record["step"] for record in records if record["kind"] == "sample"] == [4, 8]

    step_lines = [line for line in lines if "tok/s" in line]
    assert len(step_lines) == 8
    for word in ("step", "tokens", "loss", "mtp", "balance", "grad", "lr", "mfu", "load", "left"):
        assert word in step_lines[0]
    assert len({len(line) for line in step_lines}) == 1  # aligned
    assert any("bits/byte" in line for line in lines)

    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((run / "tensorboard").iterdir())
    assert TrainConfig.from_toml(run / "config.toml") == trainer.config
    names = [path.name for path in list_checkpoints(run)]
    assert names == ["step-00000006", "step-00000008"]


def test_a_checkpoint_is_a_model_directory(make, tmp_path):
    trainer = make()
    trainer.run()
    loaded = DeepseekV3ForCausalLM.from_pretrained(latest_checkpoint(tmp_path / "run"))
    assert loaded.dtype == torch.float32
    assert loaded.config.vocab_size == trainer.tokenizer.vocab_size
    assert loaded.config.eos_token_id == trainer.tokenizer.eos_id
    tokens = torch.randint(0, 97, (2, 9))
    assert torch.equal(loaded(tokens).logits, trainer.model(tokens).logits)


def test_a_time_budget_becomes_tokens_once(make, tmp_path):
    lines = []
    seconds = 4.0
    trainer = make(
        log=lines.append,
        total_tokens=None,
        max_minutes=seconds / 60,
        validate_every=0,
        sample_every=0,
        checkpoint_every=1,
    )
    trainer.run()
    assert len([line for line in lines if line.startswith("planned")]) == 1
    assert trainer.tokens == trainer.total_tokens
    steps = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "train"]
    assert steps[0]["learning_rate"] < trainer.config.learning_rate
    assert load_state(latest_checkpoint(tmp_path / "run"))["total_tokens"] == trainer.total_tokens
    assert {record["mtp_weight"] for record in steps} == {0.3, 0.1}
    assert steps[-1]["bias_update_speed"] == 0.0
    # Generous: other processes may take the machine away.
    assert seconds / 4 < trainer.seconds < seconds * 4


def test_nan_stops_before_it_does_harm(make, tmp_path):
    trainer = make(checkpoint_every=1)
    before = trainer.train_step()
    with torch.no_grad():
        trainer.model.model.layers[1].mlp.experts.down_proj[:, 3, 3] = math.nan
    weights = [parameter.clone() for parameter in trainer.model.parameters()]
    with pytest.raises(TrainingDiverged, match=r"loss became nan in step 2 \(128 tokens\)"):
        trainer.run()
    assert trainer.step == before.step == 1
    for parameter, weight in zip(trainer.model.parameters(), weights, strict=True):
        assert torch.equal(parameter.nan_to_num(7), weight.nan_to_num(7))
    assert list_checkpoints(tmp_path / "run") == []


def test_an_infinite_gradient_stops_too(make):
    trainer = make()
    trainer.model.lm_head.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingDiverged, match="grad_norm became (inf|nan) in step 1"):
        trainer.train_step()


def test_the_seed_decides_everything(make):
    runs = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(len(runs))
        trainer = make(name, seed=seed)
        runs.append([trainer.train_step() for _ in range(3)])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_building_a_trainer_leaves_the_global_generator_alone(make):
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    make()
    assert torch.equal(torch.rand(3), expected)


def test_a_run_is_not_overwritten(make):
    make().run()
    with pytest.raises(InputError, match="holds checkpoints already; continue with --resume"):
        make()


def test_resuming_wants_the_same_run(make):
    make().run()
    with pytest.raises(InputError, match="learning_rate=0.5 contradicts learning_rate=0.001 of"):
        make(resume=True, learning_rate=0.5)
    with pytest.raises(InputError, match="micro_batch_size=2 contradicts micro_batch_size=None"):
        make(resume=True, micro_batch_size=2)
    lines = []
    finished = make(resume=True, log_every=7, log=lines.append)
    assert finished.run().loss > 0
    assert finished.step == 8


def test_resuming_on_other_text_is_refused(make, corpus, tmp_path):
    trainer = make()
    trainer.run()
    other = tmp_path / "other"
    other.mkdir()
    for path in corpus[0].iterdir():
        (other / path.name).write_text(path.read_text()[::-1])
    config = dataclasses.replace(trainer.config, data=other, resume=True)
    with pytest.raises(InputError, match="has changed since the checkpoint of step 8"):
        Trainer(config)


def test_resuming_without_a_checkpoint_is_refused(make):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
        make(resume=True)


def test_samples_that_do_not_fit_are_refused_before_the_run(make):
    with pytest.raises(InputError, match="sample_tokens=1020 exceed"):
        make(sample_tokens=1020)
    make(sample_tokens=1020, sample_every=0)
    make(sample_prompt="ab", sample_tokens=1022)


@pytest.mark.parametrize(
    ("device", "message"),
    [("tpu", "not 'tpu'"), ("meta", "not 'meta'"), ("cuda:99", "device='cuda:99', but torch")],
)
def test_unusable_devices_are_refused(make, tmp_path, device, message):
    with pytest.raises(InputError, match=message):
        make(device=device)
    assert not (tmp_path / "run").exists()
