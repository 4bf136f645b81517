"""Tiny reward models, judges and scorers, all made here."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForSequenceClassification

from rao_kernels.data import Message
from rao_kernels.rewards import Candidate, Unanswered
from tests import seeds
from tests.train.tiny import tiny_model, tiny_tokenizer


def tiny_reward_model(seed: int = 0) -> LlamaForSequenceClassification:
    seeds.seed_torch(seed)
    config = tiny_model(seed).config
    config.num_labels = 1
    return LlamaForSequenceClassification(config)


def save_tiny_reward_model(folder: Path, seed: int = 0, *, chat: bool = True) -> Path:
    tiny_reward_model(seed).save_pretrained(folder)
    tiny_tokenizer(chat=chat).save_pretrained(folder)
    return folder


def candidates(texts: Sequence[str], **columns: Any) -> list[Candidate]:
    """Candidates with a prompt of its own each; the records are called rows:0, rows:1, ..."""
    return [
        Candidate(f"say {text[::-1]}", text, f"rows:{number}", columns)
        for number, text in enumerate(texts)
    ]


class StubJudge:
    """Answers by a function of the question, and keeps the questions."""

    def __init__(self, answer: Callable[[str], str | Unanswered]) -> None:
        self._answer, self.asked = answer, []  # type: ignore[var-annotated]

    def describe(self) -> dict[str, Any]:
        return {"model": "stub"}

    def answer(self, chats: Sequence[list[Message]]) -> list[str | Unanswered]:
        self.asked += [chat[-1]["content"] for chat in chats]
        return [self._answer(chat[-1]["content"]) for chat in chats]


@contextmanager
def endpoint(
    reply: Callable[[dict[str, Any]], tuple[int, str | list[dict[str, Any]] | None]],
) -> Iterator[tuple[str, list[Any]]]:
    """Serve /v1/chat/completions; yield its URL and the requests it got.

    reply: from a request to an HTTP status and a text, or the choices of the response.
    """
    requests: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append({**asked, "key": self.headers["Authorization"]})
            status, text = reply(asked)
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            body = {"id": "1", "object": "chat.completion", "created": 0, "model": asked["model"]}
            choices = [choice] if isinstance(text, str) else text
            found: dict[str, Any] = {**body, "choices": choices}
            content = json.dumps(found if status == 200 else {"error": {"message": text}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()


def last_token_rewards(model: Any, sequences: Sequence[Sequence[int]]) -> list[float]:
    """The head on the hidden state of each sequence's last token, one sequence at a time."""
    found = []
    for ids in sequences:
        with torch.no_grad():
            hidden = model.model(torch.tensor([list(ids)])).last_hidden_state[0, -1]
            found.append(float(hidden.double() @ model.score.weight[0].double()))
    return found
