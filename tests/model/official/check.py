#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Drives the scripted model with the providers' official clients: what they read without a complaint is the real format.

usage: check.py PATH-OF-midge-scripted-model
"""

import contextlib
import json
import subprocess
import sys
import tempfile

import anthropic
import openai

BINARY = sys.argv[1]
KEY = "sesame"


@contextlib.contextmanager
def served(*steps, problems=0, **more):
    """A server of these steps; at the end it must have seen as many bad requests as `problems`."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"steps": list(steps), "key": KEY, **more}, file)
        file.flush()
        process = subprocess.Popen([BINARY, file.name], stdout=subprocess.PIPE, text=True)
        url = process.stdout.readline().strip()
        try:
            yield url
            # The next line is told within the server's look; a request that nobody serves marks the end.
            requests = told(process, url)
        finally:
            process.kill()
            process.wait()
    found = [request["problem"] for request in requests if request["problem"]]
    assert len(found) == problems, found


def told(process, url):
    import urllib.error
    import urllib.request

    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(urllib.request.Request(url + "/end", b"{}", {"content-type": "application/json"}))
    requests = []
    for line in process.stdout:
        request = json.loads(line)
        if request["path"] == "/end":
            return requests
        requests.append(request)
    raise AssertionError("the server ended by itself")


LOOK = {
    "parts": [
        {"thinking": "I should look at both, I think."},
        {"redacted_thinking": "b3BhcXVl"},
        {"text": "Two calls, at once."},
        {"call": {"name": "shell", "input": {"command": "ls -l ä"}}},
        {"call": {"name": "read", "input": {"path": "a.py", "limit": 3}}},
    ],
    "usage": [120, 34],
    "write_bytes": 5,
}
SAY = {"parts": [{"text": "It says {{capture:(\\d+) files}}."}]}
TOOLS = ["shell", "read"]
RESULTS = ["3 files", "print(1)"]


def anthropic_tools():
    return [{"name": name, "description": "d", "input_schema": {"type": "object"}} for name in TOOLS]


def anthropic_streams_and_goes_on():
    for stream in (True, False):
        with served(LOOK, SAY) as url:
            client = anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0)
            ask = {"model": "m", "max_tokens": 2000, "tools": anthropic_tools()}
            messages = [{"role": "user", "content": "go"}]
            if stream:
                with client.messages.stream(messages=messages, **ask) as events:
                    words = "".join(events.text_stream)
                    answer = events.get_final_message()
                assert words == "Two calls, at once.", words
            else:
                answer = client.messages.create(messages=messages, **ask)
            kinds = [block.type for block in answer.content]
            assert kinds == ["thinking", "redacted_thinking", "text", "tool_use", "tool_use"], kinds
            assert answer.content[0].thinking == "I should look at both, I think." and answer.content[0].signature
            assert answer.content[3].input == {"command": "ls -l ä"}, answer.content[3]
            assert (answer.stop_reason, answer.usage.input_tokens, answer.usage.output_tokens) == ("tool_use", 120, 34)
            results = [
                {"type": "tool_result", "tool_use_id": block.id, "content": result}
                for block, result in zip(answer.content[3:], RESULTS)
            ]
            messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]
            assert client.messages.create(messages=messages, **ask).content[0].text == "It says 3."


def anthropic_errors_are_its_own():
    steps = [{"fault": {"status": {"status": status}}} for status in (400, 429, 529)]
    with served(*steps) as url:
        client = anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0)
        for kind in (anthropic.BadRequestError, anthropic.RateLimitError, anthropic.InternalServerError):
            raises(kind, lambda: client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}]))
    overloaded = {"error_event": {"after_events": 3, "kind": "overloaded_error", "message": "busy"}}
    with served({**LOOK, "fault": overloaded}, {**LOOK, "fault": {"cut": {"after_events": 4}}}) as url:
        client = anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0)

        def stream():
            with client.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}]) as events:
                events.until_done()

        raises(anthropic.APIStatusError, stream)
        raises(Exception, stream)


def anthropic_refusals_are_strict():
    with served(LOOK, problems=2) as url:
        client = anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0)
        ask = {"model": "m", "max_tokens": 9}
        answer = client.messages.create(messages=[{"role": "user", "content": "x"}], **ask)
        dangling = [{"role": "user", "content": "x"}, {"role": "assistant", "content": answer.content}, {"role": "user", "content": "y"}]
        error = raises(anthropic.BadRequestError, lambda: client.messages.create(messages=dangling, **ask))
        assert "tool_result" in str(error), error
        wrong = anthropic.Anthropic(base_url=url, api_key="wrong", max_retries=0)
        raises(anthropic.AuthenticationError, lambda: wrong.messages.create(messages=dangling[:1], **ask))


