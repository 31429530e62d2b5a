"""Answers that are there already, in a file of AlpacaEval's, of MT-bench's, or of rows with prompt and completion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from tiebreak.exchange.formats import read_outputs
from tiebreak.exchange.mt_bench import read_mt_bench_answers
from tiebreak.judges.tables import read_table
from tiebreak.records import Completion, Prompt

MT_BENCH = {"question_id", "choices"}


def check(path: Path) -> None:
    """Read a file of answers as far as that takes no prompts. Raises InputError."""
    if not _is_mt_bench(path):
        read_outputs(path)


class Answered:
    """A sampler that draws nothing: AlpacaEval's answers are found by the text of their prompt, MT-bench's by its question."""

    def __init__(self, label: str, path: Path, prompts: Iterable[Prompt]) -> None:
        """`path` may answer other prompts too. Raises InputError."""
        self.label, self.failures = label, list[str]()
        self._draws: dict[str, list[Completion]] = {}
        if _is_mt_bench(path):
            for draw in read_mt_bench_answers(path, prompts, others=True):
                self._draws.setdefault(draw.prompt_id, []).append(draw)
        else:
            asked, completions, _ = read_outputs(path)
            texts, by_text = {prompt.id: prompt.text for prompt in asked}, dict[str, list[Completion]]()
            for draw in completions:
                by_text.setdefault(texts[draw.prompt_id], []).append(draw)
            self._draws = {prompt.id: by_text[prompt.text] for prompt in prompts if prompt.text in by_text}
        self.n = max(map(len, self._draws.values()), default=1)

    def sample(self, prompts: Iterable[Prompt], have: frozenset[tuple[str, int]] = frozenset()) -> Iterator[Completion]:
        """Yield the answers to each prompt that has one."""
        for prompt in prompts:
            draws = self._draws.get(prompt.id, [])
            if not draws:
                self.failures.append(f"no answer to prompt {prompt.id} in the file")
            for at, draw in enumerate(draws):
                if (prompt.id, at) not in have:
                    sampling = {"turns": said} if (said := draw.sampling.get("turns")) else {}
                    yield Completion.of(
                        prompt.id, draw.text, sampler=self.label, sampling=sampling, draw=at, finish_reason="given"
                    )


def _is_mt_bench(path: Path) -> bool:
    return read_table(path)[0].cells.keys() >= MT_BENCH
