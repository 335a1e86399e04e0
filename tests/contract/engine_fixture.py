"""What the engines are asked in tests, and an imitation of an OpenAI-compatible server that plays back a script."""

import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from components.engines import Prompt
from components.records import write_json
from components.settings import Sampling
from tests.conftest import picture

QUESTIONS = ("bars : most minus least ?", "cards : total of red and blue ?", "labels : red plus blue times green ?")
PREFILL = "red: 3\n\n"
SCRIPT = {
    question: [f"{PREFILL}blue: 5\n\n{i} + 5 = {i + 5}\n\nanswer: {i + 5}" for i in range(5)] for question in QUESTIONS
}
SAMPLING = Sampling(temperature=1.0, top_k=50, max_tokens=12)
GREEDY = Sampling(temperature=0.0, top_k=0, max_tokens=12)
SERVED = "organisation/model"


def write_script(folder, script=SCRIPT, digest="scripted-policy"):
    folder.mkdir(exist_ok=True)
    write_json(folder / "script.json", script)
    write_json(folder / "policy.json", {"digest": digest})
    return folder


def write_served(folder, model=SERVED, digest="served-policy"):
    folder.mkdir(exist_ok=True)
    write_json(folder / "policy.json", {"path_or_id": None, "served": model, "revision": "1", "digest": digest})
    return folder


def sees(engine):
    return not engine.kind.endswith("qwen2")


def prompts_for(engine, *, seeds=(1, 2, 3), prefill=""):
    """Prompts of several lengths, each with a picture of its own where the engine takes any."""
    shown = [(picture(i),) if sees(engine) else () for i in range(len(QUESTIONS))]
    return [Prompt(q, images, prefill, tuple(seeds)) for q, images in zip(QUESTIONS, shown, strict=True)]


def flat(rows):
    return [completion for row in rows for completion in row]


def texts(rows):
    return [[completion.text for completion in row] for row in rows]


class ImitatedServer:
    """Speaks the protocol on a port of its own; its faults can be switched on.

    A text is chosen by its seed (which counts up within a request) and by the pictures; one word is one token.
    """

    def __init__(self):
        self.requests = []  # bodies of all that was asked
        self.headers = []
        self.refused = ()  # arguments that are answered with 400
        self.takes_n = True
        self.continues = "yes"  # or: ignores, closes, repeats
        self.counts = True  # usage
        self.failures = []  # statuses, or "drop", of the next answers to POST
        self.retry_after = None
        self.finish_reasons = []  # of the next answers' first choice
        self.max_context = 4096
        self.delay_seconds = 0.0
        self.models = [{"id": SERVED, "root": SERVED}]
        self.key = None
        self.script = SCRIPT
        self.together = self.most_together = 0
        self.num_connections = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.root = f"http://127.0.0.1:{self._http.server_port}"
        self.url = f"{self.root}/v1"

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()

    @property
    def asked(self):
        """The requests after those that examined the server."""
        return [body for body in self.requests if "colour" not in json.dumps(body["messages"][0])]

    def answer(self, body):
        """(status, answer) to a chat request."""
        for name in self.refused:
            if name in body:
                return 400, {"error": {"message": f"Unrecognized request argument supplied: {name}", "param": None}}
        last = body["messages"][-1]
        content = body["messages"][0]["content"]
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        question = "".join(part["text"] for part in parts if part["type"] == "text")
        shown = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        prefill = last["content"] if last["role"] == "assistant" else ""
        is_continued = bool(body.get("continue_final_message")) and not body.get("add_generation_prompt", True)
        length = len(question.split()) + 4 * len(shown) + 3
        if prefill and self.continues != "ignores":
            closed = 0 if is_continued and self.continues != "closes" else 5
            length += len(re.findall(r"\n\n|\S+", prefill)) + closed
        if length >= self.max_context:
            what = f"This model's maximum context length is {self.max_context} tokens. However, your prompt contains"
            return 400, {"error": {"message": f"{what} {length} input tokens.", "code": 400}}
        if body["max_tokens"] > self.max_context:
            what = f"max_tokens={body['max_tokens']} cannot be greater than max_model_len={self.max_context}."
            return 400, {"error": {"message": what, "code": 400}}
        start = prefill if self.continues in ("yes", "repeats") else ""
        found = [t for t in self.script.get(question, ["red blue green"]) if t.startswith(start)] or ["red blue green"]
        cut = 0 if self.continues == "repeats" else len(start)
        choices = []
        for i in range(body.get("n", 1) if self.takes_n else 1):
            drawn = hashlib.sha256(json.dumps([body.get("seed", 0) + i, shown]).encode()).digest()[0]
            pick = 0 if body["temperature"] == 0 else drawn
            words = found[pick % len(found)][cut:].split(" ")
            kept = words[: min(body["max_tokens"], self.max_context - length)]
            if self.continues == "repeats" and prefill:
                kept = [prefill + kept[0]]
            choice = {"index": i, "message": {"role": "assistant", "content": " ".join(kept)}}
            choice["finish_reason"] = "stop" if len(kept) == len(words) else "length"
            if body.get("logprobs"):
                choice["logprobs"] = {"content": [{"token": word, "logprob": -0.5} for word in kept]}
            choices.append(choice)
        with self._lock:
            if self.finish_reasons:
                choices[0]["finish_reason"] = self.finish_reasons.pop(0)
        usage = {"prompt_tokens": length, "completion_tokens": sum(len(c["message"]["content"].split(" ")) for c in choices)}
        return 200, {"choices": choices[::-1], "usage": usage if self.counts else None}

    def _handler(imitation):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body are written apart

            def setup(self):
                super().setup()
                with imitation._lock:
                    imitation.num_connections += 1

            def log_message(self, *_):
                pass

            def do_GET(self):
                if self._is_let_in():
                    self._send(*((200, {"data": imitation.models}) if self.path == "/v1/models" else (404, {})))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with imitation._lock:
                    imitation.requests.append(body)
                    imitation.headers.append(dict(self.headers))
                    imitation.together += 1
                    imitation.most_together = max(imitation.most_together, imitation.together)
                    failure = imitation.failures.pop(0) if imitation.failures else None
                time.sleep(imitation.delay_seconds)
                with imitation._lock:
                    imitation.together -= 1
                if failure == "drop":
                    self.close_connection = True
                    return
                if failure == "nonsense":
                    self._send(200, None, b"<html>welcome</html>")
                elif failure is not None:
                    self._send(failure, {"error": {"message": "too busy"}})
                elif self._is_let_in():
                    self._send(*imitation.answer(body))

            def _is_let_in(self):
                if imitation.key is None or self.headers.get("Authorization") == f"Bearer {imitation.key}":
                    return True
                self._send(401, {"error": {"message": "no such key"}})
                return False

            def _send(self, status, content, raw=None):
                data = raw if raw is not None else json.dumps(content).encode()
                self.send_response(status)
                if status != 200 and imitation.retry_after is not None:
                    self.send_header("Retry-After", imitation.retry_after)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        return Handler
