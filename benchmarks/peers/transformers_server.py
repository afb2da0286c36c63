"""transformers behind OpenAI's chat API, as small as it can be: run by the Python of that environment.

Requests that come within a few milliseconds are one static batch (``--method plain``); prompt lookup and dflash 0.1.0
answer one at a time. The answer is sent whole, so only rates and acceptance mean something, not latencies.
"""

import argparse
import json
import queue
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

_GATHER_S = 0.03
_MOST = 32


class Model:
    """Answers batches; ``passes`` of the target are counted, to tell what was accepted."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.method = args.method
        self.tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.eos_token
        self.target = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).eval()
        self.passes = 0
        self.target.register_forward_pre_hook(self._count)
        if self.method == "dflash":
            from dflash.model import DFlashDraftModel

            self.draft = DFlashDraftModel.from_pretrained(args.draft, dtype=torch.bfloat16).eval()

    def _count(self, *_: object) -> None:
        self.passes += 1

    @torch.inference_mode()
    def answer(self, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Texts and usage of requests that ask for the same length."""
        chats = [
            self.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, tokenize=False)
            for body in bodies
        ]
        asked = self.tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False)
        most = bodies[0]["max_tokens"]
        eos = None if bodies[0].get("ignore_eos") else self.tokenizer.eos_token_id
        self.passes = 0
        if self.method == "dflash":
            from dflash.model import dflash_generate

            stop = [eos] if eos is not None else None
            found = dflash_generate(self.draft, self.target, asked["input_ids"], most, stop)
        else:
            config = self.target.generation_config
            config.eos_token_id, config.pad_token_id = eos, self.tokenizer.pad_token_id
            lookup = {"prompt_lookup_num_tokens": 7} if self.method == "lookup" else {}
            found = self.target.generate(**asked, do_sample=False, max_new_tokens=most, **lookup)
        new = found[:, asked["input_ids"].shape[1] :]
        return [self._told(ids, mask) for ids, mask in zip(new, asked["attention_mask"], strict=True)]

    def _told(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        usage: dict[str, Any] = {"prompt_tokens": int(mask.sum()), "completion_tokens": len(ids)}
        if self.method != "plain":  # each pass gives one token that was not drafted
            usage["completion_tokens_details"] = {"accepted_prediction_tokens": len(ids) - self.passes}
        return {"text": self.tokenizer.decode(ids, skip_special_tokens=True), "usage": usage}


class Batches:
    """One thread that answers what came together."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.asked: queue.Queue[tuple[dict[str, Any], queue.Queue[dict[str, Any]]]] = queue.Queue()
        threading.Thread(target=self._run, daemon=True).start()

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        mailbox: queue.Queue[dict[str, Any]] = queue.Queue()
        self.asked.put((body, mailbox))
        return mailbox.get()

    def _run(self) -> None:
        while True:
            batch = [self.asked.get()]
            if self.model.method == "plain":
                time.sleep(_GATHER_S)
                while len(batch) < _MOST and not self.asked.empty():
                    batch.append(self.asked.get())
            for (_, mailbox), told in zip(batch, self.model.answer([b for b, _ in batch]), strict=True):
                mailbox.put(told)


def handler(batches: Batches) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/v1/models":
                return self.send_error(404)
            return self._send("application/json", json.dumps({"data": [{"id": "target"}]}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told = batches.ask(body)
            chunks = [
                {"choices": [{"delta": {"content": told["text"]}}]},
                {"choices": [], "usage": told["usage"]},
            ]
            lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
            return self._send("text/event-stream", "".join([*lines, "data: [DONE]\n\n"]))

        def _send(self, kind: str, text: str) -> None:
            content = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--method", choices=("plain", "lookup", "dflash"), required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", args.port), handler(Batches(Model(args))))
    server.serve_forever()


if __name__ == "__main__":
    main()
