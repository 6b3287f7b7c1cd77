"""Real wheels, built as pip builds them for a user, and used in environments of their own."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.packaging.test_find_cuda import find_cuda

pytestmark = pytest.mark.nightly

ROOT = Path(__file__).resolve().parents[2]
# As many of the supported versions as this machine has.
INTERPRETERS = [f"python3.{minor}" for minor in range(10, 15)]


def kernels() -> list[str]:
    """The images that CMakeLists.txt embeds, sorted."""
    listed = (ROOT / "CMakeLists.txt").read_text().rsplit("abyssal_embed_kernels(_extension", 1)[1]
    return sorted(Path(name).name for name in listed.split(")")[0].split())


USE = """
import json, torch, abyssal
from abyssal import ops, runtime
config = abyssal.DeepseekV3Config(vocab_size=64, hidden_size=32, intermediate_size=32,
    moe_intermediate_size=16, num_hidden_layers=2, first_k_dense_replace=1, num_attention_heads=2,
    n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, q_lora_rank=16,
    kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8)
model = abyssal.DeepseekV3ForCausalLM(config)
generated = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5, eos_token_id=None)
print(json.dumps({
    "images": sorted(runtime.extension().kernel_images()),
    "scale": ops.quantize_1x128(torch.full((1, 128), 448.0)).scale.item(),
    "generated": list(generated.shape),
}))
"""


def run(*command, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def usable(interpreter: str) -> bool:
    path = shutil.which(interpreter)
    probe = ["-c", "import ensurepip, venv"]
    return path is not None and not subprocess.run([path, *probe], capture_output=True).returncode


def build_and_use(interpreter: str, folder: Path, **environment: str) -> dict:
    """Build a wheel with `interpreter`, install it into a new environment, and use it there."""
    run(interpreter, "-m", "venv", folder / "env")
    python = folder / "env" / "bin" / "python"
    build = f"--config-settings=build-dir={folder / 'build'}"
    run(python, "-m", "pip", "wheel", ROOT, "--no-deps", "-w", folder, build, **environment)
    (wheel,) = folder.glob("abyssal-*.whl")
    run(python, "-m", "pip", "install", "-c", ROOT / "constraints.txt", wheel)
    version = run(folder / "env" / "bin" / "abyssal", "--version")
    assert version.startswith("abyssal ")
    return json.loads(run(python, "-c", USE))


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_each_python(interpreter, tmp_path):
    if not usable(interpreter):
        pytest.skip(f"{interpreter} with venv is not on this machine")
    assert build_and_use(interpreter, tmp_path) == {
        "images": kernels(),
        "scale": 1.0,
        "generated": [1, 8],
    }


def test_the_compiler_from_pypi(tmp_path):
    """nvcc and cuda.h of the packages that the build asks for where there is no toolkit."""
    run(sys.executable, "-m", "venv", tmp_path / "nvcc")
    run(tmp_path / "nvcc" / "bin" / "pip", "install", find_cuda.NVCC_PACKAGE)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "nvcc")}))
    nvcc = site / "nvidia" / "cu13" / "bin" / "nvcc"
    (tmp_path / "wheel").mkdir()
    used = build_and_use(sys.executable, tmp_path / "wheel", CUDACXX=str(nvcc))
    assert used["images"] == kernels()
