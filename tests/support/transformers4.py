"""An environment with transformers 4.57, for tests that load exports with it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

LOGITS = """
import sys, torch, transformers
assert transformers.__version__.startswith("4.57."), transformers.__version__
ids, *folders = sys.argv[1:]
for folder in folders:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.save(model(torch.load(ids)).logits, f"{folder}/logits.pt")
"""
ANSWER = """
import json, sys, torch, transformers
folder, messages = sys.argv[1], json.loads(sys.argv[2])
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModelForCausalLM.from_pretrained(folder)
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
ids = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=60)[0].tolist()
print(json.dumps([prompt, ids[len(prompt):], tokenizer.decode(ids[len(prompt):], skip_special_tokens=True)]))
"""


class Transformers4:
    """Runs transformers 4.57 in a process of its own."""

    def __init__(self, python: Path, scratch: Path) -> None:
        self._python, self._scratch = python, scratch

    def logits(self, ids: torch.Tensor, *folders: Path) -> list[torch.Tensor]:
        """Logits of the models in folders."""
        torch.save(ids, self._scratch / "ids.pt")
        self._run(LOGITS, str(self._scratch / "ids.pt"), *map(str, folders))
        return [torch.load(folder / "logits.pt") for folder in folders]

    def answer(self, folder: Path, messages: Any) -> tuple[list[int], list[int], str]:
        """Ids of the prompt, and ids and text of the greedy answer to it."""
        prompt, ids, text = json.loads(self._run(ANSWER, str(folder), json.dumps(messages)).splitlines()[-1])
        return prompt, ids, text

    def _run(self, code: str, *arguments: str) -> str:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [self._python, "-c", code, *arguments], capture_output=True, text=True, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def transformers4(tmp_path_factory: pytest.TempPathFactory) -> Transformers4:
    """Transformers 4.57 beside the installed torch; pip makes its environment once, in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "posttrain" / "transformers-4.57"
    python = cache / "bin" / "python"
    if not (cache / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", cache], check=True)
        pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"torch=={torch.__version__.partition('+')[0]}", "transformers==4.57.*"], check=True)
        (cache / "complete").touch()
    return Transformers4(python, tmp_path_factory.mktemp("transformers4"))
