"""A folder for `ollama create`: the GGUF file and a Modelfile with the chat format as a Go template.

Ollama renders a conversation by its own template, not by the Jinja one in the GGUF file. The text below writes what
`tokenization/chat.py` writes with a generation prompt at the end. Ollama also reads from it what the model can do: tags
around `.Thinking` within the loop over `.Messages`, and the first text under `if .ToolCalls`, are how it finds thinking
and tool calls in an answer.
"""

import logging
from pathlib import Path
from typing import Any

from cutaway.errors import UserError
from cutaway.exporting.gguf_file import Quantization, tokenizer_of, write_gguf
from cutaway.generation.conversation import knows_chat
from cutaway.generation.defaults import load_sampling, stop_ids
from cutaway.model.config import ModelConfig
from cutaway.model.weights import find_base, is_adapter, write_text
from cutaway.tokenization.template import TOOLS_FOOTER, TOOLS_HEADER

log = logging.getLogger("cutaway")

_TOOLS = f"{TOOLS_HEADER}{{{{ range $.Tools }}}}{{{{ . }}}}\n{{{{ end }}}}{''.join(TOOLS_FOOTER)}"
_CALL = '<tool_call>\n{"name": {{ json .Function.Name }}, "arguments": {{ .Function.Arguments }}}\n</tool_call>'
_NO_THINKING = "<think>\n\n</think>\n\n"
# The tag must be the first text under `if .ToolCalls`, so no condition may stand before it: hence two loops.
_CALLS = (
    f"{{{{ if .ToolCalls }}}}{{{{ range slice .ToolCalls 0 1 }}}}{_CALL}{{{{ end }}}}"
    f"{{{{ range slice .ToolCalls 1 }}}}\n{_CALL}{{{{ end }}}}{{{{ end }}}}"
)
TEMPLATE = (
    '{{ $said := false }}{{ range .Messages }}{{ if eq .Role "system" }}{{ $said = true }}{{ end }}{{ end }}'
    "{{ $tools := false }}{{ if .Tools }}{{ $tools = true }}{{ end }}"
    f"{{{{ if and $tools (not $said) }}}}{{{{ $tools = false }}}}<|im_start|>system\n{_TOOLS}<|im_end|>\n{{{{ end }}}}"
    "{{ range .Messages }}"
    '{{ if eq .Role "tool" }}<|im_start|>user\n<tool_response>\n{{ .Content }}\n</tool_response>'
    '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n'
    "{{ if .Thinking }}<think>\n{{ .Thinking }}\n</think>\n\n"
    f"{{{{ else if and $.IsThinkSet (not $.Think) }}}}{_NO_THINKING}{{{{ end }}}}"
    "{{ if .Content }}{{ .Content }}{{ with .ToolCalls }}\n{{ end }}{{ end }}"
    f"{_CALLS}"
    "{{ else }}<|im_start|>{{ .Role }}\n{{ .Content }}"
    '{{ if and $tools (eq .Role "system") }}{{ $tools = false }}{{ if .Content }}\n\n{{ end }}'
    f"{_TOOLS}{{{{ end }}}}{{{{ end }}}}<|im_end|>\n{{{{ end }}}}"
    "<|im_start|>assistant\n"
    f"{{{{ if .IsThinkSet }}}}{{{{ if .Think }}}}<think>\n{{{{ else }}}}{_NO_THINKING}{{{{ end }}}}{{{{ end }}}}"
)
"""The native chat format in the words of Go's text/template."""

PLAIN = "{{ .Prompt }}"
"""For a model that was not trained on conversations: the text goes in as it is."""


def write_ollama(run: Path, out: Path, quantize: Quantization = "f16") -> Path:
    """Write `out/model.gguf` and `out/Modelfile`, from which `ollama create NAME -f out/Modelfile` makes a model.

    An adapter is merged. For another project's chat format no TEMPLATE is written, since it exists in Jinja only.
    """
    tokenizer = tokenizer_of(run)
    chat = knows_chat(run, tokenizer)
    if chat and not tokenizer.is_native:
        log.warning("%s: no TEMPLATE written; newer versions of Ollama take the Jinja one in the GGUF file", run)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: --out must name the folder to write")
    write_gguf(run, out / "model.gguf", quantize)
    stops = [text for index in stop_ids(tokenizer) if (text := tokenizer.control_text(index))]
    sampling = load_sampling(run)
    context = ModelConfig.load(find_base(run) if is_adapter(run) else run).max_position_embeddings
    parameters: list[tuple[str, Any]] = [("temperature", sampling.temperature), ("top_k", sampling.top_k)]
    parameters += [("top_p", sampling.top_p), ("min_p", sampling.min_p), ("repeat_penalty", 1.0), ("num_ctx", context)]
    lines = ["FROM ./model.gguf"]
    if tokenizer.is_native or not chat:
        lines.append(f'TEMPLATE """{TEMPLATE if chat else PLAIN}"""')
    lines += [f"PARAMETER {name} {value}" for name, value in parameters]
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    write_text("\n".join(lines) + "\n", out / "Modelfile")
    return out
