"""litellm against a live server, in its own environment. Prints one JSON object with what it got."""

import json
import sys

import litellm

base_url, tool, question, result, greeting = sys.argv[1:]
litellm.suppress_debug_info = True
tools = [json.loads(tool)]


def ask(messages, **more):  # type: ignore[no-untyped-def]
    model = more.pop("model", "openai/learned")
    key = more.pop("api_key", "right")
    return litellm.completion(model, messages, base_url=base_url, api_key=key, max_retries=0, **more)


def user(text):  # type: ignore[no-untyped-def]
    return [{"role": "user", "content": text}]


found = {}
plain = ask(user(greeting), logprobs=True, top_logprobs=2)
found["chat"] = plain.choices[0].message.content
found["logprobs"] = len(plain.choices[0].logprobs.content)
parts = list(ask(user(greeting), stream=True, stream_options={"include_usage": True}))
found["streamed"] = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
found["usage"] = next(part.usage.completion_tokens for part in parts if getattr(part, "usage", None))
messages = user(question)
first = ask(messages, tools=tools).choices[0]
found["finish"] = first.finish_reason
call = first.message.tool_calls[0]
found["call"] = {"name": call.function.name, "arguments": call.function.arguments}
messages += [first.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": result}]
found["answer"] = ask(messages, tools=tools).choices[0].message.content
built = litellm.stream_chunk_builder(list(ask(user(question), tools=tools, stream=True)))
function = built.choices[0].message.tool_calls[0].function
found["streamed_call"] = {"name": function.name, "arguments": function.arguments}
errors = {}
for name, fields in {
    "model": {"model": "openai/nope"},
    "temperature": {"temperature": 9.0},
    "key": {"api_key": "wrong"},
}.items():
    try:
        ask(user("x"), **fields)
    except Exception as error:
        errors[name] = [type(error).__name__, getattr(error, "status_code", None)]
found["errors"] = errors
print(json.dumps(found))
