"""(b) on torch: eight chats with one system prompt of 1,000 tokens, four turns each.

As `shared_prompt` has it, and measured as the others are (`torch_engine`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scenarios import torch_engine

if TYPE_CHECKING:
    from measure import Report, Settings


def run(settings: Settings) -> Report:
    return torch_engine.report(settings, {"(b)": torch_engine.chats})
