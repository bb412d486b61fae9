"""An OpenAI-compatible chat server in a process of its own, which answers as the offline engine does.

Its base URL says what goes wrong: `/FAULT/AFTER/NAME/v1` does FAULT from request number AFTER on, counted
from 0 for that URL: `none`, `429` (every second request, Retry-After: 0), `500`, `401`, `hang`, `malformed`,
`die` (the process ends), `slow` (every third answer comes after 3 s), or an answer that is none: `empty`,
`null`, `filtered`, `sorry`, `error`, `nochoices`; with a number after it (`empty1`), only that request.
Prints its port, then a line for each request: its path.
"""

import itertools
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from agentcore.lm.offline import answer, count_tokens

numbers: dict[str, Iterator[int]] = defaultdict(itertools.count)
never = threading.Event()


TEXTS: dict[str, tuple[str | None, str]] = {
    "empty": ("", "stop"),
    "null": (None, "stop"),
    "filtered": ("", "content_filter"),
    "sorry": ("The service is temporarily unavailable. Please try again later.", "stop"),
}


def completion(number: int, model: object, text: str | None, reason: str = "stop") -> dict[str, object]:
    message = {"role": "assistant", "content": text}
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "finish_reason": reason, "message": message}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11},
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        number = next(numbers[self.path])
        _, fault, after, *_ = self.path.split("/")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        print(self.path, flush=True)
        if number >= int(after) and self.fault(fault, number, body):
            return
        if number >= int(after) and self.nothing(fault, number, body):
            return
        if fault == "slow" and number % 3 == 0:
            time.sleep(3)
        messages = [(message["role"], message["content"]) for message in body["messages"]]
        system = "".join(text for role, text in messages if role == "system")
        text = answer(system, [message for message in messages if message[0] != "system"])
        asked = sum(count_tokens(content) for _, content in messages)
        answered = count_tokens(text)
        self.reply(
            200,
            {
                "id": f"chatcmpl-{number}",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [
                    {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
                ],
                "usage": {
                    "prompt_tokens": asked,
                    "completion_tokens": answered,
                    "total_tokens": asked + answered,
                },
            },
        )

    def fault(self, fault: str, number: int, body: dict[str, object]) -> bool:
        """Do the fault; False where this request is answered all the same."""
        if fault == "429":
            if number % 2:
                return False
            self.reply(429, {"error": {"message": "slow down", "type": "rate_limit"}}, {"Retry-After": "0"})
        elif fault == "500":
            self.reply(500, {"error": {"message": "out of order", "type": "server_error"}})
        elif fault == "401":
            # Providers do repeat the key that they refuse, and gateways all of a request.
            told = [f"{name}: {value}" for name, value in self.headers.items()]
            told += [f"{name}: {value}" for name, value in body.items() if name != "messages"]
            self.reply(401, {"error": {"message": f"bad key {'; '.join(told)}", "type": "auth"}})
        elif fault == "malformed":
            self.raw(200, b'{"choices": [{"message":', {})
        elif fault == "hang":
            never.wait()
        elif fault == "die":
            os._exit(1)
        else:
            return False
        return True

    def nothing(self, fault: str, number: int, body: dict[str, object]) -> bool:
        """Report success without an answer."""
        kind = fault.rstrip("0123456789")
        if fault != kind and number != int(fault.removeprefix(kind)):
            return False
        if kind in TEXTS:
            content, reason = TEXTS[kind]
            self.reply(200, completion(number, body["model"], content, reason))
        elif kind == "error":
            self.reply(200, {"error": {"message": "upstream failed", "code": 502}})
        elif kind == "nochoices":
            self.reply(200, {**completion(number, body["model"], "", "stop"), "choices": []})
        else:
            return False
        return True

    def reply(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        self.raw(status, json.dumps(content).encode(), headers or {})

    def raw(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # five, the default, resets connections of sixteen clients


if __name__ == "__main__":
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
