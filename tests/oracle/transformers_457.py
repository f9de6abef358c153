"""Runs in the second environment, with Transformers 4.57 and without cutaway: `python transformers_457.py FOLDER`.

FOLDER/ours/* are checkpoints of ours: their logits of FOLDER/ids.safetensors go to FOLDER/logits.safetensors.
FOLDER/theirs.json holds class names and settings: each model is made, saved as FOLDER/theirs/*, and its logits go
there too.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file


def main(folder: Path) -> None:
    ids = load_file(folder / "ids.safetensors")["ids"]
    logits = {}
    with torch.no_grad():
        for path in sorted((folder / "ours").iterdir()):
            model, report = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
            assert not any(report.values()), report
            assert model.dtype == torch.float32
            logits[f"ours/{path.name}"] = model.eval()(ids).logits
        for name, (kind, settings) in json.loads((folder / "theirs.json").read_text(encoding="utf-8")).items():
            torch.manual_seed(0)
            config = getattr(transformers, f"{kind}Config")(**settings)
            model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
            model.save_pretrained(folder / "theirs" / name)
            logits[f"theirs/{name}"] = model(ids).logits
    save_file(logits, folder / "logits.safetensors", metadata={"transformers": transformers.__version__})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
