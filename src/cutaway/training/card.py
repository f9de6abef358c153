"""The model card of a run: README.md with the front matter of the Hugging Face hub, from recipe and metrics."""

import json
from pathlib import Path
from typing import Any

from cutaway.data.hub import MINIMIND_FILES, MINIMIND_LICENCE
from cutaway.model.weights import write_text
from cutaway.recipe.files import read_toml
from cutaway.training.metrics import read_metrics

FIGURES = {
    "loss": "training loss (nats)",
    "heldout_loss": "held-out loss (nats)",
    "heldout_bpb": "held-out bits per byte",
    "heldout_accuracy": "held-out pairs in the right order (share)",
    "heldout_margin": "held-out margin",
    "heldout_calibration_error": "held-out calibration error",
    "tokens": "tokens trained on",
    "step": "optimizer steps",
    "elapsed_s": "seconds",
}
STAGES = {
    "pretrain": "Pretrained on plain text: it continues a text and does not answer.",
    "sft": "Fine-tuned on conversations: it answers.",
    "lora": "An adapter trained on conversations; it needs the base model named above.",
    "dpo": "Trained on pairs of answers, of which one is preferred.",
    "distill": "Trained on conversations and on what a larger model makes of them.",
    "reward": "It scores the last answer of a conversation and does not write.",
}
MARK = "<!-- Written by cutaway; delete this line to keep your own text. -->"


def write_card(run: Path, licence: str = "unknown") -> None:
    """Write RUN/README.md, unless somebody has taken its mark out and made it their own.

    Args:
        licence: an identifier of the hub's list; a run cannot know it, since it follows from the data.
    """
    path = run / "README.md"
    if path.is_file() and MARK not in path.read_text(encoding="utf-8"):
        return
    write_text(card(run, licence), path)


def card(run: Path, licence: str = "unknown") -> str:
    """The text of the card."""
    recipe = read_toml(str(run / "recipe.toml"))
    made, files = recipe.get("made", {}), recipe.get("run", {})
    stage = str(made.get("stage", "pretrain"))
    adapter = _json(run / "adapter_config.json")
    config = _json(run / "config.json") or _json(Path(str(files.get("init"))) / "config.json")
    name = run.resolve().name
    lines = _front_matter(stage, adapter, licence, str(recipe.get("name", "")))
    lines += ["", MARK, "", f"# {name}", ""]
    million = made.get("parameters", 0) / 1e6
    active = made.get("active_parameters", 0) / 1e6
    experts = f", {active:.1f}M of them active for a token" if active and active < million else ""
    architecture = str((config.get("architectures") or ["causal language model"])[0])
    lines.append(
        f"A small language model ({architecture}, {million:.2f}M parameters{experts}) made with Cutaway "
        f"{made.get('cutaway', '')}, recipe `{recipe.get('name', '')}`, stage `{stage}`. {STAGES.get(stage, '')}"
    )
    if adapter:
        lines.append(f"The base is `{_base_name(adapter)}`.")
    lines += ["", "## Data", "", *_data(files), "", "## Figures", "", *_figures(run)]
    lines += ["", "## Use", "", "```python", *_usage(adapter, stage), "```"]
    if stage not in ("pretrain", "reward"):
        lines += ["", f"In a terminal: `cutaway chat {name}`."]
    lines += ["", "## Limits", "", *_limits(million, stage), "", "## Licence", "", _licence_line(licence, files), ""]
    return "\n".join(lines)


def _front_matter(stage: str, adapter: dict[str, Any], licence: str, recipe: str) -> list[str]:
    lines = ["---", f"license: {licence}", f"library_name: {'peft' if adapter else 'transformers'}"]
    lines.append(f"pipeline_tag: {'text-classification' if stage == 'reward' else 'text-generation'}")
    base = str(adapter.get("base_model_name_or_path", ""))
    if base.count("/") == 1 and not Path(base).exists() and not base.startswith((".", "/")):
        lines.append(f"base_model: {json.dumps(base)}")
    return [
        *lines,
        "tags:",
        "- cutaway",
        f"- {json.dumps(stage)}",
        *([f"- {json.dumps(recipe)}"] if recipe else []),
        "---",
    ]


def _base_name(adapter: dict[str, Any]) -> str:
    base = str(adapter.get("base_model_name_or_path", ""))
    return Path(base).name if base.startswith((".", "/")) or Path(base).exists() else base


def _data(files: dict[str, Any]) -> list[str]:
    lines = [f"- trained on `{Path(file).name}`" for file in files.get("data", ())]
    lines += [f"- evaluated on `{Path(file).name}`" for file in files.get("eval_data", ())]
    if not files.get("eval_data"):
        lines.append("- held-out figures are from a slice of the training files that was not trained on")
    return lines


def _figures(run: Path) -> list[str]:
    last: dict[str, Any] = {}
    for row in read_metrics(run) if (run / "metrics.jsonl").is_file() else []:
        last |= row
    rows = [
        f"| {words} | {last[key]:,.4g} |" if isinstance(last[key], float) else f"| {words} | {last[key]:,} |"
        for key, words in FIGURES.items()
        if isinstance(last.get(key), int | float)
    ]
    if not rows:
        return ["None yet: the run has not reached its first log line."]
    return [
        "| | at the end |",
        "| --- | ---: |",
        *rows,
        "",
        "Every setting is in `recipe.toml`, every log line in `metrics.jsonl`.",
    ]


def _usage(adapter: dict[str, Any], stage: str) -> list[str]:
    load = "AutoModelForCausalLM.from_pretrained"
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    if adapter:
        lines = ["from peft import AutoPeftModelForCausalLM", "from transformers import AutoTokenizer", ""]
        load = "AutoPeftModelForCausalLM.from_pretrained"
    lines += ['where = "."  # this folder, or OWNER/NAME on the hub', f"model = {load}(where)"]
    lines.append("tokenizer = AutoTokenizer.from_pretrained(where)")
    if stage == "reward":
        return [
            *(line.replace("AutoModelForCausalLM", "AutoModelForSequenceClassification") for line in lines),
            'turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]',
            'text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\\n")',
            'print(model(**tokenizer(text, return_tensors="pt")).logits.item())',
        ]
    if stage == "pretrain":
        return [
            *lines,
            'ids = tokenizer("The ", return_tensors="pt").input_ids',
            "print(tokenizer.decode(model.generate(ids, max_new_tokens=64)[0]))",
        ]
    return [
        *lines,
        'turns = [{"role": "user", "content": "Hello"}]',
        'ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)',
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=128)[0]))",
    ]


def _limits(million: float, stage: str) -> list[str]:
    lines = [
        f"- With {million:.0f}M parameters it knows few facts and states wrong ones fluently: do not rely on it.",
        "- It repeats what its data says, faults and prejudice included. Nothing was done to make it safe.",
    ]
    if stage == "pretrain":
        lines.append("- It has not learnt to answer, to follow instructions or to end a turn.")
    return lines


def _licence_line(licence: str, files: dict[str, Any]) -> str:
    named = any(Path(file).name.split(".")[0] in MINIMIND_FILES for file in files.get("data", ()))
    known = f" MiniMind's sets, which are among them, are {MINIMIND_LICENCE}." if named else ""
    if licence == "unknown":
        return f"Not stated. It follows from the licences of the data files above.{known}"
    return f"{licence}, as stated by who published it.{known}"


def _json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return value if isinstance(value, dict) else {}
