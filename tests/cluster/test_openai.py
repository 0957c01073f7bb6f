# SPDX-License-Identifier: Apache-2.0
"""The OpenAI door, asked by OpenAI's own Python client over a real loopback connection."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from cluster.errors import HostUnavailable
from cluster.gateway.errors import TooManyRequests
from cluster.hosting.errors import HostStopping
from cluster.hosting.messages import ChatTurn, render_turns

MODEL = "notes-research"
CHAT = [{"role": "user", "content": "Say hello."}]


def _client(town: Any, who: str) -> openai.OpenAI:
    plain = httpx.Client(trust_env=False)
    return openai.OpenAI(
        base_url=f"{town.url}/v1", api_key=town.keys.get(who, who), max_retries=0, http_client=plain
    )


@pytest.fixture
def client(town: Any) -> Iterator[openai.OpenAI]:
    """OpenAI's client with the developer's key."""
    with _client(town, "dev") as made:
        yield made


def test_models_are_the_callers_deployments(town: Any, client: openai.OpenAI) -> None:
    """A deployment of one's tenant is a model; other tenants and owners see none of it as theirs."""
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "apps"
    for who in ("eve", "ada", "operator"):
        with _client(town, who) as other:
            assert list(other.models.list()) == []
            with pytest.raises(openai.NotFoundError):
                other.models.retrieve(MODEL)


def test_chat_answers_with_usage_and_marketplace(town: Any, client: openai.OpenAI) -> None:
    """A whole chat answer carries the text, the host's token counts and which composition computed it."""
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=CHAT, seed=3, stop=["END"])
    answer = raw.parse()
    assert answer.choices[0].message.content == "Hello there."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 3)
    ours = answer.model_extra["marketplace"]
    admission, asked = town.hosts.asked[0]
    assert ours["request_id"] == admission.request_id == raw.headers["X-Marketplace-Request"]
    assert ours["segments"][0]["experts"] == {"public": 3_000_000}
    assert raw.headers["X-Marketplace-Composition"] == admission.composition_digest
    assert raw.headers["X-Marketplace-Epoch"] == str(admission.epoch)
    assert asked.turns == (ChatTurn(role="user", content="Say hello."),)
    assert (asked.seed, asked.stop, asked.max_tokens) == (3, ("END",), 64)
    assert admission.tenant == "apps"


def test_completion_honours_its_parameters(town: Any, client: openai.OpenAI) -> None:
    """Every offered parameter reaches the host as it was sent, and n choices come back."""
    answer = client.completions.create(
        model=MODEL, prompt="Once", max_tokens=2, n=2, temperature=0.5, top_p=0.9, logprobs=1, seed=-4
    )
    _, asked = town.hosts.asked[0]
    assert [choice.text for choice in answer.choices] == ["Hello there", "Hello there"]
    assert (asked.prompt, asked.max_tokens, asked.n, asked.seed) == ("Once", 2, 2, -4)
    assert (asked.temperature, asked.top_p, asked.logprobs) == (0.5, 0.9, 1)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4


def test_completion_takes_tokens(town: Any, client: openai.OpenAI) -> None:
    """A prompt may be tokens; a list of one prompt is that prompt."""
    client.completions.create(model=MODEL, prompt=[1, 2, 3])
    client.completions.create(model=MODEL, prompt=["one"])
    assert town.hosts.asked[0][1].prompt_token_ids == (1, 2, 3)
    assert town.hosts.asked[1][1].prompt == "one"
    assert town.hosts.asked[0][1].max_tokens == 16


def test_stream_is_incremental_and_ends_with_our_account(client: openai.OpenAI) -> None:
    """Text comes piece by piece; the last event with a choice carries the marketplace's account."""
    events = list(client.chat.completions.create(model=MODEL, messages=CHAT, stream=True))
    texts = [event.choices[0].delta.content for event in events]
    assert [text for text in texts if text] == ["Hello", " there", "."]
    assert events[0].choices[0].delta.role == "assistant"
    assert events[-1].choices[0].finish_reason == "stop"
    assert events[-1].model_extra["marketplace"]["segments"][0]["to_token"] == 3
    assert all("marketplace" not in (event.model_extra or {}) for event in events[:-1])


