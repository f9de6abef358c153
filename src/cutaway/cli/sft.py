"""`cutaway sft`: Fine-tuning on conversations. Flags to settings; the work is in `stages/sft.py`."""

from collections.abc import Sequence

from cutaway.cli.common import parse_stage


def main(argv: Sequence[str]) -> int:
    """Parse the flags, then run the stage; importing torch waits until the flags are right."""
    recipe, run = parse_stage("sft", argv)
    from cutaway.stages import sft

    sft.run(recipe, run)
    return 0