def responses_tools():
    return [{"type": "function", "name": name, "parameters": {"type": "object"}, "strict": False} for name in TOOLS]


def responses_streams_and_goes_on():
    for stream in (True, False):
        with served(LOOK, SAY) as url:
            client = openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0)
            ask = {"model": "m", "store": False, "include": ["reasoning.encrypted_content"], "tools": responses_tools()}
            items = [{"role": "user", "content": "go"}]
            if stream:
                with client.responses.stream(input=items, **ask) as events:
                    words = "".join(event.delta for event in events if event.type == "response.output_text.delta")
                    answer = events.get_final_response()
                assert words == "Two calls, at once.", words
            else:
                answer = client.responses.create(input=items, **ask)
            kinds = [item.type for item in answer.output]
            assert kinds == ["reasoning", "reasoning", "message", "function_call", "function_call"], kinds
            assert json.loads(answer.output[3].arguments) == {"command": "ls -l ä"}
            assert answer.output_text == "Two calls, at once." and answer.usage.total_tokens == 154
            items += answer.output
            items += [
                {"type": "function_call_output", "call_id": item.call_id, "output": result}
                for item, result in zip(answer.output[3:], RESULTS)
            ]
            assert client.responses.create(input=items, **ask).output_text == "It says 3."


def responses_end_early():
    with served({**SAY, "parts": [{"text": "half"}], "stop": "max_output_tokens"}) as url:
        client = openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0)
        answer = client.responses.create(model="m", input="x")
        assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def chat_tools():
    return [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in TOOLS]


def chat_streams_and_goes_on():
    for stream in (True, False):
        with served(LOOK, SAY) as url:
            client = openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0)
            ask = {"model": "m", "tools": chat_tools()}
            messages = [{"role": "user", "content": "go"}]
            if stream:
                options = {"include_usage": True}
                with client.chat.completions.stream(messages=messages, stream_options=options, **ask) as events:
                    for _ in events:
                        pass
                    answer = events.get_final_completion()
            else:
                answer = client.chat.completions.create(messages=messages, **ask)
            message = answer.choices[0].message
            assert (message.content, answer.choices[0].finish_reason) == ("Two calls, at once.", "tool_calls")
            assert [call.function.name for call in message.tool_calls] == TOOLS
            assert json.loads(message.tool_calls[0].function.arguments) == {"command": "ls -l ä"}
            assert answer.usage.total_tokens == 154
            messages.append({"role": "assistant", "content": message.content, "tool_calls": [
                {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": call.function.arguments}}
                for call in message.tool_calls]})
            messages += [{"role": "tool", "tool_call_id": call.id, "content": result}
                         for call, result in zip(message.tool_calls, RESULTS)]
            assert client.chat.completions.create(messages=messages, **ask).choices[0].message.content == "It says 3."


def openai_errors_are_its_own():
    steps = [{"fault": {"status": {"status": status}}} for status in (400, 429, 503)]
    with served(*steps, problems=1) as url:
        client = openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0)
        for kind in (openai.BadRequestError, openai.RateLimitError, openai.InternalServerError):
            raises(kind, lambda: client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}]))
        wrong = openai.OpenAI(base_url=url + "/v1", api_key="wrong", max_retries=0)
        raises(openai.AuthenticationError, lambda: wrong.responses.create(model="m", input="x"))


def retries_come_back():
    with served({"fault": {"status": {"status": 429, "headers": {"retry-after": "0"}}}}, {"parts": [{"text": "hi"}]}) as url:
        client = openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=2)
        answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        assert answer.choices[0].message.content == "hi"


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was expected")


CHECKS = [
    anthropic_streams_and_goes_on,
    anthropic_errors_are_its_own,
    anthropic_refusals_are_strict,
    responses_streams_and_goes_on,
    responses_end_early,
    chat_streams_and_goes_on,
    openai_errors_are_its_own,
    retries_come_back,
]

for check in CHECKS:
    check()
    print("ok", check.__name__, flush=True)
print(len(CHECKS), "checks with anthropic", anthropic.__version__, "and openai", openai.__version__)