def test_stream_reports_usage_when_asked(client: openai.OpenAI) -> None:
    """With include_usage the last event has no choices, the usage and the account."""
    options = {"include_usage": True}
    events = list(client.completions.create(model=MODEL, prompt="x", stream=True, stream_options=options))
    assert events[-1].choices == []
    assert events[-1].usage is not None
    assert events[-1].usage.total_tokens == 10
    assert events[-1].model_extra["marketplace"]["request_id"]
    assert events[-2].choices[0].finish_reason == "stop"


def test_streams_of_several_choices_are_kept_apart(client: openai.OpenAI) -> None:
    """Events name their choice, and every choice finishes once."""
    events = list(client.completions.create(model=MODEL, prompt="x", n=3, stream=True))
    for index in range(3):
        mine = [event.choices[0] for event in events if event.choices[0].index == index]
        assert "".join(choice.text for choice in mine) == "Hello there."
        assert [choice.finish_reason for choice in mine].count("stop") == 1


def _until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_leaving_a_stream_cancels_the_generation(town: Any, client: openai.OpenAI) -> None:
    """A client that hangs up in the middle ends the host's generation; nothing runs on."""
    town.hosts.words = tuple("abcdefghijklmnopqrstuvwxyz")
    town.hosts.pause_s = 0.05
    stream = client.completions.create(model=MODEL, prompt="x", max_tokens=26, stream=True)
    next(iter(stream))
    stream.close()
    assert _until(lambda: town.hosts.closed == 1)
    assert town.hosts.finished == 0


def test_leaving_a_whole_answer_cancels_the_generation(town: Any) -> None:
    """A client that gives up waiting for a whole answer ends the generation too."""
    town.hosts.words = tuple("abcdefghijklmnopqrstuvwxyz")
    town.hosts.pause_s = 0.05
    body = {"model": MODEL, "prompt": "x", "max_tokens": 26}
    headers = {"Authorization": f"Bearer {town.keys['dev']}"}
    with pytest.raises(httpx.ReadTimeout), httpx.Client(trust_env=False, timeout=0.4) as impatient:
        impatient.post(f"{town.url}/v1/completions", json=body, headers=headers)
    assert _until(lambda: town.hosts.closed == 1)
    assert town.hosts.finished == 0


def test_failure_in_a_stream_is_an_error_event(town: Any, client: openai.OpenAI) -> None:
    """What goes wrong after the first token reaches the client as an error, without inner text."""
    town.hosts.fails, town.hosts.fails_after = RuntimeError("secret inner text"), 1
    with pytest.raises(openai.APIError) as caught:
        list(client.completions.create(model=MODEL, prompt="x", stream=True))
    assert "secret inner text" not in str(caught.value)
    assert caught.value.code == "generation_failed"


@pytest.mark.parametrize(
    ("raised", "status", "kind"),
    [
        (HostUnavailable("No host runs. Ask again."), 503, openai.InternalServerError),
        (TooManyRequests("Busy. Wait.", retry_after_s=3), 429, openai.RateLimitError),
        (RuntimeError("inner"), 502, openai.InternalServerError),
    ],
)
def test_hosts_refusals_become_statuses(
    town: Any, client: openai.OpenAI, raised: Exception, status: int, kind: type[openai.APIStatusError]
) -> None:
    """A host that refuses before its first token becomes an HTTP status, streamed or not."""
    town.hosts.fails = raised
    for stream in (False, True):
        with pytest.raises(kind) as caught:
            client.completions.create(model=MODEL, prompt="x", stream=stream)
        assert caught.value.status_code == status
        assert "inner" not in caught.value.message
    if status == 429:
        assert caught.value.response.headers["Retry-After"] == "3"


