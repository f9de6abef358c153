"""What it costs to read two Chinese scripts: runs that differ only in the share of Traditional documents.

    python benchmarks/script_share.py --data pretrain_mix.jsonl.xz --text pretrain_extra.jsonl.xz --tokenizer DIR \
        --shares 0 0.1 0.2 0.4 --steps 300 --out runs/shares

Trains `nano` for the same steps on the same documents in the same order, then prints bits per byte on Simplified,
Traditional and English text. The share to take is the one at which a little more Traditional text costs Simplified text
more than it gives.
"""

import argparse
import subprocess
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.0, 0.1, 0.2, 0.4])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    runs = []
    for share in arguments.shares:
        run = Path(arguments.out) / f"hant-{share:g}"
        runs.append(str(run))
        if (run / "curves.png").is_file():
            continue
        mix = "hans" if share == 0 else f"hans:{1 - share:g},hant:{share:g}"
        flags = ["--scripts", mix, "--steps", str(arguments.steps), "--sample-every", "0", "--batch-tokens", "8192"]
        files = ["--data", arguments.data, "--init", arguments.tokenizer, "--out", str(run)]
        subprocess.run([sys.executable, "-m", "cutaway", "pretrain", "--recipe", "nano", *files, *flags], check=True)
    script = str(Path(__file__).with_name("bits_per_byte.py"))
    subprocess.run([sys.executable, script, *runs, "--text", arguments.text, "--megabytes", "0.5"], check=True)


if __name__ == "__main__":
    main()
