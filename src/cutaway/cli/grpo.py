"""`cutaway grpo`: reinforcement learning from groups of answers. Flags to settings; the work is in `stages/grpo.py`."""

from collections.abc import Sequence

from cutaway.cli.common import parse_stage


def main(argv: Sequence[str]) -> int:
    """Parse the flags, then run the stage; importing torch waits until the flags are right."""
    recipe, run = parse_stage("grpo", argv)
    from cutaway.stages import grpo

    grpo.run(recipe, run)
    return 0
