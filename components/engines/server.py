"""The server engine: any OpenAI-compatible server, `vllm serve` first; K completions of a prompt are one request.

Owns what is asked, and finds out what a server can do. Knows nothing of steps, and of the model only its name.

A server draws the K completions of a request from one seed, so here the contract reads "same request, same
completions": `seeding` is "request", and the journal keeps the K together. The server's own chat template and
tokenizer make the token ids, and its special tokens are left out of the text, not banned while sampling.
"""

from __future__ import annotations

import base64
import functools
import math
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Literal

from components.checkpoints import policy_digest, served_names
from components.engines import Completion, Prompt
from components.engines.wire import RefusedRequestError, Wire
from components.errors import EngineError
from components.progress import say
from components.records import digest
from components.settings import Sampling

_ENDED = {"stop", "eos", "eos_token", "end_turn", "stop_sequence"}
_DISPENSABLE = {"seed", "logprobs", "top_logprobs", "repetition_penalty", "min_p"}  # the text is a fair sample without
_PROBE = "One step at a time.\n\n"


class ServerEngine:
    """Asks one model of one server."""

    seeding: Literal["row", "request"] = "request"

    def __init__(
        self, policy: Path, *, url: str, key: str | None = None, concurrency: int = 32, continues: bool = True
    ) -> None:
        self.policy_digest = policy_digest(policy)
        self._wire = Wire(url, key)
        self._pool = ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="server")
        self._refused: set[str] = set()  # arguments that the server does not take
        self._continues = continues
        try:
            self.model = self._model(served_names(policy))
            self._examine()
        except BaseException:
            self.close()
            raise

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """Completions of every prompt: `[P][K]`. A prompt that leaves no room for an answer is cut off at once.

        Raises:
            EngineError: the server refuses a request, or cannot do what it asks.
            TryAgainError: the server stayed busy or away.
        """
        if not self._continues and any(prompt.prefill for prompt in prompts):
            what = "was not asked whether it continues the assistant's turn"
            raise EngineError(self._wire.url, what, "open the engine with continues=True")
        if sampling.top_k and "top_k" in self._refused:
            raise EngineError(self._wire.url, f"does not take top_k = {sampling.top_k}", "set sampling.top_k to 0")
        asked = [self._pool.submit(self._complete, prompt, sampling) for prompt in prompts]
        _, unfinished = wait(asked, return_when=FIRST_EXCEPTION)
        if unfinished:
            for future in unfinished:
                future.cancel()
            raise next(error for future in asked if (error := _error(future)) is not None)
        return [future.result() for future in asked]

    def close(self) -> None:
        """Drop the connections, and whatever is still asked."""
        self._wire.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _complete(self, prompt: Prompt, sampling: Sampling) -> list[Completion]:
        num = len(prompt.seeds)
        if num == 0:
            return []
        if sampling.temperature == 0:  # all alike, and servers refuse to say the same thing twice
            return self._draw(prompt, sampling, 1, 0) * num
        seed = int(digest("server-seed-1", list(prompt.seeds))[:8], 16) >> 2  # some count up from it: leave room
        if num > 1 and "n" in self._refused:
            return [c for i in range(num) for c in self._draw(prompt, sampling, 1, seed + i)]
        return self._draw(prompt, sampling, num, seed)

    def _draw(self, prompt: Prompt, sampling: Sampling, num: int, seed: int) -> list[Completion]:
        body = self._body(_messages(prompt), sampling, num, seed)
        while True:
            try:
                return _completions(self._wire.post("/chat/completions", body), num, self._wire.url)
            except RefusedRequestError as refusal:
                room = refusal.room(body["max_tokens"])
                if room is None:
                    raise self._explained(refusal) from None
                if room == 0:
                    return [Completion("", "length", 0, 0.0)] * num
                body["max_tokens"] = room

    def _body(self, messages: list[dict[str, Any]], sampling: Sampling, num: int, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # Said even when they change nothing: a server may have defaults of its own for the model.
            "top_k": sampling.top_k or -1,
            "repetition_penalty": 1.0,
            "min_p": 0.0,
            "n": num,
            "seed": seed,
            "logprobs": True,
            "top_logprobs": 0,
        }
        if messages[-1]["role"] == "assistant":
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return {name: value for name, value in body.items() if name not in self._refused}

    def _model(self, names: Sequence[str]) -> str:
        """The name by which the server knows the policy.

        Raises:
            EngineError: the server has another model.
        """
        try:
            listed = [entry for entry in self._wire.get("/models").get("data") or [] if entry.get("id")]
        except RefusedRequestError as refusal:
            raise self._explained(refusal) from None
        known = {str(entry.get(field)): str(entry["id"]) for entry in listed for field in ("root", "id")}
        for name in names:
            if name in known:
                return known[name]
        has = ", ".join(str(entry["id"]) for entry in listed) or "no model"
        what = f"serves {has}, not the policy {names[0]!r}"
        raise EngineError(self._wire.url, what, f"for example: vllm serve {names[-1]} --served-model-name {names[0]}")

    def _examine(self) -> None:
        """Find out what the server takes, and that it continues the assistant's turn where it will have to.

        The prompt's length tells, whatever the model says: a turn that is continued gets no tokens of its own around
        its text, one that is closed and opened anew does, and one that is ignored adds nothing at all.
        """
        look = Sampling(temperature=1.0, top_k=0, max_tokens=1)
        if not self._continues:  # whole texts can be had from any server
            self._agree(_messages(Prompt("Name a colour.", ())), look)
            return
        lengths: list[int] = []
        for prefill in ("", _PROBE, _PROBE + _PROBE):
            body_messages = _messages(Prompt("Name a colour.", (), prefill))
            answer = self._agree(body_messages, look)
            if _content(answer["choices"][0]).lstrip().startswith(_PROBE.strip()):
                raise self._unfit("repeats the assistant's turn that it is to continue")
            lengths.append((answer.get("usage") or {}).get("prompt_tokens") or 0)
        if not all(lengths):
            raise self._unfit("counts no prompt_tokens, so it cannot be seen whether it continues the assistant's turn")
        bare, once, twice = lengths
        if once <= bare or twice <= once:
            raise self._unfit("ignores the assistant's turn that it is to continue")
        if (once - bare) - (twice - once) >= 2:
            raise self._unfit("closes the assistant's turn instead of continuing it")

    def _agree(self, messages: list[dict[str, Any]], sampling: Sampling) -> Any:
        """The answer to a first request, once all that the server does not take is left out."""
        while True:
            body = self._body(messages, sampling, 2, 0)
            try:
                answer = self._wire.post("/chat/completions", body)
            except RefusedRequestError as refusal:
                named = refusal.names(body.keys() & (_DISPENSABLE | {"top_k", "n"}))
                if not named:
                    if refusal.names({"continue_final_message", "add_generation_prompt"} & body.keys()):
                        raise self._unfit(f"cannot continue the assistant's turn: {refusal.message}") from None
                    raise self._explained(refusal) from None
                self._leave_out(named)
                continue
            num = len(answer.get("choices") or [])
            if num == 0:
                raise self._unfit("answers without choices")
            if num == 1 and "n" not in self._refused:
                self._leave_out({"n"})
            return answer

    def _leave_out(self, names: set[str]) -> None:
        self._refused |= names
        told = "asks K times instead of once for K" if names == {"n"} else "leaves it out"
        say("server", f"{self._wire.url} does not take {', '.join(sorted(names))}: {told}")

    def _unfit(self, what: str) -> EngineError:
        return EngineError(self._wire.url, what, "use a server that takes continue_final_message, such as vllm serve")

    def _explained(self, refusal: RefusedRequestError) -> EngineError:
        if refusal.status in (401, 403):
            hint = "set STEPFORGE_SERVER_KEY to a key of that server"
        elif refusal.status in (404, 405):
            hint = "STEPFORGE_SERVER_URL names the part before /chat/completions, for example http://localhost:8000/v1"
        else:
            hint = "see what the server can do, and the settings of sampling"
        return EngineError(self._wire.url, f"answers {refusal.status}: {refusal.message}", hint)


