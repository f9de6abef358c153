"""The chat format as a Jinja template, for every runtime that is not Cutaway. `chat.py` writes the same text.

Variables: `messages`, `tools` (a list), `add_generation_prompt`, and `enable_thinking` or MiniMind's `open_thinking`
(true opens a thinking block, false closes an empty one, absent leaves it to the model). Tools and tool calls are lists
here, as `chat.normalise` makes them of the JSON strings in data files.
"""

TOOLS_HEADER = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
# The two tags in these lines are the control tokens, as they are when another runtime encodes the template's text.
TOOLS_FOOTER = (
    "</tools>\n\nFor each function call, return a json object with function name and arguments within ",
    "<tool_call>",
    "</tool_call>",
    " XML tags:\n",
    "<tool_call>",
    '\n{"name": <function-name>, "arguments": <args-json-object>}\n',
    "</tool_call>",
)


def _quote(text: str) -> str:
    return "'" + text.replace("\n", "\\n") + "'"


CHAT_TEMPLATE = """\
{%- set thinking = open_thinking if open_thinking is defined else none %}
{%- if enable_thinking is defined %}
    {%- set thinking = enable_thinking %}
{%- endif %}
{%- set ns = namespace(tools=[], system=false) %}
{%- if tools is defined and tools %}
    {%- set ns.tools = tools %}
{%- endif %}
{%- macro tool_section(list) %}
    {{- HEADER }}
    {%- if list is string %}
        {{- list + '\\n' }}
    {%- else %}
        {%- for tool in list %}
            {{- tool | tojson }}
            {{- '\\n' }}
        {%- endfor %}
    {%- endif %}
    {{- FOOTER }}
{%- endmacro %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set ns.system = true %}
    {%- endif %}
{%- endfor %}
{%- if ns.tools and not ns.system %}
    {{- '<|im_start|>system\\n' + tool_section(ns.tools) + '<|im_end|>\\n' }}
    {%- set ns.tools = [] %}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.role == 'assistant' %}
            {%- if message.reasoning_content is string %}
                {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
            {%- elif thinking is false %}
                {{- '<think>\\n\\n</think>\\n\\n' }}
            {%- endif %}
        {%- endif %}
        {{- content }}
        {%- if message.role == 'system' %}
            {%- set section = ns.tools if ns.tools else (message.tools if message.tools else []) %}
            {%- set ns.tools = [] %}
            {%- if section %}
                {%- if content %}
                    {{- '\\n\\n' }}
                {%- endif %}
                {{- tool_section(section) }}
            {%- endif %}
        {%- elif message.role == 'assistant' and message.tool_calls %}
            {%- for item in message.tool_calls %}
                {%- set call = item.function if item.function else item %}
                {%- if content or not loop.first %}
                    {{- '\\n' }}
                {%- endif %}
                {{- '<tool_call>\\n{"name": ' }}
                {{- call.name | tojson }}
                {{- ', "arguments": ' }}
                {%- if call.arguments is string %}
                    {{- call.arguments }}
                {%- else %}
                    {{- call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if thinking is true %}
        {{- '<think>\\n' }}
    {%- elif thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""".replace("HEADER", _quote(TOOLS_HEADER)).replace("FOOTER", _quote("".join(TOOLS_FOOTER)))
