"""Where answers part from transformers' own `generate`, and how near a tie it was there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PROMPTS: Final = (
    "The capital of France is",
    "Once upon a time there was a small dragon who",
    "A recipe for bread needs flour, water and",
    "def add(first, second):\n    return",
    "The three primary colours are",
    "Water boils at a temperature of",
    "My grandmother always told me that",
    "In 1969, the first people who walked on the moon",
    "Dear Sir or Madam,\n\nI am writing to",
    "The best way to learn a language is",
    "for number in range(10):\n    print(",
    "A cat sat on the mat and",
    "Photosynthesis is the process by which",
    "To be or not to be, that is",
    "The quick brown fox jumps over",
    "Yesterday the weather was cold and",
    "An operating system is a program that",
    "1, 1, 2, 3, 5, 8,",
    "The largest planet of the solar system",
    "She opened the door slowly, and behind it",
)


@dataclass
class TorchModel:
    """The model of a folder as transformers has it, on one thread. A context manager."""

    path: Path
    dtype: torch.dtype

    @classmethod
    def of(cls, path: Path) -> TorchModel:
        """In 32 bits."""
        return cls(path, torch.float32)

    def __enter__(self) -> TorchModel:
        logging.disable_progress_bar()  # a bar has a thread, which stays
        self._model: Any = AutoModelForCausalLM.from_pretrained(self.path, dtype=self.dtype).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(self.path, padding_side="left")
        return self

    def __exit__(self, *_: object) -> None:
        del self._model

    def answers(self, prompts: Sequence[list[int]], num_tokens: int) -> list[list[int]]:
        """The likeliest answers, which go on after an end, by one `generate` of all."""
        batch = self._tokenizer.pad({"input_ids": [*prompts]}, return_tensors="pt")
        generated = self._model.generate(
            **batch,
            do_sample=False,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            pad_token_id=0,
        )
        return generated[:, batch["input_ids"].shape[1] :].tolist()

    def partings(self, prompts: Sequence[str], answers: Sequence[list[int]]) -> list[float]:
        """Of the answers that part from `generate`'s: how far the logits of the two tokens are
        apart where they do."""
        starts: list[list[int]] = self._tokenizer(list(prompts))["input_ids"]
        theirs = self.answers(starts, len(answers[0]))
        triples = zip(starts, answers, theirs, strict=True)
        return [self._gap(start, a, b) for start, a, b in triples if a != b]

    def _gap(self, prompt: list[int], ours: list[int], theirs: list[int]) -> float:
        end = next(n for n, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        with torch.inference_mode():
            logits = self._model(torch.tensor([prompt + theirs[:end]])).logits[0, -1].float()
        return float((logits[theirs[end]] - logits[ours[end]]).abs())