def test_places_are_bounded_and_given_back(found_town: Any) -> None:
    """With one place a second request is told to wait; afterwards the place is free again."""
    town = found_town(max_generations=1)
    town.hosts.words, town.hosts.pause_s = tuple("abcdefgh"), 0.05
    with _client(town, "dev") as client:
        stream = client.completions.create(model=MODEL, prompt="x", stream=True)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model=MODEL, prompt="x")
        assert caught.value.response.headers["Retry-After"] == "1"
        list(stream)
        town.hosts.words = ("a",)
        assert client.completions.create(model=MODEL, prompt="x").choices[0].text == "a"


def test_unknown_key_and_foreign_model(town: Any) -> None:
    """A stranger is 401; a model that is not the caller's is 404, as if it did not exist."""
    with _client(town, "mk_not-a-real-key") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.completions.create(model=MODEL, prompt="x")
    for who, model in (("dev", "nowhere"), ("eve", MODEL), ("ada", MODEL)):
        with _client(town, who) as other, pytest.raises(openai.NotFoundError) as caught:
            other.completions.create(model=model, prompt="x")
        assert caught.value.code == "unknown_deployment"
    assert town.hosts.asked == []


def test_spent_budget_is_refused_before_anything_runs(town: Any, client: openai.OpenAI) -> None:
    """Without budget the answer is 402 and the host is not asked."""
    town.put("operator", "/ledger/budgets/apps", limit_micro=0)
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model=MODEL, prompt="x")
    assert caught.value.status_code == 402
    assert caught.value.code == "budget_exceeded"
    assert town.hosts.asked == []


def test_hold_of_a_request_that_never_began_is_given_back(town: Any, client: openai.OpenAI) -> None:
    """A host that refuses at once costs no budget: the hold is gone, not left to expire."""
    town.hosts.fails = HostUnavailable("No host runs. Ask again.")
    with pytest.raises(openai.InternalServerError):
        client.completions.create(model=MODEL, prompt="x")
    (budget,) = town.get("dev", "/ledger/budgets")["items"]
    assert budget["held_micro"] == 0
    town.hosts.fails = None
    client.completions.create(model=MODEL, prompt="x")
    (budget,) = town.get("dev", "/ledger/budgets")["items"]
    assert budget["held_micro"] > 0


