"""`cutaway spo`: reinforcement learning from single answers. Flags to settings; the work is in `stages/spo.py`."""

from collections.abc import Sequence

from cutaway.cli.common import parse_stage


def main(argv: Sequence[str]) -> int:
    """Parse the flags, then run the stage; importing torch waits until the flags are right."""
    recipe, run = parse_stage("spo", argv)
    from cutaway.stages import spo

    spo.run(recipe, run)
    return 0
