"""`cutaway plan` against the real run on this machine: wall-clock time and the peak of resident memory.

    python benchmarks/plan_check.py --pretrain D/pretrain_mix.jsonl.xz --sft D/sft_mix.jsonl.xz --tokenizer runs/tok
        [--recipes nano,mini] [--stages pretrain,sft,lora]
    python benchmarks/plan_check.py --sft D/sft_mix.jsonl.xz --pairs D/dpo_en_zh.jsonl.xz --tokenizer RUN --recipes nano
        --stages lora,dpo,reward

For each recipe and stage: the plan, then the run with the same flags, each as a user starts it, on an otherwise idle
machine. A stage starts from the model trained before it, the first from `--tokenizer` (or a model). Time is that
of the whole command, memory the most that its process held (VmHWM). The files are tokenised by the plan, so the run
finds them tokenised. Ends with exit code 1 where a plan is off by more than 25 % in time or 15 % in memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = {"nano": 60, "mini": 12}
"""Steps of 8,192 tokens, for about a minute on two cores."""
FLAGS = ("--batch-tokens", "8192", "--holdout-tokens", "16384")
KIND = {"pretrain": "pretrain", "sft": "sft", "lora": "sft", "dpo": "pairs", "reward": "pairs"}
TIME_OFF, MEMORY_OFF = 0.25, 0.15


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrain", help="text, for pretrain")
    parser.add_argument("--sft", help="conversations, for sft and lora")
    parser.add_argument("--pairs", help="pairs of answers, for dpo and reward")
    parser.add_argument("--tokenizer", required=True, help="what the first stage starts from")
    parser.add_argument("--recipes", default="nano,mini")
    parser.add_argument("--stages", default="pretrain,sft,lora")
    parser.add_argument("--more", default="", help="further flags of both, such as '--compile on'")
    arguments = parser.parse_args()
    print("| recipe, stage | steps | time: plan | run | off by | memory: plan | run | off by | planning took |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for recipe in arguments.recipes.split(","):
            init = arguments.tokenizer
            for stage in arguments.stages.split(","):
                data = vars(arguments)[KIND[stage]]
                out = Path(folder, f"{recipe}-{stage}")
                steps = str(STEPS[recipe])
                flags = ["--recipe", recipe, "--data", data, "--init", init, *FLAGS]
                flags += ["--steps", steps, "--eval-every", str(STEPS[recipe] // 2), *arguments.more.split()]
                plan_s, _ = watched(["plan", stage, *flags, "--json", f"{out}.json"])
                plan = json.loads(Path(f"{out}.json").read_text(encoding="utf-8"))[0]
                run_s, run_bytes = watched([stage, *flags, "--out", str(out)])
                time_off, memory_off = plan["seconds"] / run_s - 1, plan["peak_bytes"] / run_bytes - 1
                good &= abs(time_off) <= TIME_OFF and abs(memory_off) <= MEMORY_OFF
                print(
                    f"| {recipe}, {stage} | {steps} | {plan['seconds']:.0f} s | {run_s:.0f} s | {time_off:+.0%} "
                    f"| {plan['peak_bytes'] / 1e9:.2f} GB | {run_bytes / 1e9:.2f} GB | {memory_off:+.0%} "
                    f"| {plan_s:.0f} s |",
                    flush=True,
                )
                init = str(out) if stage in ("pretrain", "sft") else init
    return 0 if good else 1


def watched(arguments: list[str]) -> tuple[float, int]:
    """Seconds that a command took and the most resident memory of its process."""
    started, peak = time.monotonic(), 0
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, "-m", "cutaway", *arguments], stdout=log, stderr=log)
        while process.poll() is None:
            peak = max(peak, held_bytes(process.pid))
            time.sleep(0.1)
        seconds = time.monotonic() - started
        if process.returncode:
            log.seek(0)
            sys.exit(f"cutaway {' '.join(arguments)} failed:\n{log.read().decode()}")
    return seconds, peak


def held_bytes(pid: int) -> int:
    """VmHWM of a process, the most that it has held so far; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    sys.exit(main())