@pytest.mark.parametrize("fails", [HostStopping("Ending."), RuntimeError("fault")])
def test_hold_of_a_request_that_may_have_begun_stays_until_its_host_says_so(
    town: Any, client: openai.OpenAI, fails: Exception
) -> None:
    """Tokens may be journaled and not yet booked: whoever leaves at once cannot spend their money twice."""
    town.hosts.fails = fails
    with pytest.raises(openai.InternalServerError):
        client.completions.create(model=MODEL, prompt="x")
    (budget,) = town.get("dev", "/ledger/budgets")["items"]
    assert budget["held_micro"] > 0


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"best_of": 3}, "best_of"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"suffix": "end"}, "suffix"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"max_tokens": 65}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 99}, "n"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(town: Any, changes: dict[str, Any], param: str) -> None:
    """A parameter that would change the answer and is not offered is a 400 that names it."""
    body = {"model": MODEL, "prompt": "x"} | changes
    headers = {"Authorization": f"Bearer {town.keys['dev']}"}
    answer = town.http.post("/v1/completions", json=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert town.hosts.asked == []


def test_messages_that_say_more_than_their_text_are_refused(town: Any, client: openai.OpenAI) -> None:
    """A call of a tool in a conversation's past would go unseen; one that is empty says nothing."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    said: Any = {"role": "assistant", "content": "", "tool_calls": [call]}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}, said])
    assert caught.value.param == "messages.tool_calls"
    assert town.hosts.asked == []
    said = {"role": "assistant", "content": "y", "tool_calls": [], "refusal": None}
    client.chat.completions.create(model=MODEL, messages=[said])


def test_what_asks_for_nothing_is_taken(town: Any, client: openai.OpenAI) -> None:
    """Parameters that ask for nothing, or only label a request, are no reason to refuse."""
    client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        frequency_penalty=0,
        presence_penalty=0.0,
        response_format={"type": "text"},
        user="someone",
        max_completion_tokens=5,
        store=False,
    )
    assert town.hosts.asked[0][1].max_tokens == 5


def test_prompts_are_kept_nowhere(town: Any, client: openai.OpenAI) -> None:
    """A canary in prompt and answer is found in no file of the installation, also when the host fails."""
    canary = "kiwi-canary-5512"
    town.hosts.words = (canary,)
    client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": canary}])
    town.hosts.fails = RuntimeError(canary)
    with pytest.raises(openai.APIError):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": canary}])
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt=canary, extra_body={"stop": [canary] * 17})
    assert canary not in caught.value.message
    for path in town.home.root.rglob("*"):
        assert not path.is_file() or canary.encode() not in path.read_bytes(), path


def test_several_prompts_are_answered_as_one_with_their_choices_in_order(
    town: Any, client: openai.OpenAI
) -> None:
    """Choices of the second prompt come after those of the first; usage is the sum; each has an admission."""
    raw = client.completions.with_raw_response.create(model=MODEL, prompt=["a", "b", "c"], n=2)
    answer = raw.parse()
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert {choice.text for choice in answer.choices} == {"Hello there."}
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (21, 18)
    ids = [admission.request_id for admission, _ in town.hosts.asked]
    assert raw.headers["X-Marketplace-Request"].split(",") == ids
    assert [part["request_id"] for part in answer.model_extra["marketplace"]["prompts"]] == ids
    assert [asked.prompt for _, asked in town.hosts.asked] == ["a", "b", "c"]
    events = list(client.completions.create(model=MODEL, prompt=[[1], [2]], stream=True))
    for index in range(2):
        assert "".join(e.choices[0].text for e in events if e.choices[0].index == index) == "Hello there."
    assert "prompts" in events[-1].model_extra["marketplace"]


def test_one_refused_prompt_of_several_ends_the_others_and_holds_nothing(
    town: Any, client: openai.OpenAI
) -> None:
    """A list is answered whole or not at all."""
    town.hosts.fails = HostUnavailable("No host runs. Ask again.")
    with pytest.raises(openai.InternalServerError):
        client.completions.create(model=MODEL, prompt=["a", "b"])
    (budget,) = town.get("dev", "/ledger/budgets")["items"]
    assert budget["held_micro"] == 0
    assert town.hosts.closed == len(town.hosts.asked)


def test_echo_gives_the_prompt_back_with_its_scores(town: Any, client: openai.OpenAI) -> None:
    """The text begins with the prompt, its first token has no score, offsets run on into the answer."""
    answer = client.completions.create(model=MODEL, prompt="one two", echo=True, logprobs=1, max_tokens=0)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == ("onetwo", "length")
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == [None, -1.0]
    assert choice.logprobs.top_logprobs == [None, {"two": -1.0}]
    assert choice.logprobs.text_offset == [0, 3]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0
    answer = client.completions.create(model=MODEL, prompt="one two", echo=True, n=2)
    assert [choice.text for choice in answer.choices] == ["onetwoHello there."] * 2
    events = list(client.completions.create(model=MODEL, prompt="one two", echo=True, stream=True))
    assert "".join(event.choices[0].text for event in events) == "onetwoHello there."


def test_echo_alone_is_admitted(town: Any, client: openai.OpenAI) -> None:
    """Nothing is generated and nothing scored: the prompt comes back, as in the API that clients know."""
    answer = client.completions.create(model=MODEL, prompt="one", max_tokens=0, echo=True)
    assert answer.choices[0].text == "one"
    assert town.hosts.asked[0][0].reserved_tokens == 1


def test_scored_prompt_is_held_for_before_it_is_counted(town: Any, client: openai.OpenAI) -> None:
    """The hold covers every token that a prompt may have: its ids, or its bytes and one."""
    client.completions.create(model=MODEL, prompt="été", echo=True, logprobs=0, max_tokens=3, n=2)
    client.completions.create(model=MODEL, prompt=[5, 6, 7], echo=True, logprobs=0, max_tokens=0)
    client.completions.create(model=MODEL, prompt="été", echo=True, max_tokens=3)
    assert [admission.reserved_tokens for admission, _ in town.hosts.asked] == [6 + 5 + 1, 3, 3]


def test_requests_of_lm_eval_are_answered_as_it_reads_them(town: Any) -> None:
    """A batch of token prompts to be scored, and texts to be continued with many stops."""
    headers = {"Authorization": f"Bearer {town.keys['dev']}"}
    scoring = {
        "model": MODEL,
        "prompt": [[5, 6, 7], [8, 9]],
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    town.hosts.words = ("!",)
    found = town.http.post("/v1/completions", json=scoring, headers=headers).json()
    first, second = sorted(found["choices"], key=lambda choice: choice["index"])
    # It sums what lies behind the context and before the one token that it had to ask for.
    assert first["logprobs"]["token_logprobs"][:3] == [None, -1.0, -2.0]
    assert [max(top.values()) for top in first["logprobs"]["top_logprobs"][1:3]] == [-1.0, -2.0]
    assert len(second["logprobs"]["tokens"]) == 2
    writing = {
        "prompt": ["Question: 1+1\nAnswer:"],
        "model": MODEL,
        "max_tokens": 32,
        "temperature": 0,
        "stop": ["\n\n", "Question:", "</s>", "<|im_end|>", "<|endoftext|>"],
        "seed": 1234,
    }
    found = town.http.post("/v1/completions", json=writing, headers=headers).json()
    assert [choice["text"] for choice in found["choices"]] == ["!"]
    assert len(town.hosts.asked[-1][1].stop) == 5


def test_stream_reads_as_langchain_reads_it(town: Any) -> None:
    """Plain server-sent events: deltas, then a usage event without choices, then the end."""
    headers = {"Authorization": f"Bearer {town.keys['dev']}"}
    body = {
        "model": MODEL,
        "messages": CHAT,
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 1,
        "temperature": 0.7,
        "max_completion_tokens": 8,
        "parallel_tool_calls": True,
    }
    with town.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(c["delta"].get("content") or "" for e in events for c in e["choices"]) == "Hello there."
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["total_tokens"] == 10
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1


def test_drawing_parameters_reach_the_host(town: Any, client: openai.OpenAI) -> None:
    """Penalties and biases are honoured, and a base's own extension can be asked for."""
    client.completions.create(
        model=MODEL,
        prompt="x",
        presence_penalty=0.5,
        frequency_penalty=-1,
        logit_bias={"7": -100, "3": 2},
        extra_body={"top_k": 40},
    )
    asked = town.hosts.asked[0][1]
    assert (asked.presence_penalty, asked.frequency_penalty, asked.top_k) == (0.5, -1.0, 40)
    assert asked.logit_bias == ((3, 2.0), (7, -100.0))


def test_chat_template_is_one_paragraph_per_turn() -> None:
    """The documented fallback template, which bases without a template of their own continue."""
    turns = (ChatTurn(role="system", content="Be brief."), ChatTurn(role="user", content="Hi"))
    assert render_turns(turns) == "system: Be brief.\n\nuser: Hi\n\nassistant:"


def test_answers_are_bounded_in_time(found_town: Any) -> None:
    """An answer that does not begin in time is a 504 to come again, one that does not end an error event."""
    town = found_town(first_token_s=0.2, request_s=1.0)
    with _client(town, "dev") as client:
        town.hosts.words, town.hosts.pause_s = tuple("ab" * 20), 0.1
        with pytest.raises(openai.APIError) as late:
            list(client.completions.create(model=MODEL, prompt="x", max_tokens=40, stream=True))
        assert late.value.code == "generation_timed_out"
        town.hosts.first_pause_s = 1.0
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(model=MODEL, prompt="x")
        assert caught.value.status_code == 504
        assert caught.value.response.headers["Retry-After"] == "1"
    assert _until(lambda: town.hosts.closed == 2)
