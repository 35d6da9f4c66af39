#!/usr/bin/env python3
"""Talks to a running peer with the openai package, unmodified: lists models, asks, streams, and is refused.

    pip install openai
    BRIGADE_API=http://127.0.0.1:2745/v1 python tests/openai_client.py

BRIGADE_API is the peer's API (that is its default), BRIGADE_API_KEY its key, if it has one. The peer must see a model
that is fully covered. Exits with 0 if everything was as it should be.
"""

import os
import sys

try:
    import openai
except ImportError:
    sys.exit("the openai package is not installed: pip install openai")


def main() -> None:
    client = openai.OpenAI(
        base_url=os.environ.get("BRIGADE_API", "http://127.0.0.1:2745/v1"),
        api_key=os.environ.get("BRIGADE_API_KEY", "none-is-needed"),
        max_retries=0,
        timeout=120,
    )
    model = list_models(client)
    whole = ask(client, model)
    stream(client, model, whole)
    complete(client, model)
    is_refused(client, model)
    print("all as it should be")


def list_models(client: openai.OpenAI) -> str:
    models = client.models.list().data
    for model in models:
        print(f"model {model.id}  {getattr(model, 'title', '')}  covered: {getattr(model, 'covered', '?')}")
    assert models, "the peer knows no model"
    assert client.models.retrieve(models[0].id).id == models[0].id
    return models[0].id


def question(model: str) -> dict:
    return {
        "model": model,
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "temperature": 0,
        "max_tokens": 40,
        "seed": 7,
    }


def ask(client: openai.OpenAI, model: str) -> str:
    answer = client.chat.completions.create(**question(model))
    choice = answer.choices[0]
    assert choice.finish_reason in ("stop", "length"), choice.finish_reason
    assert answer.usage.completion_tokens <= 40
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    print(f"whole:  {choice.message.content!r}  {answer.usage}")
    return choice.message.content


def stream(client: openai.OpenAI, model: str, whole: str) -> None:
    text, reason, usage = "", None, None
    parts = client.chat.completions.create(**question(model), stream=True, stream_options={"include_usage": True})
    print("stream: ", end="")
    for part in parts:
        if part.usage:
            usage = part.usage
        for choice in part.choices:
            text += choice.delta.content or ""
            print(choice.delta.content or "", end="", flush=True)
            reason = choice.finish_reason or reason
    print()
    assert reason in ("stop", "length"), reason
    assert usage is not None and usage.completion_tokens > 0
    assert text == whole, "the same seed gave another answer"


def complete(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt="Once upon a time", max_tokens=10, temperature=0, logprobs=2)
    choice = answer.choices[0]
    print(f"raw:    {choice.text!r}")
    assert len(choice.logprobs.tokens) == answer.usage.completion_tokens
    assert all(logprob <= 0 for logprob in choice.logprobs.token_logprobs)


def is_refused(client: openai.OpenAI, model: str) -> None:
    try:
        client.chat.completions.create(**question(model), n=2)
    except openai.BadRequestError as refusal:
        assert refusal.param == "n", refusal
        print(f"refused: {refusal.message}")
    else:
        raise AssertionError("n=2 was ignored")
    try:
        client.chat.completions.create(**{**question(model), "model": "there-is-no-such-model"})
    except openai.NotFoundError as refusal:
        assert refusal.code == "model_not_found", refusal
    else:
        raise AssertionError("a model that is not there answered")


if __name__ == "__main__":
    main()
