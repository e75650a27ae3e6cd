"""The shortest script that asks the daemon: `ask.py SOCKET MODEL QUESTION`.

Prints when the first token came (monotonic clock). A process of its own, because its start is part
of what is measured.
"""

from __future__ import annotations

import sys
import time

from openclawctl import Client

socket_path, model, question = sys.argv[1:]
messages = [{"role": "user", "content": question}]
with (
    Client(socket_path) as client,
    client.chat(messages, model=model, max_tokens=1, temperature=0, stream=True) as stream,
):
    next(stream)
    print(time.monotonic())
    list(stream)  # to its end: leaving it would count as cancelled
