"""`cutaway ppo`: reinforcement learning with a value model. Flags to settings; the work is in `stages/ppo.py`."""

from collections.abc import Sequence

from cutaway.cli.common import parse_stage


def main(argv: Sequence[str]) -> int:
    """Parse the flags, then run the stage; importing torch waits until the flags are right."""
    recipe, run = parse_stage("ppo", argv)
    from cutaway.stages import ppo

    ppo.run(recipe, run)
    return 0