def _error(future: Future[Any]) -> BaseException | None:
    return future.exception() if future.done() and not future.cancelled() else None


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    content: Any = prompt.question
    if prompt.images:
        pictures = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in prompt.images]
        content = [*pictures, {"type": "text", "text": prompt.question}]
    messages = [{"role": "user", "content": content}]
    if prompt.prefill:
        messages.append({"role": "assistant", "content": prompt.prefill})
    return messages


@functools.lru_cache(maxsize=256)
def _data_url(image: bytes) -> str:
    kinds = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}
    kind = next((name for start, name in kinds.items() if image.startswith(start)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _completions(answer: dict[str, Any], num: int, url: str) -> list[Completion]:
    """The choices of an answer in their order.

    Tokens are counted by their log-probabilities; a server that gives none tells their sum, which is then shared out
    by length of text. A log-probability that is not told is NaN.
    """
    try:
        return _read(answer, num, url)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"answers what is no chat completion: {error}"
        raise EngineError(url, what, "is it the OpenAI-compatible address of the server?") from error


def _read(answer: dict[str, Any], num: int, url: str) -> list[Completion]:
    choices = sorted(answer.get("choices") or [], key=lambda choice: choice.get("index") or 0)
    if len(choices) != num:
        raise EngineError(url, f"gave {len(choices)} completions instead of {num}", "see the server's limits on n")
    out = []
    shares = _shares([len(_content(choice)) + 1 for choice in choices], answer)
    for choice, share in zip(choices, shares, strict=True):
        message = choice.get("message") or {}
        if message.get("reasoning") or message.get("reasoning_content"):
            raise EngineError(url, "takes the reasoning out of the text", "serve without --reasoning-parser")
        tokens = (choice.get("logprobs") or {}).get("content") or []
        told = [token.get("logprob") for token in tokens]
        logprob = round(math.fsum(told), 6) if told and None not in told else math.nan
        ended = choice.get("finish_reason") in _ENDED
        out.append(Completion(_content(choice), "stop" if ended else "length", len(tokens) or share, logprob))
    return out


def _content(choice: dict[str, Any]) -> str:
    content = (choice.get("message") or {}).get("content") or ""
    if isinstance(content, list):  # parts, as in a request
        content = "".join(str(part.get("text") or "") for part in content)
    return str(content).encode(errors="replace").decode()  # half a character cannot be kept


def _shares(lengths: list[int], answer: dict[str, Any]) -> list[int]:
    """The answer's generated tokens, shared out by length of text; at least one each."""
    total = (answer.get("usage") or {}).get("completion_tokens") or sum(lengths)
    bounds = [round(total * part / sum(lengths)) for part in _running(lengths)]
    return [max(1, b - a) for a, b in zip([0, *bounds], bounds, strict=False)]


def _running(lengths: list[int]) -> list[int]:
    return [sum(lengths[: i + 1]) for i in range(len(lengths))]
