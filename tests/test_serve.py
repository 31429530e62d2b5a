"""Against a real server: `transformers serve`."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from conftest import make_causal
from tiebreak.judges import Match
from tiebreak.judges.llm import Llm
from tiebreak.recipe import ApiSampler, LlmJudge
from tiebreak.records import Message, Prompt
from tiebreak.samplers.api import Api
from tiebreak.samplers.build import build_chat

pytest.importorskip("uvicorn", reason="transformers[serving] is not installed")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[dict[str, object]]:
    """Serve a model whose generation settings say that it samples; give the endpoint's keys."""
    model = make_causal(tmp_path / "model", max_position_embeddings=4096)
    settings = json.loads((model / "generation_config.json").read_text())
    # Without do_sample the server is greedy at any temperature; a model that learned nothing repeats the prompt's last sign.
    settings |= {"do_sample": True, "suppress_tokens": AutoTokenizer.from_pretrained(model).all_special_ids}
    (model / "generation_config.json").write_text(json.dumps(settings))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = shutil.which("transformers", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program
    log = tmp_path / "serve.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [program, "serve", str(model), "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 45
        while True:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.2)
        yield {"provider": "custom", "base_url": f"http://127.0.0.1:{port}/v1", "model": str(model), "concurrency": 1}
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def test_sampler_and_judge_on_a_live_server(served: dict[str, object]) -> None:
    prompt = Prompt.of((Message(role="user", content="Write a title for a video about baking bread."),), "train")
    sampler = Api(ApiSampler.model_validate({"type": "api", "n": 2, "max_new_tokens": 16, "temperature": 1.0, **served}), seed=1)
    first, second = sampler.sample([prompt])
    assert sampler.failures == []
    assert first.text
    assert second.text
    assert first.text != second.text
    assert {first.draw, second.draw} == {0, 1}
    assert all(0 < (draw.tokens or 0) <= 16 for draw in (first, second))

    section = LlmJudge.model_validate({"type": "llm", "criteria": "short", "max_new_tokens": 24, **served})
    judge = Llm(section, "Short.", seed=1, chat=build_chat(section, "judges.llm"))
    comparisons = list(judge.compare([Match(prompt, first, second), Match(prompt, second, first)]))
    assert {(c.first, c.second) for c in comparisons} == {(first.id, second.id), (second.id, first.id)}
    assert all(c.raw for c in comparisons)
    assert all((c.winner is None) != (c.error is None) for c in comparisons)
