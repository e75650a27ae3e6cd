"""Where answers part from transformers' own `generate`, and how near a tie it was there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

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
        self._model: Any = AutoModelForCausalLM.from_pretrained(self.path, dtype=self.dtype).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(self.path)
        return self

    def __exit__(self, *_: object) -> None:
        del self._model

    def answer(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """The likeliest answer, which goes on after an end."""
        generated = self._model.generate(
            torch.tensor([list(prompt)]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            pad_token_id=0,
        )
        return generated[0, len(prompt) :].tolist()

    def partings(self, prompts: Sequence[str], answers: Sequence[list[int]]) -> list[float]:
        """Of the answers that part from `generate`'s: how far the logits of the two tokens are
        apart where they do."""
        gaps = []
        for prompt, ours in zip(prompts, answers, strict=True):
            start: list[int] = self._tokenizer(prompt)["input_ids"]
            theirs = self.answer(start, len(ours))
            if ours != theirs:
                gaps.append(self._gap(start, ours, theirs))
        return gaps

    def _gap(self, prompt: list[int], ours: list[int], theirs: list[int]) -> float:
        end = next(n for n, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        with torch.inference_mode():
            logits = self._model(torch.tensor([prompt + theirs[:end]])).logits[0, -1].float()
        return float((logits[theirs[end]] - logits[ours[end]]).abs())
